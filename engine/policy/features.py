"""Features of a row that never change: scales, components and classes are fitted on one pool and applied to any.

    stage        performance, progress                                            rebuilt each step, the same for all rows
    difficulty   log1p len(x), log1p len(y), log P(y|x), log P(y)                 mean 0 and deviation 1 over the fit
    semantic     k principal components of the embedding                          one scale for all: mean variance 1 over the fit
    availability log1p of how often the row was picked                            rebuilt each step

39 inputs for k = 32, in the paper's order; the middle two blocks are the features of a row. The paper mentions no scaling,
but raw lengths and log-probabilities are in the hundreds while components are below 1. Components share one scale: with
deviation 1 each, the last ones, which are noise, would count as much as the first (on the nano world, a policy's gradient
over four trainings then finds 6 % target rows in its best 1 %, instead of 62 %).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.kcenter.distances import Vectors
from raysift.policy.classes import Classes, Points, assign, fit_classes
from raysift.policy.semantic import Components, Matrix, fit_components, project
from raysift.policy.settings import FeatureSettings
from raysift.storage import Location
from raysift.tensors import load_tensors, save_tensors

STAGE_NAMES = ("performance", "progress")
DIFFICULTY_NAMES = ("prompt_length", "answer_length", "logprob_given", "logprob_alone")
AVAILABILITY_NAMES = ("picked",)
DIFFICULTY = len(DIFFICULTY_NAMES)

FORMAT = "raysift-policy-features-1"
NO_SPREAD = 1e-6
"""A deviation below this share of the mean is only float32 rounding of the model."""


@dataclass(frozen=True)
class FittedFeatures:
    """Scales, components and classes; `origin` records how log-probabilities and vectors were made."""

    difficulty_mean: Matrix
    difficulty_std: Matrix
    """1 where all rows have the same value."""
    semantic: Components
    centroids: Points
    """In the space of the unscaled components."""
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Number of semantic dimensions, at most `semantic_dimensions`."""
        return len(self.semantic.components)

    @property
    def semantic_scale(self) -> float:
        """The divisor of all components."""
        return float(np.sqrt(self.semantic.variance.mean())) if self.k else 1.0


class Transformed(NamedTuple):
    """Features (rows, 4 + k) and class of each row."""

    features: NDArray[np.float32]
    classes: Classes


def input_names(k: int) -> list[str]:
    """Names of the policy's 2 + 4 + k + 1 inputs, in order."""
    return [*STAGE_NAMES, *DIFFICULTY_NAMES, *(f"semantic_{i + 1}" for i in range(k)), *AVAILABILITY_NAMES]


def difficulty_block(
    prompt_tokens: ArrayLike,
    answer_tokens: ArrayLike,
    logprob_given: ArrayLike,
    logprob_alone: ArrayLike,
    settings: FeatureSettings,
) -> Matrix:
    """The unscaled difficulty features (rows, 4); the log-probabilities passed in are sums over the answer's tokens."""
    answer = np.asarray(answer_tokens, np.float64)
    tokens = answer if settings.logprob == "mean" else np.ones_like(answer)
    lengths = [np.log1p(np.asarray(prompt_tokens, np.float64)), np.log1p(answer)]
    logprobs = [np.asarray(sums, np.float64) / tokens for sums in (logprob_given, logprob_alone)]
    block = np.stack([*lengths, *logprobs], axis=1)
    if not np.isfinite(block).all():
        wrong = int((~np.isfinite(block).all(axis=1)).sum())
        raise DataError(f"features: {wrong} of {len(block)} rows have no finite difficulty; set them aside as failed.")
    return block


def fit_features(
    difficulty: Matrix,
    vectors: Vectors,
    settings: FeatureSettings,
    classes: int,
    seed: int,
    origin: dict[str, Any] | None = None,
) -> FittedFeatures:
    """Fit scales, components and classes on these rows; pass them by rising id, as the fit depends on the order."""
    _check_rows(difficulty, vectors)
    components = fit_components(vectors, settings.semantic_dimensions)
    return fitted_on(difficulty, components, project(components, vectors), classes, seed, origin)


def fitted_on(
    difficulty: Matrix,
    components: Components,
    scores: Matrix,
    classes: int,
    seed: int,
    origin: dict[str, Any] | None = None,
) -> FittedFeatures:
    """The fit on rows with these difficulties and scores on the components, both by rising id."""
    mean, std = difficulty.mean(axis=0), difficulty.std(axis=0)
    flat = std <= NO_SPREAD * np.maximum(1.0, np.abs(mean))
    return FittedFeatures(
        difficulty_mean=mean,
        difficulty_std=np.where(flat, 1.0, std),
        semantic=components,
        centroids=fit_classes(scores.astype(np.float32), classes, seed),
        origin=dict(origin or {}),
    )


def transform(fitted: FittedFeatures, difficulty: Matrix, vectors: Vectors) -> Transformed:
    """Features and classes of any rows; each row's result is independent of the other rows."""
    _check_rows(difficulty, vectors)
    scores = project(fitted.semantic, vectors)
    scaled = (difficulty - fitted.difficulty_mean) / fitted.difficulty_std
    features = np.concatenate([scaled, scores / fitted.semantic_scale], axis=1).astype(np.float32)
    return Transformed(features, assign(scores.astype(np.float32), fitted.centroids))


def save_fitted(place: Location, fitted: FittedFeatures) -> None:
    """Write one safetensors file atomically; the same fit gives the same bytes."""
    metadata = {
        "format": FORMAT,
        "inputs": json.dumps(input_names(fitted.k)),
        "semantic_dimensions": str(fitted.k),
        "classes": str(len(fitted.centroids)),
        "total_variance": repr(fitted.semantic.total),
        "origin": json.dumps(fitted.origin, sort_keys=True),
    }
    save_tensors(place, _tensors(fitted), metadata)


def load_fitted(place: Location) -> FittedFeatures:
    """Read what `save_fitted` wrote."""
    if not place.exists():
        raise DataError(f"features: there is no {place}. The features stage of a run leaves it, as fitted.safetensors.")
    tensors, metadata = load_tensors(place, "features")
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"features: {place} is of format {metadata.get('format')!r}, expected {FORMAT!r}. "
            "Give the fitted.safetensors of a run's features."
        )
    return FittedFeatures(
        difficulty_mean=tensors["difficulty_mean"],
        difficulty_std=tensors["difficulty_std"],
        semantic=Components(
            mean=tensors["vector_mean"],
            components=tensors["components"],
            variance=tensors["variance"],
            total=float(metadata["total_variance"]),
        ),
        centroids=tensors["centroids"],
        origin=json.loads(metadata["origin"]),
    )


def _tensors(fitted: FittedFeatures) -> dict[str, NDArray[Any]]:
    return {
        "difficulty_mean": fitted.difficulty_mean,
        "difficulty_std": fitted.difficulty_std,
        "vector_mean": fitted.semantic.mean,
        "components": fitted.semantic.components,
        "variance": fitted.semantic.variance,
        "centroids": fitted.centroids,
    }


def _check_rows(difficulty: Matrix, vectors: Vectors) -> None:
    if difficulty.ndim != 2 or difficulty.shape[1] != DIFFICULTY or len(difficulty) != len(vectors):
        raise DataError(
            f"features: difficulty of shape {difficulty.shape} and {len(vectors)} vectors; expected {DIFFICULTY} numbers "
            "and one vector for each row."
        )
