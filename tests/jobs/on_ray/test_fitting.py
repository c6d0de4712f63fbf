"""A stage gets what the cluster has; a worker killed for its memory is counted, told, and answered by smaller settings."""

from types import SimpleNamespace

import pytest

from raysift.config import make_config
from raysift.errors import StageError
from raysift.jobs.cluster import machines
from raysift.jobs.on_ray import fitting
from raysift.jobs.on_ray.fitting import fitted, killed_for_memory, longest_row, with_room
from raysift.jobs.runs.run import Run, StageResult
from raysift.pool.longest import LONGEST
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.memory import GIB, Need

NEED = Need(GIB, process=0, activations=2**20, longest=200)


class Killed(Exception):
    """As Ray's: the reason stands in the text of a cause."""


def killed():
    error = RuntimeError("ray.data failed")
    error.__cause__ = Killed(
        "Worker exit type: NODE_OUT_OF_MEMORY. Task was killed due to the node running low on memory."
    )
    return error


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A run whose notes are kept, on a cluster of one machine with 4 cores and 20 GiB."""
    here = Cluster((Machine(4.0, 0.0, 20 * GIB),), 4.0)
    monkeypatch.setattr(fitting, "ray", SimpleNamespace(is_initialized=lambda: True))
    for module in (fitting, machines):
        monkeypatch.setattr(module, "read_cluster", lambda resources=None: here)
    run, said = Run(tmp_path / "run"), []
    run.claim()
    monkeypatch.setattr(run.console, "note", said.append)
    return run, said


def config(**resources):
    return make_config({"method": "uniform", "resources": resources})


def real(**resources):
    return make_config({"method": "uniform", "model": "some/model", "resources": resources})


def test_a_kill_for_memory_halves_the_passes_and_then_the_stage_goes_on(notes):
    run, said = notes
    tried = []

    def work(own):
        tried.append(own.resources.tokens_per_pass)
        if len(tried) < 3:
            raise killed()
        return "done"

    assert with_room(run, "gradients", config(), NEED, work, "gradients") == "done"
    assert tried == [1024, 512, 256]
    assert len(said) == 2 and "(kill 2)" in said[1] and "resources.tokens_per_pass=256" in said[1]
    assert [e for e in run._events if '"killed"' in e and '"for_memory": 2' in e]


def test_what_does_not_fit_at_all_ends_in_one_sentence_with_what_to_do(notes):
    run, _ = notes
    tried = []

    def work(own):
        tried.append((own.resources.workers, own.resources.tokens_per_pass))
        raise killed()

    with pytest.raises(
        StageError, match=r"gradients: 5 times workers were killed .* one worker and 128 tokens in a pass"
    ):
        with_room(run, "gradients", config(workers=2), Need(GIB, process=0, activations=2**20), work, "gradients")
    assert tried == [(2, 1024), (2, 512), (2, 256), (2, 128), (1, 128)]


def test_other_errors_are_not_tried_again(notes):
    tried = []

    def work(own):
        tried.append(own)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        with_room(notes[0], "gradients", config(), NEED, work, "gradients")
    assert len(tried) == 1 and not killed_for_memory(ValueError("broken"))


def test_what_is_set_stays_and_the_rest_is_filled_in(notes):
    found = fitting.fit_cluster(config().resources, NEED)
    own = fitted(config().resources, found)
    assert (own.workers, own.threads, own.cpus_per_worker, own.tokens_per_pass) == (1, 4, 4.0, 1024)
    assert own.memory == pytest.approx(2 * GIB, rel=0.01)
    asked = config(workers=2, threads=1, cpus_per_worker=0.5, tokens_per_pass=99, worker_gib=0).resources
    own = fitted(asked, fitting.fit_cluster(asked, NEED))
    assert (own.workers, own.threads, own.cpus_per_worker, own.tokens_per_pass, own.memory) == (2, 1, 0.5, 99, None)


@pytest.fixture
def on_gpus(notes, monkeypatch):
    """The same run, on two machines with 64 cores, 200 GiB and 4 GPUs of 40 GiB each."""
    here = Cluster((Machine(64.0, 4.0, 200 * GIB),) * 2, 128.0, 8.0)
    for module in (fitting, machines):
        monkeypatch.setattr(module, "read_cluster", lambda resources=None: here)
    monkeypatch.setattr(fitting, "card_bytes", lambda gpus: 40 * GIB)
    return notes


def test_for_unknown_models_resources_stay_as_they_are(notes):
    own = with_room(notes[0], "gradients", config(), None, lambda own: own.resources, "gradients")
    assert own.asked == config().resources and (own.workers, own.tokens_per_pass, own.memory) == (None, None, None)


def test_every_gpu_has_a_worker_whose_pass_fits_on_it(on_gpus):
    """The host keeps the weights until they are moved; the pass is as long as the GPU allows."""
    large = Need(15 * GIB, process=GIB, activations=16 * 2**20, longest=200)
    own = with_room(on_gpus[0], "gradients", real(), large, lambda own: own.resources, "gradients")
    assert (own.workers, own.gpus_per_worker, own.placed_on, own.tokens_per_pass) == (8, 1.0, "auto", 1024)
    assert own.memory == 16 * GIB
    quarter = with_room(on_gpus[0], "score", real(score={"gpus": 0.25}), NEED, lambda own: own.resources, "score")
    assert (quarter.workers, quarter.gpus_per_worker, quarter.tokens_per_pass) == (32, 0.25, 4096)


def test_a_full_gpu_is_answered_by_shorter_passes(on_gpus):
    run, said = on_gpus
    tried = []

    def work(own):
        tried.append((own.resources.workers, own.resources.tokens_per_pass))
        if len(tried) < 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return "done"

    assert with_room(run, "train", real(), NEED, work, "train") == "done"
    assert tried == [(8, 4096), (8, 2048), (8, 1024)] and "resources.tokens_per_pass=1024" in said[1]


def test_more_workers_than_there_is_work_for_are_not_planned(notes):
    """One training of RAISE has every core of the machine, also where memory has room for two."""
    run, _ = notes
    assert fitted(config().resources, fitting.fit_cluster(config().resources, NEED, 1)).cpus == 4.0
    named = with_room(run, "learn", config(cpus_per_worker=1), NEED, lambda own: own.resources, "gradients", most=2)
    assert (named.workers, named.threads) == (2, 1)


def test_what_does_not_fit_is_told_part_by_part(notes):
    run, said = notes
    need = Need(30 * GIB, process=GIB, activations=2**20, logits=2**21)
    with_room(run, "train", config(), need, lambda own: own, "gradients")
    assert "is expected to take 31.4 GiB (30.0 weights, 1.0 process, 0.2 logits, 0.1 activations)" in said[0]


@pytest.mark.parametrize(
    ("resources", "error", "said"),
    [
        (
            {"gpus_per_worker": 1},
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "on its GPU with 4096",
        ),
        ({"gpus_per_worker": 1}, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "on its GPU with 4096"),
        ({"tokens_per_pass": 100}, killed(), r"with 100 tokens in a pass. Set resources\.tokens_per_pass=50"),
    ],
)
def test_where_nothing_is_planned_a_full_memory_is_one_sentence_too(on_gpus, resources, error, said):
    def work(own):
        raise error

    with pytest.raises(StageError, match=f"learn: a worker ran out of memory.*{said}"):
        with_room(on_gpus[0], "learn", config(**resources), None, work, "gradients")


def test_the_longest_row_is_that_of_the_run_s_own_pool(notes, tmp_path):
    run, _ = notes
    train = config().train
    ingest = run.stage("ingest", {}, {}, lambda _: StageResult(values={LONGEST: 700}))
    assert longest_row(run, ingest, train) == 700
    run.stage("lengths", {"template": train.template}, {}, lambda _: StageResult(values={LONGEST: 130}))
    assert longest_row(run, ingest, train) == 130
    assert longest_row(run, ingest, train.model_copy(update={"template": "tulu"})) == 700
    other = Run(tmp_path / "other")
    assert longest_row(other, ingest, train) is None
    other.stage("ingest", {"of": "another pool"}, {}, lambda _: StageResult(values={LONGEST: 5}))
    assert longest_row(other, ingest, train) is None, "a stage of another run has rows of another pool"
