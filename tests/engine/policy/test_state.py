"""States rebuilt from a log against those that an independent simulation kept at every step."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import PolicySettings
from raysift.policy.state import Episode, State, masked, replay, stage_inputs, summaries

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252

STEPS, BATCH = 9, 5


def live(pool, steps=STEPS, every=1, seed=0):
    """A training that keeps its whole state at each step, in plain Python, and its log."""
    rng = np.random.default_rng(seed)
    counts, start, now = dict.fromkeys(pool.ids.tolist(), 0), -2.5, -2.5
    states, picks, known = [], [], [start]
    latest = start
    for step in range(1, steps + 1):
        states.append(([(latest - start) / 2.5, step / steps], list(counts.values())))
        batch = np.sort(rng.choice(pool.ids[:12], BATCH, replace=False))
        for row in batch.tolist():
            counts[row] += 1
        now += float(rng.random())
        measured = step % every == 0 or step == steps
        latest = now if measured else latest
        picks.append(batch)
        known.append(now if measured else None)
    return states, log_of(picks, known)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_states_rebuilt_from_the_log_are_those_that_were_lived(every):
    pool = tiny_pool(30)
    states, episode = live(pool, every=every)
    rebuilt = list(replay(episode, pool))
    assert len(rebuilt) == episode.steps == STEPS
    for (stage, counts), (state, picked), batch in zip(states, rebuilt, episode.picks, strict=True):
        np.testing.assert_allclose(state.stage, np.array(stage, np.float32), rtol=1e-6)
        assert state.counts.tolist() == counts
        np.testing.assert_allclose(state.availability(), np.log(1 + np.array(counts)), rtol=1e-6)
        assert pool.ids[picked].tolist() == batch.tolist()
    assert max(rebuilt[-1][0].counts) > 1


def test_a_state_is_its_own_and_stays_as_it_was():
    pool = tiny_pool(30)
    states = [state for state, _ in replay(live(pool)[1], pool)]
    assert [int(state.counts.sum()) for state in states] == [BATCH * step for step in range(STEPS)]


def test_stage_is_the_relative_gain_and_the_share_of_steps():
    assert stage_inputs(-2.0, -1.5, 3, 12).tolist() == [0.25, 0.25]
    assert stage_inputs(-2.0, -2.5, 12, 12).tolist() == [-0.25, 1.0]
    assert stage_inputs(0.0, 0.5, 1, 2).tolist() == [0.5, 0.5]


def test_what_the_critic_sees():
    pool = tiny_pool(30)
    episode = random_log(pool, STEPS, BATCH, among=10)
    found = summaries(episode, pool, ("stage", "difficulty", "semantic", "availability"))
    assert found.shape == (STEPS, 2 + 2 + pool.features.shape[1])
    seen = [row for batch in episode.picks[:4] for row in np.searchsorted(pool.ids, batch)]
    counts = np.log1p(np.bincount(seen, minlength=30))
    (state, _), *_ = list(replay(episode, pool))[4:5]
    np.testing.assert_allclose(found[4, :2], state.stage)
    np.testing.assert_allclose(found[4, 2:4], [counts.mean(), counts.std()], rtol=1e-5)
    np.testing.assert_allclose(found[4, 4:], pool.features[seen].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert (found[0, 2:] == 0).all()


def test_a_log_survives_its_table_and_gaps_are_not_numbers():
    _, episode = live(tiny_pool(30), every=4)
    gaps = np.isnan(episode.performance)
    assert gaps.tolist() == [False, True, True, True, False, True, True, True, False, False]
    assert not np.isnan(episode.known_performance).any()
    assert episode.known_performance[3] == episode.performance[0]
    again = Episode(type(episode.table).from_pylist(episode.table.to_pylist(), schema=episode.table.schema))
    assert again.table.equals(episode.table)


def test_logs_of_another_pool_and_logs_without_a_start_are_refused():
    pool = tiny_pool(30)
    other = PolicyPool(pool.ids[5:], pool.features[5:], pool.classes[5:])
    with pytest.raises(DataError, match="not among its 25 rows"):
        list(replay(live(pool)[1], other))
    with pytest.raises(DataError, match="lacks the performance at its start"):
        next(replay(log_of([pool.ids[:2]], [None, -1.0]), pool))


def test_masks_leave_blocks_at_zero_and_the_pool_as_it_is():
    pool = tiny_pool(30)
    assert masked(pool, PolicySettings().blocks) is pool.features
    without = masked(pool, ("stage", "semantic"))
    assert (without[:, :4] == 0).all() and np.array_equal(without[:, 4:], pool.features[:, 4:])
    assert (masked(pool, ("stage",)) == 0).all() and np.abs(pool.features).min() > 0


def test_availability_of_rows_never_picked_is_zero():
    assert State(np.zeros(2, np.float32), np.zeros(3, np.int32)).availability().tolist() == [0, 0, 0]
