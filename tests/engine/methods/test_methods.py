"""The yardsticks, and what every selector keeps to."""

import pkgutil
from inspect import signature
from keyword import iskeyword

import numpy as np
import pyarrow as pa
import pytest

import raysift
from raysift.draws import uniform_of
from raysift.errors import ConfigError
from raysift.jobs.commands.cli import app
from raysift.methods import METHODS, find_method
from raysift.methods.longest import Longest, LongestConfig
from raysift.methods.uniform import Uniform


def test_every_method_has_a_command_a_python_function_and_a_summary():
    summaries = {command.name: command.help for command in app.registered_commands}
    for name, method in METHODS.items():
        assert method.name == name
        assert summaries[name] == method.summary
        function = getattr(raysift, name + "_" * iskeyword(name))
        assert function.__doc__.startswith(method.summary) and "budget" in signature(function).parameters


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"'best' is unknown\. Known: coverage, less, longest, mods, quality, raise, rds, rose, uniform",
    ):
        find_method("best")


def test_uniform_depends_on_seed_and_id_only():
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    scores = uniform_of(ids, 7)
    order = np.random.default_rng(1).permutation(1000)
    assert (uniform_of(ids[order], 7) == scores[order]).all()
    assert not (uniform_of(ids, 8) == scores).any()


def test_uniform_is_uniform_even_for_consecutive_ids_and_seeds():
    draws = np.stack([uniform_of(np.arange(20_000), seed) for seed in range(5)])
    assert abs(draws.mean() - 0.5) < 0.005
    histogram = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert histogram.min() > 0.93 * draws.size / 20
    assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.03  # seeds are unrelated


def test_longest_scores_by_the_unit_asked_for():
    rows = pa.table({"id": [1, 2], "n_response_tokens": [3, 2], "n_response_chars": [9, 12]})
    assert Longest(LongestConfig(), 0).score(rows).to_pylist() == [3, 2]
    assert Longest(LongestConfig(unit="chars"), 0).score(rows).to_pylist() == [9, 12]


def test_a_row_of_unknown_length_has_no_score():
    rows = pa.table({"id": [1], "n_response_tokens": pa.array([None], pa.int64()), "n_response_chars": [9]})
    assert Longest(LongestConfig(), 0).score(rows).null_count == 1


def test_score_schema_starts_with_id_and_score():
    assert Uniform.score_schema().names == ["id", "score"]
    assert Longest.score_schema().names[:2] == ["id", "score"]


def test_no_module_hides_a_function_of_the_same_name():
    """`import raysift.x` makes `raysift.x` that module, whatever `__getattr__` offers under the name."""
    modules = {module.name for module in pkgutil.iter_modules(raysift.__path__)}
    assert modules.isdisjoint(raysift.__all__)
