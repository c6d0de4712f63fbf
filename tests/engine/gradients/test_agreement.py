"""Agreement of halves: equal to the mean over all halves, the same for any order, and noise where sides mean nothing."""

import itertools
import tracemalloc

import numpy as np
import pytest

from raysift.gradients.agreement import (
    DRAWS,
    FEWEST,
    MOST_CHANCE,
    WANTED_HALVES,
    agreement,
    as_values,
    chances,
    compare_halves,
    gather,
    sums_of,
)
from raysift.gradients.preference import Member, Targets
from raysift.gradients.sketches import Sketcher

SHARES = (0.75, 0.25)
NAMES = ("epoch-1", "epoch-2")


def planted(count, cosine, seed=0, width=256, checkpoints=2):
    """Unit gradients whose mean cosine is about `cosine`, at each checkpoint another common direction."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(checkpoints):
        own, common = rng.standard_normal((count, width)), rng.standard_normal(width)
        own = np.sqrt(1 - cosine) * own + np.sqrt(cosine) * common
        found.append(np.float32(own / np.linalg.norm(own, axis=1, keepdims=True)))
    return found


def targets_of(blocks, subtasks=None, norms=None, ids=None, pairs=True):
    """The targets of these unit gradients; row k of a block belongs to member `ids[k]`."""
    found = []
    for at, block in enumerate(blocks):
        own = range(len(block)) if ids is None else ids[at]
        members = [
            Member(
                id=id_,
                subtask=subtasks[id_] if subtasks else "all",
                loss=1.0,
                norm=float(norms[at][k]) if norms is not None else 1.0,
                margin=0.5 if pairs else None,
                between=0.25 * (at + 1) if pairs else None,
            )
            for k, id_ in enumerate(own)
        ]
        found.append(Targets(tuple(sorted({m.subtask for m in members})), np.empty(0), members, [], sketches=block))
    return found


def found_in(blocks, keys=None, aggregation="mean_of_units", **given):
    targets = targets_of(blocks, **given)
    keys = keys or list(range(100, 100 + max(len(block) for block in blocks)))
    shares = SHARES if len(blocks) == 2 else [1.0] * len(blocks)
    return agreement(targets, NAMES[: len(blocks)], shares, keys, aggregation)


def side_by_side(blocks):
    return np.hstack([np.sqrt(share) * block.astype(np.float64) for share, block in zip(SHARES, blocks, strict=True)])


def all_halves(vectors):
    """E<A, B> and E|A|^2 over every choice of half of the members."""
    count, products, squares = len(vectors), [], []
    for chosen in itertools.combinations(range(count), count // 2):
        a = vectors[list(chosen)].sum(axis=0)
        b = vectors.sum(axis=0) - a
        products.append(a @ b)
        squares.append(a @ a)
    return np.mean(products), np.mean(squares)


@pytest.mark.parametrize("count", [2, 4, 8, 12])
def test_the_closed_form_is_the_mean_over_all_halves(count):
    blocks = planted(count, 0.3)
    over, under = all_halves(side_by_side(blocks))
    found = found_in(blocks).whole
    assert found.halves == pytest.approx(over / under, rel=1e-6)
    assert found.full == pytest.approx(2 * over / (under + over), rel=1e-6)


def test_for_an_odd_count_it_lies_near_the_mean_over_halves_of_unlike_size():
    vectors = side_by_side(planted(11, 0.3))
    products, lengths = [], []
    for chosen in itertools.combinations(range(11), 5):
        a = vectors[list(chosen)].sum(axis=0)
        b = vectors.sum(axis=0) - a
        products.append(a @ b)
        lengths.append((a @ a, b @ b))
    slow = np.mean(products) / np.sqrt(np.prod(np.mean(lengths, axis=0)))
    assert found_in(planted(11, 0.3)).whole.halves == pytest.approx(slow, abs=0.01)


def test_subtasks_are_pooled_by_sums_and_checkpoints_by_weight():
    blocks, subtasks = planted(12, 0.2), ["a"] * 8 + ["b"] * 4
    vectors = side_by_side(blocks)
    parts = np.array([all_halves(vectors[:8]), all_halves(vectors[8:])])
    found = found_in(blocks, subtasks=subtasks)
    assert found.whole.halves == pytest.approx(parts[:, 0].sum() / parts[:, 1].sum(), rel=1e-6)
    assert found.subtasks["b"].halves == pytest.approx(parts[1, 0] / parts[1, 1], rel=1e-6)
    for name, block in zip(NAMES, blocks, strict=True):
        alone = np.array([all_halves(block[:8].astype(np.float64)), all_halves(block[8:].astype(np.float64))])
        assert found.checkpoints[name].halves == pytest.approx(alone[:, 0].sum() / alone[:, 1].sum(), rel=1e-6)
    assert found.between == pytest.approx(0.75 * 0.25 + 0.25 * 0.5)


def test_a_member_without_a_gradient_at_a_checkpoint_counts_0_there():
    blocks = planted(6, 0.3)
    missing = blocks[1].copy()
    missing[2] = 0
    whole = found_in([blocks[0], missing])
    fewer = found_in([blocks[0], np.delete(blocks[1], 2, axis=0)], ids=[range(6), [0, 1, 3, 4, 5]])
    assert fewer.whole == whole.whole and fewer.count == 6


def test_lengths_weigh_members_where_the_target_weighs_them_and_never_checkpoints():
    blocks = planted(8, 0.3)
    norms = np.array([np.arange(1.0, 9.0), np.arange(1.0, 9.0)])
    found = found_in(blocks, norms=norms, aggregation="unit_of_mean")
    weighed = [block * norms[0][:, None] for block in blocks]
    assert found.whole.halves == pytest.approx(np.divide(*all_halves(side_by_side(weighed))), rel=1e-5)
    louder = found_in(blocks, norms=norms * [[1.0], [1e3]], aggregation="unit_of_mean")
    assert louder.whole.halves == pytest.approx(found.whole.halves, rel=1e-6)
    assert found_in(blocks, norms=norms).whole == found_in(blocks).whole


@pytest.mark.parametrize("sizes", [(9,), (5, 3), (4, 2)])
def test_the_interval_is_that_of_leaving_out_one_member_at_a_time(sizes):
    from raysift.evaluation.intervals import t_quantile

    parts = [block.astype(np.float64) for block in (planted(n, 0.3, seed=n)[0] for n in sizes)]

    def h(groups):
        halves = [all_split(group) for group in groups if len(group) > 1]
        return sum(over for over, _ in halves) / sum(under for _, under in halves)

    def all_split(group):
        n, diag = len(group), float((group**2).sum())
        off = float((group.sum(axis=0) ** 2).sum()) - diag
        return off * n / (4 * (n - 1)), diag / 2 + off * (n - 2) / (4 * (n - 1))

    variance = 0.0
    for place, group in enumerate(parts):
        left = [h([*parts[:place], np.delete(group, k, axis=0), *parts[place + 1 :]]) for k in range(len(group))]
        variance += (len(group) - 1) / len(group) * np.sum((np.array(left) - np.mean(left)) ** 2)
    half = t_quantile(0.975, sum(sizes) - len(sizes)) * np.sqrt(variance)
    found = compare_halves([sums_of(part) for part in parts])
    assert (found.low, found.high) == pytest.approx((max(-1, h(parts) - half), min(1, h(parts) + half)))


def test_halves_of_so_many_members_as_are_needed_agree_as_much_as_is_wanted():
    found = found_in(planted(40, 0.06)).whole
    half = np.array([found.needed - 1, found.needed]) / 2
    before, reached = half * found.mean_cosine / (1 + (half - 1) * found.mean_cosine)
    assert before < WANTED_HALVES <= reached
    assert found_in(planted(found.needed, 0.06, seed=5)).whole.halves == pytest.approx(WANTED_HALVES, abs=0.05)
    assert found_in(planted(40, 0.0)).whole.needed is None


def test_the_order_of_members_changes_nothing_at_all():
    blocks, subtasks = planted(20, 0.1), [f"s{k % 3}" for k in range(20)]
    keys = [int(key) for key in np.random.default_rng(1).integers(-(2**62), 2**62, 20)]
    found = found_in(blocks, keys, subtasks=subtasks)
    order = np.random.default_rng(2).permutation(20)
    moved = {"subtasks": [subtasks[k] for k in order]}
    assert found_in([block[order] for block in blocks], [keys[k] for k in order], **moved) == found
    norms = np.random.default_rng(3).uniform(1, 9, (2, 20))
    weighed = found_in(blocks, keys, "unit_of_mean", subtasks=subtasks, norms=norms)
    moved["norms"] = norms[:, order]
    assert found_in([block[order] for block in blocks], [keys[k] for k in order], "unit_of_mean", **moved) == weighed


def test_a_text_that_repeats_is_one_member_and_no_evidence():
    block = planted(3, 0.2, checkpoints=1)[0]
    found = found_in([np.repeat(block, 8, axis=0)], [7] * 8 + [8] * 8 + [9] * 8)
    assert (found.count, found.whole.members) == (24, 3)
    assert found.whole.halves == pytest.approx(found_in([block]).whole.halves)
    assert found.whole.level != "clear"
    alone = found_in([np.repeat(block[:1], 8, axis=0)], [7] * 8).whole
    assert (alone.members, alone.halves, alone.level) == (1, None, "unknown")


def test_members_that_hardly_differ_are_no_certainty():
    found = found_in(planted(20, 0.99)).whole
    assert found.halves > 0.99 and found.level == "unknown"


def test_the_sign_test_is_the_share_of_all_signs_that_do_as_well():
    blocks = planted(8, 0.02, seed=3, width=24)
    vectors = side_by_side(blocks)
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    squares = ((signs @ vectors) ** 2).sum(axis=1)
    exact = float(np.mean(squares >= squares[-1] * (1 - 1e-9)))
    assert 0.02 < exact < 0.5
    found = found_in(blocks).whole.chance
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / DRAWS) + 2 / DRAWS)


def test_two_pairs_that_agree_do_so_by_chance_half_of_the_time():
    p, (each,) = chances(gather(targets_of(planted(2, 0.9)), SHARES, [5, 6], "mean_of_units"))
    assert p == each == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("cosine", [0.15, 0.5])
def test_shuffled_sides_are_noise_in_95_of_100_draws_and_true_ones_clear(cosine):
    shuffled, true = [], []
    for seed in range(100):
        blocks = planted(24, cosine, seed, width=128)
        keys = [int(key) for key in np.random.default_rng(seed).integers(0, 2**62, 24)]
        signs = np.float32(np.random.default_rng(1000 + seed).choice([-1, 1], 24))[:, None]
        true.append(found_in(blocks, keys).whole.level)
        shuffled.append(found_in([signs * block for block in blocks], keys).whole.level)
    assert shuffled.count("noise") >= 95
    assert true.count("clear") == 100


def test_examples_have_no_sides_and_are_judged_by_the_interval():
    found = found_in(planted(24, 0.3), pairs=False)
    assert found.kind == "examples" and found.whole.chance is None and found.between is None
    assert found.whole.level == "clear"
    noise = found_in(planted(24, 0.0), pairs=False).whole
    assert noise.level == "noise" and noise.low < 0 < noise.high


def test_pairs_that_do_not_turn_with_their_sides_are_not_judged_by_signs():
    from raysift.methods.rose import Rose, RoseConfig

    told = agreement(targets_of(planted(24, 0.3)), NAMES, SHARES, list(range(24)), "mean_of_units", False)
    assert told.kind == "pairs" and told.whole.chance is None and told.whole.level == "clear"
    assert Rose(RoseConfig(), 0).turns_with_sides
    assert not Rose(RoseConfig(preference={"answer_weight": 1.0}), 0).turns_with_sides
    kinds = [Rose(RoseConfig(preference={"answer_weight": weight}), 0).null_kind for weight in (0.0, 1.0)]
    assert kinds == ["signs", "rows"]


def test_few_pairs_are_never_clear_because_chance_does_as_well():
    least = [2.0 ** (1 - count) for count in (FEWEST, FEWEST - 1)]  # p of pairs that all agree
    spread = [np.sqrt(p / DRAWS) for p in least]
    assert least[0] + 4 * spread[0] < MOST_CHANCE < least[1] + 4 * spread[1]
    assert found_in(planted(FEWEST - 1, 0.5)).whole.level == "weak"
    assert found_in(planted(FEWEST, 0.5)).whole.level == "clear"
    two = found_in(planted(2, 0.5)).whole
    assert two.halves is not None and two.low is None and two.level == "unknown"


def test_members_that_pull_against_the_rest_are_found_lowest_first():
    blocks = planted(12, 0.5)
    for block in blocks:
        block[4] *= -1
        block[9] = -0.2 * block[9] + np.sqrt(1 - 0.2**2) * planted(1, 0.0, seed=8)[0][0]
    found = found_in(blocks)
    assert [key for key, _ in found.against] == [104, 109]
    told = as_values(found, {100 + k: ("pairs.jsonl", k + 1) for k in range(12)})
    assert told["against"] == {"count": 2, "first": [{"file": "pairs.jsonl", "record": n} for n in (5, 10)]}


def test_sketches_agree_as_the_gradients_do():
    vectors, sketch = planted(24, 0.1, width=5000, checkpoints=1)[0], Sketcher(24)
    exact = found_in([vectors]).whole
    small = found_in([np.stack([sketch(one) for one in vectors])]).whole
    assert small.halves == pytest.approx(exact.halves, abs=0.1)


def test_memory_grows_with_the_members_and_not_with_their_pairs():
    count, width = 6000, 32
    block = planted(count, 0.1, width=width, checkpoints=1)
    tracemalloc.start()
    assert found_in(block, list(range(count))).whole.level == "clear"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * count * count / 2


def test_one_example_a_subtask_has_no_halves():
    found = found_in(planted(9, 0.5), subtasks=[f"s{k}" for k in range(9)], pairs=False)
    assert found.whole.halves is None and found.whole.level == "unknown" and not found.against
