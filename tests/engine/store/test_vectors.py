"""Stored vectors: scale never shows, rows without direction stay out, signs come back as they were."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.settings.gradients import ProjectionSettings
from raysift.store.vectors import VectorForm, dimension_of, unit_rows


def test_scale_of_a_row_never_shows_in_the_store_and_tiny_gradients_survive_half_precision() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    units, norms = unit_rows(vectors)
    scaled, small = unit_rows(vectors * np.float32(2.0**-40))
    assert units.dtype == np.float16 and np.array_equal(units, scaled)
    assert np.allclose(small, norms * 2.0**-40)
    assert np.allclose(np.linalg.norm(units.astype(np.float64), axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_rows_without_direction_do_not_enter_the_store(bad: float) -> None:
    vectors = np.ones((3, 4), np.float32)
    vectors[1] = bad
    with pytest.raises(DataError, match="1 of 3 row vectors are zero or not finite, first at 1"):
        unit_rows(vectors)
    for signs in (False, True):
        with pytest.raises(DataError, match="no direction"):
            VectorForm(8, signs).pack(np.zeros((1, 8), np.float32))


@pytest.mark.parametrize("signs", [False, True])
def test_stored_rows_come_back(signs: bool) -> None:
    form, vectors = VectorForm(1000 if not signs else 1024, signs), np.random.default_rng(1)
    rows = vectors.standard_normal((7, form.dimension)).astype(np.float32)
    stored = form.pack(rows)
    assert stored.dtype == form.dtype and stored.shape == (7, form.items) and stored.nbytes == 7 * form.bytes
    assert dimension_of(stored) == form.dimension
    if signs:
        assert np.array_equal(np.unpackbits(stored, axis=1), rows > 0)
    else:
        assert np.allclose(stored, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-4)
    assert np.array_equal(form.pack(rows * np.float32(2.0**-60)), stored)


def test_a_dimension_alone_counts_numbers_and_the_usual_rows_take_the_same_bytes_of_either_kind() -> None:
    assert ProjectionSettings(dimension=500).kind == "sketch"
    assert ProjectionSettings(kind="signs", dimension=1024).kind == "signs"
    usual, sketch = ProjectionSettings(), ProjectionSettings(kind="sketch")
    assert usual.kind == "signs"
    sizes = [VectorForm.of(settings, settings.dimension).bytes for settings in (usual, sketch)]
    assert sizes == [16384, 16384]
    assert ProjectionSettings(**usual.model_dump()) == usual


@pytest.mark.parametrize("kind", ["signs", "sketch", "none"])
def test_vectors_packed_on_their_device_are_those_packed_on_the_host(kind: str) -> None:
    import torch

    from raysift.store.packing import PackedProjection
    from raysift.store.projection import ParameterLayout, Projection

    layout = ParameterLayout(("a", "b"), ((8, 9), (7, 8)))
    settings = ProjectionSettings.model_validate({"kind": kind} | ({} if kind == "none" else {"dimension": 64}))
    projection = Projection(settings, layout)
    form = VectorForm.of(settings, projection.width)
    packed, draw = PackedProjection(projection, form), torch.Generator().manual_seed(0)
    sums = torch.zeros(5, packed.width)
    for index, size in enumerate(layout.sizes):
        packed.add(sums, index, torch.randn(5, size, generator=draw) * 1e-6)
    found = packed.finish(sums.clone()).numpy()
    expected = form.pack(projection.finish(sums).numpy())
    assert found.dtype == form.dtype and found.shape == expected.shape == (5, form.items)
    if kind == "signs":
        assert np.array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1.1e-3)  # one unit in half precision's last place
