"""The fused vector: its order, its scales, and a fit that is the same when it is written, read and applied in parts."""

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.fingerprint import file_fingerprint
from raysift.policy.features import (
    difficulty_block,
    fit_features,
    input_names,
    load_fitted,
    save_fitted,
    transform,
)
from raysift.policy.settings import FeatureSettings
from raysift.storage import open_location

SETTINGS = FeatureSettings(semantic_dimensions=5)


def measured(rows=400, width=16, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 300, (2, rows))
    logprobs = -lengths[1] * rng.uniform(0.1, 4, (2, rows))
    vectors = (rng.standard_normal((rows, width)) * 0.8 ** np.arange(width) + 1).astype(np.float32)
    return difficulty_block(*lengths, *logprobs, settings=SETTINGS), vectors


def test_there_are_39_inputs_in_the_order_of_the_paper():
    names = input_names(32)
    assert len(names) == 39
    assert names[2:6] == ["prompt_length", "answer_length", "logprob_given", "logprob_alone"]
    assert names[6:38] == [f"semantic_{number}" for number in range(1, 33)]


def test_log_probabilities_are_per_token_or_summed_and_lengths_are_logs():
    raw = ([9, 0], [4, 1], [-8.0, -3.0], [-10.0, -5.0])
    mean = difficulty_block(*raw, settings=FeatureSettings(logprob="mean"))
    total = difficulty_block(*raw, settings=FeatureSettings(logprob="sum"))
    np.testing.assert_allclose(mean, [[np.log(10), np.log(5), -2, -2.5], [0, np.log(2), -3, -5]])
    np.testing.assert_allclose(total[:, 2:], [[-8, -10], [-3, -5]])
    with pytest.raises(DataError, match="1 of 2 rows have no finite difficulty"):
        difficulty_block([1, 1], [1, 1], [np.nan, 1], [1, 1], settings=SETTINGS)


def test_over_the_fit_difficulty_has_deviation_1_and_components_have_mean_variance_1():
    difficulty, vectors = measured()
    fitted = fit_features(difficulty, vectors, SETTINGS, 3, 0)
    features, classes = transform(fitted, difficulty, vectors)
    assert features.dtype == np.float32 and features.shape == (400, 9)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features[:, :4].std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(np.square(features[:, 4:].std(axis=0)).mean(), 1, atol=1e-5)
    assert (np.diff(features[:, 4:].std(axis=0)) <= 1e-6).all()  # larger components stay larger
    assert sorted(set(classes.tolist())) == [0, 1, 2] and classes.dtype == np.int32
    np.testing.assert_allclose(features[:, 2], (difficulty[:, 2] - difficulty[:, 2].mean()) / difficulty[:, 2].std())


def test_what_does_not_vary_is_zero_and_not_blown_up():
    difficulty, vectors = measured()
    difficulty[:, 1] = 0.1 + 1e-9 * np.arange(400)
    fitted = fit_features(difficulty, np.tile(vectors[:1], (400, 1)), SETTINGS, 3, 0)
    features, classes = transform(fitted, difficulty, vectors)
    assert fitted.difficulty_std[1] == 1
    assert features.shape == (400, 4) and np.abs(features[:, 1]).max() < 1e-6
    assert set(classes.tolist()) == {0}


def test_parts_and_other_orders_give_the_same_numbers():
    difficulty, vectors = measured(1500)
    fitted = fit_features(difficulty, vectors, SETTINGS, 4, 0)
    whole, order = transform(fitted, difficulty, vectors), np.random.default_rng(1).permutation(1500)
    parts = [transform(fitted, difficulty[part], vectors[part]) for part in np.array_split(order, 7)]
    assert np.array_equal(np.concatenate([part.features for part in parts]), whole.features[order])
    assert np.array_equal(np.concatenate([part.classes for part in parts]), whole.classes[order])


@pytest.mark.parametrize("same", [False, True])
def test_a_fit_is_written_and_read(tmp_path, same):
    difficulty, vectors = measured()
    if same:
        vectors[:] = vectors[0]
    origin = {"logprob": "mean", "embedding": {"model": "abc"}}
    fitted = fit_features(difficulty, vectors, SETTINGS, 3, 0, origin)
    places = [open_location(tmp_path / f"{i}.safetensors") for i in range(4)]
    for place in places:
        save_fitted(place, fitted)
    assert len({file_fingerprint(place) for place in places}) == 1
    found = load_fitted(places[0])
    assert found.origin == origin
    assert found.semantic.total == fitted.semantic.total
    new = measured(seed=5)
    for one, other in zip(transform(found, *new), transform(fitted, *new), strict=True):
        assert np.array_equal(one, other)


def test_files_and_rows_that_do_not_fit_are_refused(tmp_path):
    difficulty, vectors = measured()
    with pytest.raises(DataError, match="expected 4 numbers and one vector for each row"):
        fit_features(difficulty[:9], vectors, SETTINGS, 1, 0)
    fitted = fit_features(difficulty, vectors, SETTINGS, 1, 0)
    with pytest.raises(DataError, match="fitted on vectors of 16 numbers"):
        transform(fitted, difficulty, vectors[:, :8])
    with pytest.raises(DataError, match="there is no"):
        load_fitted(open_location(tmp_path / "none.safetensors"))
    place = open_location(tmp_path / "bad.safetensors")
    save_fitted(place, fitted)
    content = place.read_bytes()
    place.write(content[: len(content) // 2])
    with pytest.raises(DataError, match="is damaged"):
        load_fitted(place)
    from safetensors.numpy import save

    place.write(save({"a": vectors}))
    with pytest.raises(DataError, match="is of format None"):
        load_fitted(place)
