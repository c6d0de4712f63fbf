"""What MoDS decides about each row, from the tables of its stages."""

from dataclasses import replace

import pyarrow as pa
import pytest

from raysift.config import make_config
from raysift.errors import ConfigError, DataError
from raysift.ids import look_up
from raysift.methods.coverage import COVERED, NO_VECTOR, Coverage, CoverageConfig, place_centers
from raysift.methods.mods import (
    AUGMENTED,
    KNOWN,
    POOR,
    SEED,
    UNANSWERED,
    UNSCORED,
    Mods,
    ModsConfig,
    Stages,
    place_rows,
    seed_count,
)
from raysift.settings.budget import parse_budget


def worked_example() -> Stages:
    """Seven rows: 1 fails, 2 is poor, 3 and 4 are seeds, 5 the model knows, 6 it cannot answer, 7 and 8 are needed, 7 is taken."""
    table = lambda name, pairs: pa.table({"id": list(pairs), name: pa.array(list(pairs.values()), pa.float64())})  # noqa: E731
    return Stages(
        quality=table("quality", {1: None, 2: -1.0, 3: 1.0, 4: 2.0, 5: 3.0, 6: 1.5, 7: 1.1, 8: 1.2}),
        good=pa.array([3, 4, 5, 6, 7, 8]).to_numpy(),
        seeds=table("radius", {4: float("inf"), 3: 2.0}),
        necessity=table("necessity", {3: -2.0, 4: 0.0, 5: 0.5, 6: None, 7: -1.0, 8: -3.0}),
        needed=pa.array([3, 7, 8]).to_numpy(),
        augmented=table("radius", {7: 0.25}),
    )


def test_every_row_has_a_fate_and_only_chosen_rows_have_a_place():
    rows = {row["id"]: row for row in place_rows(worked_example()).to_pylist()}
    fates = {number: row["fate"] for number, row in rows.items()}
    assert fates == {
        1: UNSCORED, 2: POOR, 3: SEED, 4: SEED, 5: KNOWN, 6: UNANSWERED, 7: AUGMENTED, 8: COVERED,
    }  # fmt: skip
    assert {number: row["order"] for number, row in rows.items() if row["order"]} == {4: 1, 3: 2, 7: 3}
    assert (rows[7]["radius"], rows[8]["radius"]) == (0.25, None)
    assert (rows[8]["quality"], rows[8]["necessity"], rows[1]["score"]) == (1.2, -3.0, None)


def test_a_row_that_is_seed_and_needed_is_taken_once():
    table = place_rows(worked_example())
    ids, _ = Mods(ModsConfig(), 0).choose(iter([table.slice(0, 3), table.slice(3)]), parse_budget("3"), 8)
    assert ids.tolist() == [4, 3, 7]


def test_without_a_second_half_good_rows_are_seeds_or_covered():
    found = worked_example()
    rows = place_rows(Stages(found.quality, found.good, found.seeds)).to_pylist()
    assert [row["fate"] for row in rows] == [UNSCORED, POOR, SEED, SEED, COVERED, COVERED, COVERED, COVERED]
    assert all(row["necessity"] is None for row in rows)


def test_a_good_row_without_a_vector_is_not_called_covered():
    found = replace(worked_example(), no_vector=pa.array([5, 8]).to_numpy())
    fates = {row["id"]: row["fate"] for row in place_rows(found).to_pylist()}
    assert (fates[5], fates[8]) == (KNOWN, NO_VECTOR)
    seeds_alone = place_rows(Stages(found.quality, found.good, found.seeds, no_vector=found.no_vector)).to_pylist()
    assert [row["fate"] for row in seeds_alone] == [UNSCORED, POOR, SEED, SEED, NO_VECTOR, COVERED, COVERED, NO_VECTOR]


@pytest.mark.parametrize(
    ("scorer", "necessity", "both"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, True)],
)
def test_a_line_break_that_the_scorer_is_to_add_is_added_to_the_models_own_answers_too(scorer, necessity, both):
    config = ModsConfig(scorer={"trailing_newline": scorer}, necessity_newline=necessity)
    assert config.necessity_scorer.trailing_newline is both
    assert config.scorer.trailing_newline is scorer


@pytest.mark.parametrize("tokens", [16, 17])
def test_answers_that_leave_no_room_for_a_prompt_are_refused(tokens):
    with pytest.raises(ConfigError, match=r"max_length=16 .* leaves no room for a prompt"):
        make_config({"mods": {"generation": {"max_length": 16, "max_new_tokens": tokens}}})
    room = make_config({"mods": {"generation": {"max_length": 16, "max_new_tokens": 15}}})
    assert room.mods.generation.max_length == 16


@pytest.mark.parametrize(("share", "total", "seeds"), [(0.5, 1000, 500), (0.5, 5, 2), (0.25, 2, 1), (1.0, 7, 7)])
def test_seeds_are_a_share_of_the_budget_and_at_least_one(share, total, seeds):
    assert seed_count(ModsConfig(seed_share=share), total) == seeds


def test_nothing_in_order_is_an_error():
    table = place_rows(worked_example()).filter(pa.array([True] + [False] * 7))
    with pytest.raises(DataError, match="no row has a place"):
        Mods(ModsConfig(), 0).choose([table], parse_budget("3"), 8)


def test_presets_hold_what_paper_and_code_say():
    real = {"method": "mods", "model": "./llama"}
    runs = [make_config(real | {"mods": {"preset": name}}) for name in ("paper", "official")]
    paper, official = (run.mods for run in runs)
    assert (paper.alpha.value, paper.beta.value) == (0.0, 0.0)
    assert paper.second_coverage and not official.second_coverage
    assert not paper.necessity_newline and official.necessity_newline
    assert [run.train.batch_size for run in runs] == [128, 512]
    assert paper.seed_train is official.seed_train is None, "the model is tuned on the seeds by the final recipe"
    assert (official.embedding.pooling, official.embedding.max_tokens, official.embedding.normalise) == (
        "cls",
        96,
        False,
    )
    decoding = [
        (run.generation.beams, run.generation.max_new_tokens, run.generation.temperature) for run in (paper, official)
    ]
    assert decoding == [(1, 1024, 0.0), (4, 1024, 0.0)]
    assert {run.generation.template for run in (paper, official)} == {"train"}
    assert {run.train.template for run in runs} == {"alpaca"}
    assert make_config(real | {"mods": {"preset": "official", "generation": {"beams": 1}}}).mods.generation.beams == 1
    with pytest.raises(ConfigError, match=r"mods\.generation.*beams=4 with backend=vllm"):
        make_config(real | {"mods": {"preset": "official", "generation": {"backend": "vllm"}}})
    changed = make_config(real | {"mods": {"preset": "paper", "seed_train": {"epochs": 1}}}).mods
    assert (changed.seed_train.epochs, changed.seed_train.batch_size) == (1, 128)


def test_ifd_cannot_judge_the_models_own_answers():
    with pytest.raises(ConfigError, match="ifd"):
        make_config({"mods": {"scorer": {"kind": "ifd"}}})


def test_centers_rank_in_the_order_in_which_they_were_found():
    found = pa.table({"id": [8, 5], "radius": [float("inf"), 1.0]})
    table = place_centers(pa.array([5, 6, 7, 8]).to_numpy(), found, pa.array([7]).to_numpy())
    assert table["order"].to_pylist() == [2, None, None, 1]
    assert table["fate"].to_pylist() == ["center", COVERED, NO_VECTOR, "center"]
    assert table["score"].to_pylist() == [-2.0, None, None, -1.0]
    assert Coverage(CoverageConfig(), 0).choose([table], parse_budget("2"), 4)[0].tolist() == [8, 5]


def test_values_are_looked_up_by_id():
    ids = pa.array([3, 1, 9]).to_numpy()
    assert look_up(ids, pa.array([9, 3]).to_numpy(), pa.chunked_array([[1.0], [2.0]])).to_pylist() == [2.0, None, 1.0]
    assert look_up(ids, ids[:0], pa.array([], pa.float64())).null_count == 3
