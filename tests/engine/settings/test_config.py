"""Settings: where they come from, which wins, and how a wrong one is explained."""

from pathlib import Path

import pytest
import yaml

from raysift.config import load_config, make_config, replayed
from raysift.errors import ConfigError
from raysift.fingerprint import fingerprint
from raysift.methods import METHODS
from raysift.settings import training
from raysift.settings.training import settle_training


def recipe(name, **changes):
    """A recipe as settings have it: with the number type of this machine in place of `auto`."""
    return settle_training(training.recipe(name, **changes), lambda: False)


def test_options_win_over_the_file_and_dotted_keys_over_both(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("budget: 1%\nseed: 3\nlongest: {unit: chars}\nresources: {workers: 4}\n")
    config = load_config(str(file), {"budget": "2%", "seed": None}, ["longest.unit=tokens", "resources.batch_rows=8"])
    assert (config.budget, config.seed) == ("2%", 3)
    assert config.longest.unit == "tokens"
    assert (config.resources.workers, config.resources.batch_rows) == (4, 8)


def test_a_saved_config_replays_to_the_same_settings(tmp_path):
    config = make_config({"method": "longest", "pool": ["a.jsonl"], "train": {"recipe": "less", "epochs": 2}})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(file)) == config


@pytest.mark.parametrize("model", ["nano", "./llama"])
@pytest.mark.parametrize(
    ("method", "preset"), [(name, preset) for name in METHODS for preset in (None, *METHODS[name].presets)]
)
def test_a_run_s_file_holds_what_its_method_reads_and_replays_it(tmp_path, method, preset, model):
    given = {"method": method, "model": model, "seed": 5, "budget": "3%", "pool": ["a.jsonl"], "evaluate": {"seed": 2}}
    config = make_config(given | ({method: {"preset": preset}} if preset else {}))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(replayed(config), sort_keys=False))
    again = load_config(str(file))
    assert again == config and fingerprint(again) == fingerprint(config)
    values = yaml.safe_load(file.read_text())
    assert values.keys() & METHODS.keys() == {method}
    assert values[method].keys() == METHODS[method].Config.model_fields.keys(), "presets are laid over whole sections"
    assert {"method", "pool", "budget", "seed", "evaluate"} <= set(list(values)[:7]), "what differs stands first"
    assert next(iter(values["evaluate"])) == "seed"


def test_a_recipe_stands_for_its_settings_and_own_keys_win():
    config = make_config({"train": {"recipe": "less", "epochs": 2}})
    assert config.train.epochs == 2
    assert config.train.lora_rank == recipe("less").lora_rank
    with pytest.raises(ConfigError, match="unknown recipe 'lesss'; known: less"):
        make_config({"train": {"recipe": "lesss"}})


def test_a_method_s_own_training_changes_only_what_is_named():
    nano = make_config({"rose": {"warmup": {"epochs": 2}}}).rose.warmup
    assert nano == recipe("nano-warmup", epochs=2)
    real = make_config({"model": "./llama", "train": {"recipe": "less"}, "rose": {"warmup": {"epochs": 1}}})
    assert real.rose.warmup == recipe("less", epochs=1)
    assert make_config({"mods": {"seed_train": {"recipe": "mods", "epochs": 1}}}).mods.seed_train.epochs == 1


@pytest.mark.parametrize(
    ("method", "preset", "name"),
    [("less", "official", "less"), ("rose", "official", "rose-official"), ("mods", "official", "mods-official")],
)
def test_a_preset_brings_its_recipe_on_a_real_model(method, preset, name):
    given = {"method": method, "model": "./llama", method: {"preset": preset}}
    assert make_config(given).train == recipe(name)
    assert make_config(given | {"train": {"epochs": 1}}).train == recipe(name, epochs=1)
    assert make_config(given | {"train": {"recipe": "raise"}}).train == recipe("raise")
    assert make_config(given | {"model": "nano"}).train == recipe("nano")
    assert make_config(given | {"method": "uniform"}).train != recipe(name)


def complete(tmp_path, values):
    """A run.yaml as a run leaves it."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(replayed(make_config(values))))
    return str(file)


OWN = {
    "rose": {"targets": {"columns": {"chosen": "better"}}, "warmup_share": 0.2},
    "less": {"match": {"subtasks": "mean"}},
    "mods": {"seed_share": 0.3, "scorer": {"kind": "judge", "model": "./judge"}},
    "raise": {"policy": {"classes": 3}, "steps_per_state": 7},
}


@pytest.mark.parametrize("model", ["nano", "./llama"])
@pytest.mark.parametrize(
    ("method", "old", "new"),
    [(name, old, new) for name in OWN for old in (None, *METHODS[name].presets) for new in METHODS[name].presets],
)
def test_a_preset_on_the_command_line_wins_over_a_complete_file_and_leaves_the_rest(tmp_path, method, old, new, model):
    own = OWN[method] if method != "mods" else {"seed_share": 0.3}
    values = {"method": method, "model": model, "seed": 5, "budget": "3%"}
    file = complete(tmp_path, values | {method: OWN[method] | ({"preset": old} if old else {})})
    assert load_config(file, {}, [f"{method}.preset={new}"]) == make_config(values | {method: own | {"preset": new}})


def test_settings_of_a_file_that_names_few_stand_beside_a_preset_on_the_command_line(tmp_path):
    own = {"scorer": {"model": "./my-reward"}, "necessity_newline": True, "generation": {"max_new_tokens": 64}}
    values = {"method": "mods", "model": "./llama", "train": {"learning_rate": 1e-5}}
    file = tmp_path / "mine.yaml"
    for section in ({"mods": own}, {}):
        file.write_text(yaml.safe_dump(values | section))
        wanted = make_config(values | {"mods": section.get("mods", {}) | {"preset": "paper"}})
        for name in ("paper", "'paper'", '"paper"'):
            assert load_config(str(file), {}, [f"mods.preset={name}"]) == wanted
    assert wanted.train == recipe("mods", learning_rate=1e-5)
    assert load_config(str(file), {}, ["train.recipe=less"]).train == recipe("less", learning_rate=1e-5)


def test_what_another_preset_decides_stays_where_a_complete_file_has_something_else(tmp_path):
    file = complete(tmp_path, {"method": "mods", "mods": {"preset": "official", "generation": {"beams": 7}}})
    mods = load_config(file, {}, ["mods.preset=paper"]).mods
    assert (mods.necessity_newline, mods.second_coverage, mods.generation.beams) == (False, True, 7)


def test_a_setting_deep_in_a_section_leaves_the_rest_of_the_preset(tmp_path):
    embedding = getattr(make_config({"raise": {"preset": "paper"}}), "raise").features.embedding
    given = {"raise": {"preset": "paper", "features": {"embedding": {"max_tokens": 64}}}}
    assert getattr(make_config(given), "raise").features.embedding == embedding.model_copy(update={"max_tokens": 64})


def test_a_recipe_on_the_command_line_wins_over_a_complete_file_but_for_its_seed(tmp_path):
    values = {"method": "rose", "model": "./llama", "seed": 5, "rose": {"warmup": {"recipe": "nano"}}}
    file = complete(tmp_path, values | {"train": {"recipe": "mods", "epochs": 9}})
    config = load_config(file, {}, ["train.epochs=2", "train.recipe=less", "rose.warmup.recipe=raise"])
    assert config.train == recipe("less", epochs=2, seed=5)
    assert config.rose.warmup == recipe("raise", seed=5)


def test_a_preset_of_another_method_leaves_the_training_of_this_one(tmp_path):
    file = complete(tmp_path, {"method": "less", "model": "./llama", "train": {"recipe": "mods"}})
    assert load_config(file, {}, ["rose.preset=paper"]).train == recipe("mods")


def test_settings_of_a_section_that_a_complete_file_leaves_empty_are_taken(tmp_path):
    file = complete(tmp_path, {"model": "./llama", "train": {"recipe": "less"}})
    config = load_config(file, {}, ["rose.warmup.epochs=1", "win_rate.judge.model=./judge"])
    assert config.rose.warmup == recipe("less", epochs=1)
    assert config.win_rate.judge.model == "./judge"


def test_trainings_and_draws_follow_the_seed_of_the_run_unless_they_have_their_own():
    config = make_config({"seed": 5, "less": {"warmup": {"seed": 3}}})
    assert (config.train.seed, config.rose.warmup.seed, config.less.warmup.seed) == (5, 5, 3)
    assert config.mods.generation.seed == config.evaluate.seed == 5
    assert make_config({"seed": 5, "evaluate": {"seed": 3}}).evaluate.seed == 3
    assert make_config({"seed": 5, "win_rate": {"generation": {"top_p": 0.5}}}).win_rate.generation.seed == 5
    assert config.rose.projection.seed == 0, "runs of any seed share a store"


def test_a_bar_of_the_other_form_and_a_scorer_of_another_kind_take_the_place_of_a_preset_s(tmp_path):
    assert make_config({"mods": {"preset": "paper", "alpha": {"quantile": 0.5}}}).mods.alpha.quantile == 0.5
    judged = make_config({"mods": {"preset": "paper", "scorer": {"kind": "judge", "model": "./llama"}}}).mods.scorer
    assert (judged.kind, judged.model, judged.template) == ("judge", "./llama", "auto")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(make_config({}).model_dump(mode="json")))
    assert load_config(str(file), {}, ["mods.beta.value=-100"]).mods.beta.value == -100
    with pytest.raises(ConfigError, match="a value or a quantile, not both"):
        make_config({"mods": {"alpha": {"quantile": 0.5, "value": 1}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bugdet": "5%"}, r"'bugdet' is no setting\. Did you mean 'budget'\?"),
        ({"longest": {"unit": "words"}}, r"'longest\.unit' is 'words': input should be 'tokens' or 'chars'"),
        (
            {"rose": {"projection": {"kind": "signs", "dimension": 1000}}},
            r"'rose\.projection' is a dict of length 2: dimension is 1000; signs need a power of two",
        ),
        (
            {"rose": {"match": {"subtasks": "round_robin", "target_weights": [1, 2]}}},
            r"'rose\.match' is a dict of length 2: target_weights weigh scores",
        ),
        ({"less": {"match": {"target_weights": [1, 0]}}}, r"'less\.match\.target_weights\.1' is 0: .* greater than 0"),
        ({"resources": {"wrokers": 2}}, r"'resources\.wrokers' is no setting\. Did you mean 'workers'\?"),
        ({"resources": {"workers": 0}}, r"'resources\.workers' is 0: input should be greater than or equal to 1"),
        ({"seed": "abc"}, r"'seed' is 'abc': input should be a valid integer"),
        ({"seed": 2**32}, r"^config: 'seed' is 4294967296: input should be less than 4294967296\.$"),
        ({"seed": 2**64}, r"^config: 'seed' is 18446744073709551616: input should be less than 4294967296\.$"),
        ({"seed": -1}, r"^config: 'seed' is -1: input should be greater than or equal to 0\.$"),
        ({"budget": "lots"}, "budget: 'lots' is none of"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_a_message_repeats_no_text_of_rows():
    row = {"messages": [{"role": "user", "content": "my secret"}]}
    for values in ({"pool": [row]}, {"pool": [[row]]}, {"target": [row]}, {"model": row}, {"seed": "my secret" * 50}):
        with pytest.raises(ConfigError, match=r"is a (dict|list|str) of length \d+: input should be") as refused:
            make_config(values)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("model", ["nano", "nano:foundation", "nanotron/SmolLM-8B", "nano_models/llama-8b", "nano-gpt"])
def test_only_the_shipped_models_are_trained_by_the_nano_recipe(model):
    config = make_config({"method": "less", "model": model, "less": {"preset": "official"}})
    shipped = model.partition(":")[0] == "nano"
    assert config.train == recipe("nano" if shipped else "less")
    assert (config.less.warmup == recipe("nano-warmup")) is shipped


def test_files_that_are_no_config_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        load_config(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("override", ["budget", "=3", ""])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(None, {}, [override])


@pytest.mark.parametrize(
    ("asked", "device"),
    [
        ({}, "cpu"),
        ({"gpus_per_worker": 0.5}, "auto"),
        ({"device": "cuda"}, "cuda"),
        ({"device": "spread", "gpus_per_worker": 2}, "spread"),
        ({"device": "cpu", "gpus_per_worker": 1}, "cpu"),
    ],
)
def test_a_worker_without_a_granted_gpu_computes_on_the_cpu(asked, device):
    """Ray shows all GPUs of the machine to a worker that asks for none."""
    assert make_config({"resources": asked}).resources.placed_on == device


def test_a_store_is_the_same_folder_wherever_the_settings_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config({"resources": {"store": "stores/a"}})
    assert config.resources.store == str(tmp_path / "stores/a")
    monkeypatch.chdir("/")
    assert make_config(config.model_dump(mode="json")).resources.store == config.resources.store
    for kept in ("s3://bucket/store?region=x", None):
        assert make_config({"resources": {"store": kept}}).resources.store == kept


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, []), ("a", ["a"]), (Path("a"), ["a"]), ([Path("a"), "s3://b/c"], ["a", "s3://b/c"]), (("a",), ["a"])],
)
def test_runs_to_reuse_are_none_one_or_several_by_name_or_path(given, names):
    assert make_config({"reuse": given}).reuse == names
    with pytest.raises(ConfigError, match="'reuse' is 5"):
        make_config({"reuse": 5})
