"""Batched, sharded, pruned k-center picks what ten plain lines in float64 pick, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.errors import DataError, StageError
from raysift.kcenter import picking as kcenter
from raysift.kcenter import shard as kcenter_shard
from raysift.kcenter.coresets import core_set, cover_union, farthest_row, part_of, with_radius
from raysift.kcenter.distances import error_factor, exact_squares, squared_lengths
from raysift.kcenter.forecast import Speed, forecast_bytes, forecast_seconds, measure_speed
from raysift.kcenter.picking import Picked, k_center
from raysift.kcenter.shard import NewCenters, Shard


def plain_greedy(x, ids, k, first=None, initial=None):
    """The reference: ids, radii and final radius."""
    x = np.float32(x).astype(np.float64)
    order = np.argsort(ids)  # so that argmax takes the smallest id of several equal ones
    x, ids = x[order], np.asarray(ids)[order]
    known = np.float32(initial[1]) if initial else x[ids == first]
    squares = np.min([((x - center) ** 2).sum(1) for center in known.astype(np.float64)], axis=0)
    squares[np.isin(ids, initial[0] if initial else [first])] = -1
    picked, radii = ([], []) if initial else ([first], [np.inf])
    while len(picked) < k and squares.max() > 0:
        u = int(squares.argmax())
        picked.append(int(ids[u]))
        radii.append(np.sqrt(squares[u]))
        squares = np.minimum(squares, ((x - x[u]) ** 2).sum(1))
        squares[u] = -1
    return picked, radii, np.sqrt(max(squares.max(), 0))


def clustered(rng, rows=1500, dimension=24, clusters=30, spread=0.1):
    return rng.standard_normal((clusters, dimension))[rng.integers(0, clusters, rows)] + spread * rng.standard_normal(
        (rows, dimension)
    )


KINDS = {
    "gaussian": lambda rng: rng.standard_normal((1000, 20)),
    "clustered": clustered,
    "grid with many exact ties": lambda rng: np.stack(np.meshgrid(*[np.arange(9)] * 3), -1).reshape(-1, 3),
    "lots of duplicates": lambda rng: rng.standard_normal((60, 5))[rng.integers(0, 60, 900)],
    "few bits": lambda rng: rng.integers(0, 2, (800, 16)),
    "one number": lambda rng: rng.integers(0, 400, (600, 1)),
    "far from the origin": lambda rng: 100 + 1e-3 * rng.standard_normal((700, 40)),
    "lengths from tiny to huge": lambda rng: (
        rng.standard_normal((700, 12)) * 10.0 ** rng.integers(-12, 12, 700)[:, None]
    ),
    "all too small for float32 products": lambda rng: 1e-25 * rng.standard_normal((300, 6)),
}


@pytest.fixture(params=KINDS)
def points(request):
    rng = np.random.default_rng(len(request.param))
    x = np.float32(KINDS[request.param](rng))
    return x, rng.permutation(5 * len(x))[: len(x)] - len(x)


def same(found, expected):
    assert found.ids.tolist() == expected[0]
    assert found.radii.tolist() == expected[1]
    assert found.final_radius == expected[2]


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_number_of_shards_picks_as_the_plain_greedy_does(points, shards):
    x, ids = points
    found = k_center(x, 150, ids, shards=shards, threads=1)
    same(found, plain_greedy(x, ids, 150, first=int(found.ids[0])))


def test_order_of_rows_blocks_threads_and_pruning_change_nothing(points):
    x, ids = points
    expected = k_center(x, 120, ids, threads=1)
    order = np.random.default_rng(0).permutation(len(x))
    for options in ({"block_rows": 7}, {"threads": 3, "shards": 2}, {"prune": False, "block_rows": 333}):
        found = k_center(x[order], 120, ids[order], **options)
        same(found, (expected.ids.tolist(), expected.radii.tolist(), expected.final_radius))


def test_regrouping_at_every_occasion_changes_nothing(points, monkeypatch):
    x, ids = points
    expected = k_center(x, 120, ids, threads=1, prune=False)
    for name, value in {"FIRST_PIVOTS": 3, "ROWS_A_PIVOT": 2, "FEWEST_COMING": 1, "GROUP_BELOW": 2.0}.items():
        monkeypatch.setattr(kcenter_shard, name, value)
    for name in ("FIRST_WANTED", "LEAST_WANTED", "MOST_WANTED"):
        monkeypatch.setattr(kcenter, name, 10)
    regrouped = []
    reorder = Shard._reorder
    monkeypatch.setattr(Shard, "_reorder", lambda shard, order: (regrouped.append(shard), reorder(shard, order)))
    found = k_center(x, 120, ids, shards=2, threads=1, block_rows=64)
    same(found, (expected.ids.tolist(), expected.radii.tolist(), expected.final_radius))
    assert len(regrouped) > 2


@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_a_handful_of_candidates_gives_the_same_picks_in_more_passes(points, candidates, monkeypatch):
    x, ids = points
    expected = k_center(x, 60, ids, threads=1)
    for name in ("FIRST_WANTED", "LEAST_WANTED", "MOST_WANTED"):
        monkeypatch.setattr(kcenter, name, candidates)
    found = k_center(x, 60, ids, shards=2, threads=1)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.passes > expected.passes


@pytest.mark.parametrize("among_the_rows", [True, False])
def test_initial_centers_are_kept_away_from_and_never_picked(points, among_the_rows):
    x, ids = points
    rng = np.random.default_rng(1)
    if among_the_rows:
        rows = rng.choice(len(x), 40, replace=False)
        initial = (ids[rows], x[rows])
    else:
        initial = (np.arange(40) + 10**9, x[rng.integers(0, len(x), 40)] + np.float32(x.std()))
    found = k_center(x, 50, ids, initial=initial, shards=2, threads=1)
    same(found, plain_greedy(x, ids, 50, initial=initial))
    assert not np.isin(found.ids, initial[0]).any()


def test_a_worked_example():
    """From (0,0): (4,3) is 5 away. Then (4,0) and (0,3) are both 3 away, of a centre each: the smaller id comes first,
    then the other, which it did not come nearer to. (2,1) is sqrt(5) from (0,0) and (4,0), and is last."""
    ids, x = [10, 40, 30, 20, 50], [[0, 0], [4, 0], [0, 3], [4, 3], [2, 1]]
    found = k_center(x, 4, ids, initial=([10], [[0, 0]]))
    assert found.ids.tolist() == [20, 30, 40, 50]
    assert found.radii.tolist() == [5.0, 3.0, 3.0, np.sqrt(5)]
    assert found.final_radius == 0.0
    two = k_center(x, 2, ids, initial=([10], [[0, 0]]))
    assert (two.final_radius, two.lower_bound, two.ratio, two.message) == (3.0, 1.5, 2.0, None)


def test_it_ends_where_all_rows_are_covered_and_says_so():
    x = np.random.default_rng(0).standard_normal((64, 3))[np.arange(1000) % 64]
    found = k_center(x, 100, shards=3, threads=1)
    assert len(found.ids) == 64 == len(np.unique(found.ids % 64))
    assert found.final_radius == 0.0
    assert found.message == "100 centres asked, only 64 distinct vectors; 64 are given."
    assert len(k_center(x[:10], 100, threads=1).ids) == 10
    rest = k_center(x, 100, initial=(np.arange(60), x[:60]), threads=1)
    assert (
        rest.message == "100 centres asked, only 4 distinct vectors beside the 60 centres it started from; 4 are given."
    )


def test_the_first_center_is_drawn_by_seed_and_id_alone():
    x = np.random.default_rng(0).standard_normal((500, 4))
    ids = np.arange(500) * 7
    order = np.random.default_rng(1).permutation(500)
    drawn = {seed: int(k_center(x, 1, ids, seed=seed, threads=1).ids[0]) for seed in range(8)}
    again = {seed: int(k_center(x[order], 1, ids[order], seed=seed, shards=7, threads=1).ids[0]) for seed in range(8)}
    assert drawn == again
    assert len(set(drawn.values())) > 1


def test_cosine_sees_directions_and_euclidean_lengths_too():
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((600, 8)))
    longer = x * np.float32(2.0) ** rng.integers(0, 4, 600)[:, None]  # by powers of two, which no rounding sees
    by_direction = k_center(x, 40, metric="cosine", threads=1)
    assert k_center(longer, 40, metric="cosine", threads=1).ids.tolist() == by_direction.ids.tolist()
    assert k_center(longer, 40, threads=1).ids.tolist() != k_center(x, 40, threads=1).ids.tolist()
    units = np.float32(x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True))
    assert k_center(units, 40, threads=1).ids.tolist() == by_direction.ids.tolist()
    assert by_direction.radii[1] <= 2


def test_bounds_spare_products_where_rows_are_clustered_and_leave_the_array_alone():
    x = np.float32(clustered(np.random.default_rng(0), rows=16_000, clusters=120, spread=0.02))
    before = x.copy()
    pruned, whole = k_center(x, 700, threads=1), k_center(x, 700, threads=1, prune=False)
    assert whole.products == whole.possible == pruned.possible
    assert pruned.products < 0.4 * whole.products
    assert pruned.ids.tolist() == whole.ids.tolist()
    assert (x == before).all()


def test_rows_near_their_center_are_left_out_before_there_are_groups():
    x = np.float32(clustered(np.random.default_rng(0), rows=3000, clusters=110, spread=0.001))
    found = k_center(x, 100, threads=1)
    assert found.products < 0.9 * found.possible


def test_precision_that_the_host_has_lowered_is_not_ours_and_is_given_back():
    torch = pytest.importorskip("torch")
    x = np.float32(np.random.default_rng(0).standard_normal((3000, 256)))
    expected = k_center(x, 200, threads=1).ids.tolist()
    torch.set_float32_matmul_precision("medium")
    try:
        assert k_center(x, 200, threads=1).ids.tolist() == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_of_the_host_are_left_as_they_were():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    k_center(np.eye(40), 10, threads=3)
    assert torch.get_num_threads() == before


def test_a_shard_built_again_from_all_centers_answers_as_the_first_did(points):
    x, ids = points
    picked = Picked()
    k = min(300, len(np.unique(x, axis=0)) - 1)
    shard = Shard(ids, x, threads=1)
    kcenter.seed_first(picked, [shard.first(0)])
    kcenter.greedy(lambda batch, wanted: [shard.step(batch, wanted)], k, picked)
    again = Shard(ids, x, threads=1, block_rows=50)
    again.add(picked.since(0))
    mine, theirs = shard.farthest(20), again.farthest(20)
    assert mine.ids.tolist() == theirs.ids.tolist()
    assert mine.squares.tolist() == theirs.squares.tolist()
    assert mine.bar == theirs.bar
    with pytest.raises(StageError, match=f"knows {k} centres and was given those from 1"):
        again.add(picked.between(1, 2))


@pytest.mark.parametrize("dimension", [1, 3, 64, 768])
def test_fast_distances_are_within_the_bound_that_exactness_rests_on(dimension):
    rng = np.random.default_rng(dimension)
    x = np.float32(rng.standard_normal((300, dimension)) * 10.0 ** rng.integers(-3, 4, 300)[:, None])
    x[150:] = x[:150] * np.float32(1 + 1e-6)  # distances that all but vanish
    squares = squared_lengths(x).astype(np.float32)
    fast = (squares[:, None] + squares) - 2 * (x @ x.T)
    exact = ((x[:, None].astype(np.float64) - x.astype(np.float64)) ** 2).sum(2)
    lengths = np.sqrt(squares.astype(np.float64))
    bound = (lengths[:, None] + lengths) ** 2 * error_factor(dimension)
    off = np.abs(fast - exact)
    assert (off <= bound).all()
    assert off.max() > 0
    assert (exact > 2 * bound).mean() > 0.5  # a bound so wide that it rules nothing out would hold too


def test_exact_squares_have_the_same_bits_in_any_batch():
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((50, 131)))
    rows, columns = rng.integers(0, 50, 9000), rng.integers(0, 50, 9000)
    together = exact_squares(x, rows, x, columns)
    alone = [exact_squares(x, rows[i : i + 1], x, columns[i : i + 1])[0] for i in range(0, 9000, 37)]
    assert together[::37].tolist() == alone
    assert together.tolist() == exact_squares(x, columns, x, rows).tolist()
    reference = ((x[rows].astype(np.float64) - x[columns].astype(np.float64)) ** 2).sum(1)
    assert together.tolist() == reference.tolist()


BAD = {
    r"2 of 4 vectors hold NaN .* \(ids \[8, 9\]": ([7, 8, 9, 10], [[0, 1], [np.nan, 0], [0, np.inf], [1, 1]], {}),
    r"longer than 1e\+18 \(ids \[1\]": ([1, 2], [[1e19, 0], [0, 0]], {}),
    r"1 vectors are zero \(ids \[2\]": ([1, 2], [[1, 0], [0, 0]], {"metric": "cosine"}),
    "occur more than once": ([1, 1], [[1, 0], [0, 0]], {}),
    "expected one id a row": ([1, 2, 3], [[1, 0], [0, 0]], {}),
    "metric 'manhattan' is unknown. Known: cosine, euclidean": ([1], [[1, 0]], {"metric": "manhattan"}),
    r"other vectors than the rows with their ids \[2\]": ([1, 2], [[1, 0], [0, 0]], {"initial": ([2], [[0, 1]])}),
    r"`initial` must be a pair \(ids, vectors\)": ([1, 2], [[1, 0], [0, 0]], {"initial": [0, 1]}),
    r"pair \(ids, vectors\) of the centres .* a matrix": ([1, 2], [[1, 0], [0, 0]], {"initial": ([1], [1, 0])}),
    "no vectors to choose from": ([], np.empty((0, 2)), {}),
    "0 centres asked": ([1], [[1, 0]], {"k": 0}),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_covered_is_refused_with_its_ids(message):
    ids, vectors, options = BAD[message]
    with pytest.raises(DataError, match=message):
        k_center(np.float32(vectors), options.pop("k", 1), np.array(ids, np.int64), threads=1, **options)


def by_coresets(x, ids, k, parts, count, order=None):
    order = np.arange(len(x)) if order is None else order
    x, ids, options = x[order], ids[order], {"threads": 1}
    number = part_of(ids, parts, seed=0)
    found = [core_set(ids[number == p], x[number == p], count, 0, Picked(), options) for p in range(parts)]
    centers, picked = cover_union(found, k, 0, Picked(), options)
    batch = picked.since(0)
    radius = max(farthest_row(ids[number == p], x[number == p], batch, options) for p in range(parts))
    return with_radius(centers, radius)


def test_core_sets_measure_their_radius_on_the_whole_pool_and_say_that_they_are_no_greedy():
    rng = np.random.default_rng(3)
    x, ids = np.float32(clustered(rng, spread=0.5)), rng.permutation(1500)
    found = by_coresets(x, ids, 50, parts=5, count=20)
    exact = k_center(x, 50, ids, threads=1)
    chosen = x[np.argsort(ids)[found.ids]].astype(np.float64)
    reached = np.min([((x - center) ** 2).sum(1) for center in chosen], axis=0)
    assert not found.exact and exact.exact
    assert found.final_radius == np.sqrt(reached.max())
    assert exact.final_radius / 2 <= found.final_radius < 1.5 * exact.final_radius
    assert found.lower_bound <= found.final_radius
    assert found.lower_bound <= exact.final_radius  # it bounds every choice of 50 rows from below, that one too
    again = by_coresets(x, ids, 50, parts=5, count=20, order=rng.permutation(1500))
    assert again.ids.tolist() == found.ids.tolist()


def test_core_sets_of_one_part_are_the_greedy():
    rng = np.random.default_rng(4)
    x, ids = np.float32(rng.standard_normal((400, 6))), rng.permutation(400)
    found = by_coresets(x, ids, 30, parts=1, count=30)
    assert sorted(found.ids.tolist()) == sorted(k_center(x, 30, ids, threads=1).ids.tolist())


def test_a_forecast_grows_with_rows_and_centers_and_shrinks_with_shards():
    speed = measure_speed(16, threads=1)
    assert min(speed.product_s, speed.pass_s, speed.row_s) > 0
    speed = Speed(1e-8, 1e-2, 1e-8)
    once = forecast_seconds(10**6, 10_000, 1, speed)
    assert 100 < once < 110  # 10^10 products of 10 ns, and 52 passes
    assert forecast_seconds(10**6, 10_000, 4, speed) < 0.3 * once
    assert forecast_bytes(10**6, 384, 10_000, 1) == 10**6 * (384 * 4 + 56) + 10_000 * 384 * 4


def test_a_batch_without_centers_changes_nothing():
    shard = Shard([3, 1, 2], np.float32([[0, 0], [2, 0], [0, 5]]), threads=1)
    shard.add(NewCenters(0, np.array([3]), np.float32([[0, 0]]), np.array([np.inf])))
    empty = Picked().since(0)
    found = shard.step(NewCenters(1, empty.ids, empty.vectors, empty.radii), 5)
    assert found.ids.tolist() == [2, 1]
    assert found.bar is None
