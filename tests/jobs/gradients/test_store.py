"""The gradient store: it grows, it continues, it refuses what does not fit, and its reduce does not depend on shards."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.config import make_config, make_selector
from raysift.errors import ConfigError, DataError, StageError, StaleRunError
from raysift.jobs.commands.rescore import rescore
from raysift.jobs.commands.show import show_run
from raysift.jobs.gradients import store as jobs_store
from raysift.jobs.gradients.store import Store, fill, filled_store, ids_of, read_inputs, seal, store_of
from raysift.jobs.gradients.store_match import MATCHES, match, match_segments, merge
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.manifest import Manifest, read_manifest
from raysift.nano.world import generate_pool
from raysift.records import ID, ROWS
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.settings.resources import Resources
from raysift.storage import Location, open_location
from raysift.store.gradient_store import (
    INPUT_CHARS,
    NO_INPUTS,
    Inputs,
    Segment,
    Share,
    StoreIdentity,
    checkpoint_hash,
    open_store,
    read_index,
    read_shard,
    segment_name,
    segments_of,
    shard_table,
    share_missing,
    share_reading,
    write_shard,
)
from raysift.store.vectors import VectorForm

from ..conftest import nano_pairs, write_lines  # noqa: TID252

IDENTITY = StoreIdentity(
    model="m",
    layout="l",
    projection="p8192",
    projection_settings=ProjectionSettings(dimension=8192),
    adam=AdamSettings(),
    template="auto",
    max_length=512,
    dtype="fp32",
)


def segment(name, checkpoints, shards=()):
    return Segment(
        name=name, store=IDENTITY.hash, checkpoints=checkpoints, dimension=4, rows=0, failed=0, shards=tuple(shards)
    )


def shares(found):
    return [(share.checkpoints, share.ids.tolist()) for share in found]


# --- what is missing, what is read -------------------------------------------------------------------------------------


def test_only_missing_rows_and_checkpoints_are_computed():
    ids = np.arange(6)
    assert shares(share_missing(ids, ["a", "b"], [])) == [(("a", "b"), [0, 1, 2, 3, 4, 5])]
    held = [(segment("s1", ("a", "b")), np.array([0, 1, 2, 3]))]
    assert shares(share_missing(ids, ["a", "b"], held)) == [(("a", "b"), [4, 5])]
    assert shares(share_missing(ids[:4], ["a", "b", "c"], held)) == [(("c",), [0, 1, 2, 3])]
    assert shares(share_missing(ids, ["a", "c"], held)) == [(("a",), [4, 5]), (("c",), [0, 1, 2, 3, 4, 5])]
    assert share_missing(ids[:3], ["b"], held) == []


def test_every_row_is_read_once_at_every_checkpoint_though_segments_overlap():
    held = [
        (segment("s1", ("a", "b")), np.array([0, 1, 2, 9])),
        (segment("s2", ("b", "c")), np.array([1, 2, 3])),
        (segment("s3", ("a", "b", "c")), np.array([0, 1, 2, 3])),
    ]
    seen = {}
    for part, share in share_reading(np.arange(4), ["a", "b", "c"], held):
        for name in share.checkpoints:
            for row in share.ids.tolist():
                assert (name, row) not in seen
                seen[name, row] = part.name
    assert len(seen) == 12
    assert seen["b", 1] == "s1"
    assert seen["c", 1] == "s2"
    assert seen["a", 3] == "s3"


def test_a_store_of_another_projection_is_refused_with_both_hashes_and_the_fields(tmp_path):
    place = open_location(tmp_path / "store")
    open_store(place, IDENTITY)
    open_store(place, IDENTITY)
    other = IDENTITY.model_copy(update={"projection": "p512", "projection_settings": ProjectionSettings(dimension=512)})
    with pytest.raises(StaleRunError) as refused:
        open_store(place, other)
    for word in (
        IDENTITY.hash,
        other.hash,
        "projection: 'p8192' -> 'p512'",
        "projection_settings.dimension: 8192 -> 512",
    ):
        assert word in str(refused.value)


# --- shards ------------------------------------------------------------------------------------------------------------


HALVES, SIGNS = VectorForm(64), VectorForm(64, signs=True)


def vectors(rows, checkpoints=2, form=HALVES):
    rng = np.random.default_rng(0)
    return form.pack(rng.standard_normal((rows * checkpoints, form.dimension))).reshape(rows, checkpoints, -1)


def piece(ids, units, names=("a", "b"), form=HALVES):
    zeros = np.zeros(units.shape[:2], np.float32)
    return shard_table(np.asarray(ids), units, zeros, zeros, names, form)


def folder_of(tmp_path, remote):
    return (
        Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "")
        if remote
        else open_location(tmp_path)
    )


@pytest.mark.parametrize(("remote", "form"), [(False, HALVES), (True, HALVES), (False, SIGNS), (True, SIGNS)])
def test_a_shard_gives_back_the_same_bits_and_only_the_checkpoints_asked_for(tmp_path, remote, form):
    units = vectors(3000, form=form)
    place = Location(folder_of(tmp_path, remote).fs, "s.parquet" if remote else str(tmp_path / "s.parquet"))
    pieces = (piece(np.arange(i, min(i + 700, 3000)), units[i : i + 700], form=form) for i in range(0, 3000, 700))
    assert write_shard(place, ("a", "b"), form, pieces) == 3000
    ids, found = zip(*read_shard(place, ["b", "a"]), strict=True)
    assert np.concatenate(ids).tolist() == list(range(3000))
    assert np.concatenate([part[0] for part in found]).tobytes() == units[:, 1].tobytes()
    assert np.concatenate([part[1] for part in found]).tobytes() == units[:, 0].tobytes()
    assert {part[0].dtype for part in found} == {form.dtype}


@pytest.mark.parametrize("form", [VectorForm(1024), VectorForm(16384, signs=True)])
def test_a_row_costs_two_bytes_a_number_or_one_bit_a_sign(tmp_path, form):
    place = open_location(tmp_path / "s.parquet")
    write_shard(place, ("a", "b"), form, [piece(np.arange(2000), vectors(2000, form=form), form=form)])
    assert 1.0 <= place.size() / (2000 * 2 * 2048) < 1.01


# --- the reduce --------------------------------------------------------------------------------------------------------


def write_store(place, rows, shards, names=("a", "b"), name="s1"):
    """A segment of random vectors, its rows dealt out to the shards."""
    units, files = vectors(rows), []
    folder = (place / "segments" / name / "shards").make_folder()
    for number in range(shards):
        own = np.arange(number, rows, shards)
        picked = units[own][:, [("a", "b").index(n) for n in names]]
        write_shard(folder / f"{number}.parquet", names, HALVES, [piece(own, picked, names)])
        files.append(f"shards/{number}.parquet")
    return segment(name, names, files)


def read_matches(files):
    return pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)


def targets(subtasks=3):
    rng = np.random.default_rng(9)
    return {name: rng.standard_normal((subtasks, 64)).astype(np.float32) for name in ("a", "b")}


@pytest.mark.ray
def test_matches_are_the_same_bits_for_any_workers_and_shards_and_equal_the_product(ray_local, tmp_path):
    expected, wanted = None, np.arange(0, 2500, 2)
    for workers, shards in ((1, 1), (2, 2), (7, 5)):
        store = Store(str(tmp_path / f"{workers}"), IDENTITY, {}, 64)
        part = write_store(store.place, 2500, shards)
        plan = share_reading(wanted, ["a", "b"], [(part, np.arange(2500))])
        out = open_location(tmp_path / f"out-{workers}").make_folder()
        resources = Resources(workers=workers, cpus_per_worker=0.5)
        found = read_matches([file for file, _ in match_segments(store, plan[::-1], targets(), out, resources)])
        expected = expected or found
        assert found.equals(expected)
    units, numbers = vectors(2500)[wanted].astype(np.float64), np.array(expected[MATCHES].to_pylist())
    truth = np.stack([units[:, i] @ targets()[name].T for i, name in enumerate("ab")], axis=1)
    np.testing.assert_allclose(numbers, truth, atol=1e-5)


@pytest.mark.ray
def test_checkpoints_that_lie_in_several_segments_are_brought_together_by_id(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr("raysift.jobs.gradients.store_match.MERGED_ROWS", 300)
    store = Store(str(tmp_path / "store"), IDENTITY, {}, 64)
    together = write_store(store.place, 1000, 2)
    apart = [write_store(store.place, 1000, 3, ("b",), "s2"), write_store(store.place, 1000, 2, ("a",), "s3")]
    wanted, resources, found = np.arange(1000), Resources(cpus_per_worker=0.5), []
    for number, parts in enumerate(([together], apart)):
        plan = share_reading(wanted, ["a", "b"], [(part, wanted) for part in parts])
        out = open_location(tmp_path / f"out-{number}").make_folder()
        files = match_segments(store, plan, targets(), out, resources)
        failed = {7: "no"}
        merged = merge(files, ["a", "b"], 3, wanted, failed, out, resources)
        assert len(merged) == 4
        found.append(read_matches(merged))
    assert found[0].equals(found[1])
    assert found[0][ID].to_pylist() == [i for i in range(1000) if i != 7]


# --- a run with a store ------------------------------------------------------------------------------------------------


def open_of(run, place=None, **changes):
    """The parts of a stage call for a run that has targets already."""
    config = run.config(overrides=[f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()])
    settings = make_selector(config).config
    target, warm = run.manifest("targets"), run.manifest("warmup")
    return config, settings, store_of(run, config, settings, warm, target, str(place or run.folder / "store"))


@pytest.mark.ray
def test_a_store_grows_by_rows_and_checkpoints_without_computing_any_again(stored_run, tmp_path, capsys):
    few, rows = stored_run.manifest("warmup_rows"), stored_run.manifest("ingest")
    place = open_location(tmp_path / "store")
    computed = []
    for number, (part, last) in enumerate(((few, 1), (few, None), (rows, None), (rows, None))):
        config, settings, store = open_of(stored_run, place, rose__checkpoints=last)
        run = Run(tmp_path / f"fill-{number}", Console("plain"))
        computed.append(fill(run, config, settings, part, store).values["vectors_computed"])
        told = f"new vectors go to {place}, which is not this run's own store" in capsys.readouterr().err
        assert told == (computed[-1] > 0)
    n_few, n = few.counts["kept"], rows.counts["kept"]
    assert computed == [n_few, n_few, 2 * (n - n_few), 0]
    whole = open_of(stored_run)[2]
    grown, at_once = stored_numbers(store), stored_numbers(whole)
    assert grown.keys() == at_once.keys()
    assert max(np.abs(grown[key] - at_once[key]).max() for key in at_once) < 2e-3  # half precision, other batches


def filled(run, store):
    """The account of a fill that had nothing to do."""
    done = StageResult(values={"store": store.name})
    return run.stage("gradients", {"store": store.identity}, {}, lambda _: done)


def test_a_filled_store_is_found_where_the_vectors_were_put_then_where_the_run_has_its_store(tmp_path):
    run, shared = Run(tmp_path / "a"), tmp_path / "elsewhere"
    with run.replayable({}):
        stored = filled(run, Store(str(shared), IDENTITY, {}, 64))
    open_store(open_location(shared), IDENTITY)
    assert filled_store(run, stored) == str(shared)
    later = Run(tmp_path / "b", reuse=[run.name])
    assert filled_store(later, filled(later, Store("", IDENTITY, {}, 64))) == str(shared)
    shared.rename(tmp_path / "a/store")
    assert filled_store(run, stored) == f"{run.name}/store"


def test_a_store_that_is_gone_is_named_and_one_that_lacks_rows_is_to_be_filled_again(tmp_path):
    run, store = Run(tmp_path / "a"), Store(str(tmp_path / "store"), IDENTITY, {"a": None}, 64)

    def two_rows(folder):
        pq.write_table(pa.table({ID: np.arange(2)}), (folder / "rows.parquet").path)
        return StageResult(files={"rows": ["rows.parquet"]})

    rows = run.stage("ingest", {}, {}, two_rows)
    stored = filled(run, store)
    with pytest.raises(StageError, match=rf"is not in {store.name}\. Put it back.*resources\.store=") as gone:
        match(run, None, rows, rows, stored, store)
    assert "elete" not in str(gone.value)
    open_store(store.place, IDENTITY)
    with pytest.raises(StageError, match=rf"{store.name} no longer holds all 2 rows.*Delete {run.name}/gradients"):
        match(run, None, rows, rows, stored, store)


def test_a_store_that_cannot_be_written_into_says_which_setting_names_another(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file/store"), IDENTITY, {}, 64)
    rows = Manifest(stage="ingest", fingerprint="rows")
    with pytest.raises(StageError, match=r"cannot write into the store .*/file/store: .*resources\.store="):
        fill(Run(tmp_path / "run"), make_config({}), None, rows, store)


def stored_numbers(store):
    found = {}
    for part in segments_of(store.place, store.identity):
        for shard in part.shards:
            for ids, units in read_shard(store.folder(part.name) / shard, part.checkpoints):
                for name, matrix in zip(part.checkpoints, units, strict=True):
                    found |= {(name, i): v.astype(np.float32) for i, v in zip(ids.tolist(), matrix, strict=True)}
    return found


class Broken(jobs_store.GradientVectors):
    def answer(self, rows):
        raise StageError("a row was computed again")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # nothing is left for them to do
def test_a_pass_that_was_cut_off_continues_where_it_stopped(stored_run, tmp_path, monkeypatch):
    few, place = stored_run.manifest("warmup_rows"), open_location(tmp_path / "store")
    config, settings, store = open_of(stored_run, place, rose__checkpoints=1)
    run = Run(tmp_path / "run")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_store, "seal", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(run, config, settings, few, store)
    assert segments_of(place, store.identity) == []
    monkeypatch.setattr(jobs_store, "seal", seal)
    monkeypatch.setattr(jobs_store, "GradientVectors", Broken)
    assert fill(run, config, settings, few, store).counts["kept"] >= few.counts["kept"] - 1
    (part,) = segments_of(place, store.identity)
    left = {
        file.path.removeprefix(store.folder(part.name).path + "/") for file in store.folder(part.name).files("", True)
    }
    assert left == {"index.parquet", "segment.json", *part.shards}


@pytest.mark.ray
def test_rescoring_for_other_targets_leaves_the_rows_gradients_alone(stored_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs_store, "GradientVectors", Broken)
    pairs = write_lines(tmp_path / "style.jsonl", nano_pairs(6, 1, "style"))
    old = stored_run.folder.path
    chosen = raysift.rescore(old, pairs, run=str(tmp_path / "new"), budget="5")
    assert len(chosen) == 5
    manifest = read_manifest(chosen.run.opened.folder / "gradients")
    assert manifest.reused_from == old
    assert len(pq.read_table(chosen.run.opened.folder.path + "/scores.parquet")) == manifest.counts["rows_in"]
    show_run(chosen.run.opened.folder.path, Console("plain"))
    shown = next(line for line in capsys.readouterr().out.splitlines() if "│ gradients" in line)
    assert shown.split("│")[-2].strip() == "–"  # no rate: it was computed by the other run
    same = raysift.rescore(old, stored_run.config().target, run=str(tmp_path / "same"))
    assert same.ids == pq.read_table(f"{old}/selection.parquet")["id"].to_pylist()
    with pytest.raises(StaleRunError, match=r"adam\.form: 'official' -> 'textbook'"):
        raysift.rescore(old, pairs, run=str(tmp_path / "other"), adam={"form": "textbook"})


@pytest.mark.ray
def test_rescoring_counts_tokens_anew_where_the_final_template_is_another(stored_run, tmp_path):
    target, counted = stored_run.config().target, []
    source = stored_run.folder.path
    for name, overrides in (("a", []), ("b", []), ("c", ["train.template=alpaca"])):
        new = str(tmp_path / name)
        rescore(source, target, new, budget="300tok", overrides=overrides)
        source, counted = (
            str(tmp_path / "a"),
            [*counted, read_manifest(open_location(new) / "lengths").reused_from is None],
        )
    assert counted == [True, False, True]


@pytest.mark.ray
def test_rescoring_refuses_settings_that_decided_what_it_reads(stored_run, tmp_path):
    old, new = stored_run.folder.path, tmp_path / "new"
    overrides = ["seed=5", "rose.warmup_share=0.9", "rose.warmup.epochs=7", "pool=other.jsonl", "ingest.max_chars=9"]
    allowed = [
        "output_format=alpaca",
        "rose.match.subtasks=mean",
        "rose.checkpoints=1",
        "train.epochs=2",
        "less.matching=exact",
    ]
    with pytest.raises(StaleRunError) as refused:
        rescore(old, ["x.jsonl"], str(new), overrides=[*overrides, "rose.projection.seed=3", *allowed])
    head, *lines = str(refused.value).splitlines()
    assert head.endswith(f"rescore takes these from {old}; start a new run to change them:")
    assert [line.split(":")[0].strip() for line in lines] == [
        "ingest.max_chars",
        "pool",
        "rose.projection.seed",
        "rose.warmup.epochs",
        "rose.warmup_share",
        "seed",
    ]
    assert "  rose.warmup.epochs: 2 -> 7" in lines
    assert not new.exists()


@pytest.mark.ray
def test_rescoring_needs_a_store(rose_run, stored_run, tmp_path):
    with pytest.raises(ConfigError, match=r"matching=exact\) and kept no gradients.*matching=store"):
        raysift.rescore(rose_run, "x.jsonl")
    with pytest.raises(ConfigError, match="is a run already"):
        raysift.rescore(stored_run.folder.path, "x.jsonl", run=rose_run)
    lost = {"store": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"store .*nowhere is gone"):
        raysift.rescore(stored_run.folder.path, "x.jsonl", resources=lost)


@pytest.mark.ray
def test_rescoring_for_a_target_that_cannot_be_read_leaves_nothing_behind(stored_run, tmp_path):
    empty = write_lines(tmp_path / "empty.jsonl", [{"prompt": "one sided", "chosen": "yes", "rejected": None}])
    for target, message in ((str(tmp_path / "missing.jsonl"), "does not exist"), (empty, "no usable pair")):
        with pytest.raises((ConfigError, DataError), match=rf"targets: .*{message}"):
            raysift.rescore(stored_run.folder.path, target, run=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.ray
@pytest.mark.parametrize("large", [1, 2**40])
def test_a_checkpoint_is_known_by_its_content_not_by_its_name_or_age(rose_run, tmp_path, monkeypatch, large):
    monkeypatch.setattr("raysift.fingerprint.CACHED_BYTES", large)
    monkeypatch.setattr("raysift.fingerprint.BLOCK_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = open_run(rose_run)
    first, second = run.files(run.manifest("warmup"), "epochs")[:2]
    moved = open_location(tmp_path / "moved")
    shutil.copytree(first.path, moved.path, copy_function=shutil.copyfile)
    for file in moved.files(recursive=True):
        os.utime(file.path, ns=(10**18, 10**18))
    (moved / "epoch.json").delete()  # the hashes in it are those of the files
    settings = json.loads((moved / "adapter" / "adapter_config.json").read_text())
    (moved / "adapter" / "adapter_config.json").write(json.dumps(settings | {"base_model_name_or_path": "elsewhere"}))
    hashes = [checkpoint_hash(p / "adapter", p / "moments.safetensors") for p in (first, moved, second)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert checkpoint_hash(first / "adapter", None) != hashes[0]


@pytest.mark.ray
@pytest.mark.slow
def test_equal_runs_on_copied_files_share_the_vectors_of_one_store_and_select_the_same(ray_local, tmp_path):
    found = []
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir()
        pool = write_lines(home / "pool.jsonl", list(generate_pool(24, 0)))
        pairs = write_lines(home / "pairs.jsonl", nano_pairs(4, 0))
        for number, file in enumerate((pool, pairs)):
            os.utime(file, ns=(number, 10**9 * len(found)))
        warmup = {"recipe": "nano", "epochs": 1, "max_length": 128}
        rose = {"matching": "store", "warmup_share": 0.5, "warmup": warmup, "projection": {"dimension": 1024}}
        resources = {"train": 0, "workers": 1, "threads": 1, "store": str(tmp_path / "store")}
        options = {"target": [pairs], "budget": "6", "rose": rose, "resources": resources}
        found.append(raysift.select("rose", pool, run=str(home / "run"), **options))
    one, two = found
    assert one.ids == two.ids
    stages = ("ingest", "warmup", "targets", "gradients", "match", "influence", "choose")
    assert [one.run.opened.manifest(s).fingerprint for s in stages] == [
        two.run.opened.manifest(s).fingerprint for s in stages
    ]
    first, second = (selection.run.opened.manifest("gradients").values for selection in found)
    assert first["vectors_computed"] == 24
    assert second["vectors_computed"] == 0
    assert first["segments"] == second["segments"]


# --- rows that a template shows with their input apart ------------------------------------------------------------------


def told(place, metas):
    """Rows of one and the same conversation, each with its meta."""
    talk = [{"role": "user", "content": "Sort.\n\nb\n\na"}, {"role": "assistant", "content": "a b"}]
    rows = [{ID: i, "source": "s", "messages": talk, "meta": meta} for i, meta in enumerate(metas)]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), place)
    return [open_location(place)]


def test_a_vector_is_held_only_for_rows_that_are_shown_with_the_same_input(tmp_path):
    """Ids tell conversations apart; where the input of one begins, a meta tells."""
    metas = [None, '{"input":"a"}', '{"input":"b\\n\\na"}', '{"input":"other"}', '{"input":7}']
    files = told(tmp_path / "rows.parquet", metas)
    store = Store(open_location(tmp_path), IDENTITY.model_copy(update={"template": "alpaca"}), {}, 1)
    inputs = read_inputs(files, store)
    assert (inputs.ids.tolist(), inputs.chars.tolist()) == ([1, 2], [1, 4])
    assert inputs.of(np.array([2, 9, 0, 1])).tolist() == [4, 0, 0, 1]
    other = Store(store.place, IDENTITY, {}, 1)
    assert read_inputs(files, other) == NO_INPUTS
    assert read_inputs(told(tmp_path / "plain.parquet", [None] * 5), store).of(np.arange(5)).tolist() == [0] * 5

    index = pa.table({ID: np.arange(5), INPUT_CHARS: pa.array([0, 1, 1, 3, 0], pa.int32())})
    ((_, ids),) = ids_of([(segment("s", ("a",)), index)], inputs)
    assert ids.tolist() == [0, 1, 4]
    share = Share(("a",), np.arange(5))
    names = {
        segment_name(store.identity, share, each)
        for each in (NO_INPUTS, inputs, Inputs(inputs.ids[:1], inputs.chars[:1]))
    }
    assert len(names) == 3
    rest = Share(("a",), np.array([0, 3, 4]))
    assert segment_name(store.identity, rest, inputs) == segment_name(store.identity, rest)


def test_an_index_from_before_inputs_were_told_apart_has_none(tmp_path):
    place, part = open_location(tmp_path), segment("s", ("a",))
    folder = (place / "segments" / "s").make_folder()
    pq.write_table(pa.table({ID: [1, 2], "cut": [True, False], "error": [None, "no"]}), (folder / "index.parquet").path)
    assert read_index(place, part)[INPUT_CHARS].to_pylist() == [0, 0]


@pytest.mark.ray
def test_rows_whose_input_is_told_apart_are_computed_beside_those_of_the_same_ids(stored_run, tmp_path):
    """One store for two pools of the same conversations: each has its own vectors, and finds them again."""
    shown = {"rose__warmup__template": "alpaca", "rose__warmup__max_length": 512}
    config, settings, store = open_of(stored_run, open_location(tmp_path / "store"), **shown)
    assert store.identity.template == "alpaca"
    vectors = []
    for number, meta in enumerate([None, '{"input":"b\\n\\na"}', None]):
        run = Run(tmp_path / f"run-{number}")

        def body(folder, meta=meta):
            told((folder / "rows.parquet").path, [meta, None])
            return StageResult(files={"rows": ["rows.parquet"]}, counts={"kept": 2}, rows=2)

        rows = run.stage("pool", {}, {"meta": meta}, body)
        filled = fill(run, config, settings, rows, store)
        vectors.append((filled.values["vectors_computed"], filled.counts["kept"]))
    points = len(store.points)
    assert vectors == [(2 * points, 2), (points, 2), (0, 2)]
    parts = sorted(segments_of(store.place, store.identity), key=lambda part: part.rows)
    assert [part.rows for part in parts] == [1, 2]
    (ids, told_apart), (both, joined) = (
        next(read_shard(store.folder(part.name) / part.shards[0], part.checkpoints)) for part in parts
    )
    assert (ids.tolist(), both.tolist()) == ([0], [0, 1])
    for one, other in zip(told_apart, joined, strict=True):
        apart, first, second = (unit.astype(np.float32) for unit in (one[0], *other))
        assert first @ second > 0.999 and apart @ first < 0.99
