"""What the settings of scoring and embedding promise."""

import pyarrow as pa
import pytest
from pydantic import ValidationError

from raysift.scoring.columns import IFD_SCHEMA, JUDGE_SCHEMA, REWARD_SCHEMA, SCORE_COLUMN
from raysift.scoring.settings import EmbeddingSettings, QualitySettings, RewardSettings, Threshold


def test_a_model_that_was_not_named_fits_the_kind():
    assert QualitySettings().scorer == "nano:reward"
    assert QualitySettings(kind="judge").scorer == QualitySettings(kind="ifd").scorer == "nano"
    assert QualitySettings(kind="judge", model="some/model").scorer == "some/model"


def test_quality_settings_hold_those_of_a_reward_model():
    assert isinstance(QualitySettings(template="pair", input_join="newline", trailing_newline=True), RewardSettings)


def test_each_kind_names_one_of_its_columns():
    schemas = {"reward": REWARD_SCHEMA, "judge": JUDGE_SCHEMA, "ifd": IFD_SCHEMA}
    for kind, column in SCORE_COLUMN.items():
        assert schemas[kind].field(column).type == pa.float64()


@pytest.mark.parametrize(
    ("given", "threshold"),
    [
        (0.5, Threshold(value=0.5)),
        (-1, Threshold(value=-1)),
        ({"quantile": 0.7}, Threshold(quantile=0.7)),
        ({}, Threshold()),
    ],
)
def test_a_bare_number_is_the_bar_itself(given, threshold):
    assert Threshold.model_validate(given) == threshold


@pytest.mark.parametrize("given", [True, "high", float("inf"), {"quantile": 70}])
def test_what_is_no_threshold_is_refused(given):
    with pytest.raises(ValidationError):
        Threshold.model_validate(given)


def test_settings_of_mods_can_be_written_down():
    mods = EmbeddingSettings(
        model="bert-base-uncased", text="first_paragraph", pooling="cls", max_tokens=96, normalise=False
    )
    assert EmbeddingSettings.model_validate(mods.model_dump()) == mods


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "judge", "template": "pair"}, "template would have no effect with kind=judge"),
        ({"kind": "judge", "label": "good"}, "label would have no effect with kind=judge"),
        ({"kind": "ifd", "judge": {"high": 9}}, "judge would have no effect with kind=ifd"),
        ({"judge": {"min_mass": 0.1}}, "judge would have no effect with kind=reward"),
        ({"ifd": {"without_prompt": "bos"}}, "ifd would have no effect with kind=reward"),
    ],
)
def test_settings_of_another_kind_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        QualitySettings.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {"template": "pair", "label": 1, "trailing_newline": True},
        {"kind": "judge", "judge": {"high": 9}},
        {"kind": "ifd", "ifd": {"without_prompt": "bos"}},
    ],
)
def test_settings_that_name_every_field_are_read_again(given):
    settings = QualitySettings.model_validate(given)
    assert QualitySettings.model_validate(settings.model_dump(mode="json")) == settings
