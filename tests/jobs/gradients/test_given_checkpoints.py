"""Checkpoints trained elsewhere give what the same checkpoints give as a warm-up; bad ones are named."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.errors import ConfigError, DataError
from raysift.jobs.gradients.given_checkpoints import check_base, find_checkpoints
from raysift.jobs.gradients.stages import checkpoints_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, open_run
from raysift.manifest import Manifest
from raysift.nano.world import generate_pool
from raysift.storage import open_location

from ..conftest import nano_pairs, write_lines  # noqa: TID252

pytestmark = pytest.mark.ray


def own_points(rose_run):
    run = open_run(rose_run)
    return checkpoints_of(run, run.manifest("warmup"), None)


def trainer_folder(rose_run, out, logged=((1, 3e-3), (2, 1e-3), (3, 1e-3)), ends=(1, 3)):
    """The same checkpoints as transformers' Trainer lays them out, but for the optimizer's state."""
    for point, step in zip(own_points(rose_run), ends, strict=True):
        folder = out / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / name).write_bytes((point.adapter / name).read_bytes())
        (folder / "moments.safetensors").write_bytes(point.moments.read_bytes())
        lines = [{"step": at, "learning_rate": rate} for at, rate in logged if at <= step]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*lines, {"step": step, "loss": 1.0}]}))
    return str(out)


def test_a_run_and_its_folder_of_epochs_give_the_runs_own_checkpoints(rose_run):
    own = own_points(rose_run)
    epochs = str(own[0].adapter).removesuffix("/epoch-1/adapter")
    assert find_checkpoints(rose_run) == find_checkpoints(epochs) == own


def test_the_epochs_of_a_fine_tune_are_checkpoints_too(rose_run, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", list(generate_pool(40, 3)))
    train = {"recipe": "nano", "epochs": 2, "max_length": 64}
    run = str(tmp_path / "run")
    raysift.finetune(rows, run=run, train=train, resources={"train": 0})
    assert [point.name for point in find_checkpoints(run)] == ["epoch-1", "epoch-2"]


def test_adapters_of_other_weights_are_refused_and_a_base_of_another_name_is_told(rose_run, tmp_path, capsys):
    adapter = own_points(rose_run)[0].adapter
    record = json.loads((adapter / "adapter_config.json").read_text())
    other, copy = tmp_path / "other" / "foundation", open_location(str(tmp_path / "adapter"))
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"other weights")

    def over(base):
        (copy / "adapter_config.json").write(json.dumps(record | {"base_model_name_or_path": base}))
        check_base([copy], "nano", Console("plain"))
        return capsys.readouterr().err

    assert over(record["base_model_name_or_path"]) == ""
    assert over(None) == ""
    with pytest.raises(DataError, match=r"trained over .*/other/foundation, whose weights are not those of the run's"):
        over(str(other))
    assert over("/gone/foundation") == ""
    assert "name somebody/llama as their base" in over("somebody/llama")


def test_checkpoints_of_transformers_weigh_the_mean_rate_since_the_one_before(rose_run, tmp_path):
    found = find_checkpoints(
        trainer_folder(rose_run, tmp_path / "out", ends=(2, 11), logged=((1, 4.0), (2, 2.0), (11, 1.0)))
    )
    assert [(point.name, point.learning_rate) for point in found] == [("checkpoint-2", 3.0), ("checkpoint-11", 1.0)]


def test_a_selection_over_them_is_that_of_the_training_itself(rose_run, tmp_path):
    source = open_run(rose_run)
    config = source.config()
    rates = [point.learning_rate for point in own_points(rose_run)]
    place = trainer_folder(rose_run, tmp_path / "out", logged=((1, rates[0]), (3, rates[1])))
    rose = config.rose.model_dump(mode="json") | {"warmup_from": place}
    common = {"target": config.target, "budget": config.budget, "resources": {"workers": 1}}
    again = raysift.select("rose", config.pool, run=str(tmp_path / "run"), rose=rose, **common)
    assert again.ids == pq.read_table(f"{rose_run}/selection.parquet")["id"].to_pylist()
    scores = [
        pq.read_table(f"{run}/scores.parquet").sort_by("id").drop_null()["score"].to_numpy()
        for run in (rose_run, tmp_path / "run")
    ]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert not (again.run.opened.folder / "warmup_rows").exists()
    # Another model in the same folder must not be served this one's results.
    assert again.run.opened.manifest("warmup").inputs["model"] == find_model(again.run.opened, config).identity
    assert again.run.opened.manifest("gradients").settings["dtype"] == "fp32"


@pytest.mark.slow
def test_what_transformers_trainer_leaves_is_taken_as_it_is(rose_run, tmp_path):
    import peft
    import transformers

    from raysift.nano import nano_path

    model = transformers.AutoModelForCausalLM.from_pretrained(nano_path("foundation"))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8 + i % 2]} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=2, save_strategy="epoch",
        logging_steps=1, use_cpu=True, report_to=[], learning_rate=1e-3,
    )  # fmt: skip
    transformers.Trainer(tuned, arguments, train_dataset=rows).train()
    points = find_checkpoints(str(tmp_path / "out"))
    assert [point.name for point in points] == ["checkpoint-2", "checkpoint-4"]
    assert [point.moments.name for point in points] == ["optimizer.pt"] * 2
    assert points[0].learning_rate == pytest.approx(1e-3 * (1 + 0.75) / 2, rel=0.2)
    pairs = write_lines(tmp_path / "pairs.jsonl", nano_pairs(4, 0))
    pool = open_run(rose_run).config().pool
    rose = {"warmup_from": str(tmp_path / "out")}
    found = raysift.select("rose", pool, target=[pairs], budget="5", run=str(tmp_path / "run"), rose=rose)
    assert len(found) == 5
    weights = found.run.opened.manifest("influence").values["checkpoint_weights"]
    assert weights == pytest.approx(np.array([p.learning_rate for p in points]) / sum(p.learning_rate for p in points))


def test_what_cannot_be_taken_is_named(rose_run, tmp_path):
    with pytest.raises(DataError, match=r"holds no checkpoint-N or epoch-N with adapter_model.safetensors"):
        find_checkpoints(str(tmp_path))
    with pytest.raises(DataError, match="holds no checkpoint-N"):
        find_checkpoints(str(tmp_path / "nowhere"))
    for name in ("one", "two"):
        trainer_folder(rose_run, tmp_path / "both" / name)
    with pytest.raises(DataError, match=r"checkpoints of several trainings: .*/both/one, .*/both/two. Name one"):
        find_checkpoints(str(tmp_path / "both"))
    place = trainer_folder(rose_run, tmp_path / "out", logged=((1, 1e-3),))
    with pytest.raises(DataError, match=r"no learning rate for the steps 2 to 3. Train with a smaller logging_steps"):
        find_checkpoints(place)
    state = tmp_path / "out" / "checkpoint-3" / "trainer_state.json"
    state.write_text("[]")
    with pytest.raises(DataError, match="no state of transformers' Trainer"):
        find_checkpoints(place)
    state.unlink()
    with pytest.raises(DataError, match=r"neither trainer_state.json nor epoch.json"):
        find_checkpoints(place)


def test_checkpoints_without_weight_are_refused_before_any_gradient(tmp_path):
    def trained(*rates):
        given = [
            {"name": f"epoch-{i}", "adapter": "a", "moments": None, "learning_rate": r} for i, r in enumerate(rates)
        ]
        return Manifest(stage="warmup", fingerprint="", values={"given": given, "source": str(tmp_path)})

    run = Run(str(tmp_path / "run"))
    assert [point.learning_rate for point in checkpoints_of(run, trained(1e-3, 0.0), None)] == [1e-3, 0.0]
    with pytest.raises(ConfigError, match=r"fallen to 0 at epoch-1.*more checkpoints"):
        checkpoints_of(run, trained(1e-3, 0.0), 1)
