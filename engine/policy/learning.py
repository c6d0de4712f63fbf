"""PPO over the trainings of a round.

    p_i(d)   = exp F(d) / sum over d' of class i of exp F(d')         (scores over the temperature of the draws)
    r_t      = prod over classes i, prod over picked d in i, of p_new,i(d) / p_old,i(d);  ratio `mean`: its B-th root
    L_actor  = -E min(r_t Adv_t, clip(r_t, 1-eps, 1+eps) Adv_t) - entropy weight x E H(p)
    L_critic = E (V(S_t) - G_t)^2

Ratios are kept as logarithms and held within +-max_log_ratio. In the first pass new and old are the same policy, so r is
exactly 1 there. States are rebuilt one at a time; the static part of the first layer is computed once a pass, its gradient
gathered over the steps and carried through it at the end: memory does not grow with T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysift.errors import StageError
from raysift.methods.uniform import seed_for, uniform_of
from raysift.policy.network import Acquisition, Critic
from raysift.policy.picking import policy_inputs
from raysift.policy.pool import PolicyPool
from raysift.policy.rewards import baseline_advantages, centred, generalised_advantages, rewards, scaled_by_step
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import STAGE_INPUTS, Episode, Numbers, State, masked, replay, summaries
from raysift.topk import top_k


@dataclass(frozen=True)
class Update:
    """The account of an update: averages over its steps."""

    actor_loss: float
    """Of the last pass."""
    critic_loss: float | None
    first_ratio: float
    """Ratio in the first pass; exactly 1."""
    last_ratio: float
    clipped: float
    """Share of the steps of the last pass whose ratio lay outside the clip range."""
    entropy: float
    """Of the class softmax, mean over classes and steps, as a share of the greatest possible."""


class Learner:
    """The policy that is being learnt: networks and their optimizers."""

    def __init__(self, pool: PolicyPool, policy: PolicySettings, learning: LearningSettings, seed: int) -> None:
        self.pool, self.policy, self.learning, self.seed = pool, policy, learning, seed
        width = pool.features.shape[1]
        self.actor = Acquisition(width, policy.hidden, seed_for(seed, "policy: actor") % 2**31)
        self.critic = Critic(STAGE_INPUTS + 2 + width, policy.critic_hidden, seed_for(seed, "policy: critic") % 2**31)
        decay = learning.weight_decay
        self.actor_steps = torch.optim.AdamW(self.actor.parameters(), lr=learning.actor_rate, weight_decay=decay)
        self.critic_steps = torch.optim.AdamW(self.critic.parameters(), lr=learning.critic_rate, weight_decay=decay)

    def update(self, episodes: Sequence[Episode], earlier: Sequence[Sequence[Numbers]], number: int) -> Update:
        """Learn from the trainings of round `number`; `earlier` holds the gains of those before it."""
        gains = [rewards(episode) for episode in episodes]
        critic_loss: float | None = None
        if self.learning.advantage == "gae":
            views = [torch.from_numpy(summaries(episode, self.pool)) for episode in episodes]
            advantages, returns = self._generalised(gains, views)
            critic_loss = self._teach_critic(views, returns)
            advantages = centred(advantages)
        else:
            window = self.learning.baseline_window
            advantages = baseline_advantages(gains, earlier, self.learning.baseline_rounds, window)
            advantages = scaled_by_step(advantages, window)
        rows = _Rows(self.pool, episodes, self.policy, self.learning.pool_rows, seed_for(self.seed, f"update {number}"))
        old: dict[tuple[int, int], Tensor] = {}
        for _ in range(self.learning.passes):
            found = self._pass(episodes, advantages, rows, old)
        if not all(bool(torch.isfinite(p).all()) for p in self.actor.parameters()):
            raise StageError(
                f"learn: the policy's weights are no longer numbers after round {number}. "
                f"Lower learning.actor_rate ({self.learning.actor_rate:g})."
            )
        return Update(critic_loss=critic_loss, first_ratio=self._first_ratio, **found)

    # --- actor -------------------------------------------------------------------------------------------------------

    def _pass(
        self,
        episodes: Sequence[Episode],
        advantages: Sequence[Numbers],
        rows: _Rows,
        old: dict[tuple[int, int], Tensor],
    ) -> dict[str, float]:
        """One update of the actor over all steps of all trainings."""
        first, steps = not old, sum(len(found) for found in advantages)
        self.actor_steps.zero_grad()
        static = self.actor.static_part(rows.features)
        leaf = static.detach().requires_grad_()
        totals = np.zeros(4)
        for which, episode in enumerate(episodes):
            for step, (state, picked) in enumerate(replay(episode, self.pool)):
                log_p, entropy = self._log_probabilities(leaf, rows, state, picked)
                before = old.setdefault((which, step), log_p.detach())
                ratio = batch_ratio(log_p, before, self.learning)
                advantage = float(advantages[which][step])
                loss = actor_loss(ratio, advantage, self.learning.clip) - self.learning.entropy * entropy
                (loss / steps).backward()  # type: ignore[no-untyped-call]
                outside = abs(float(ratio.detach()) - 1) > self.learning.clip
                totals += [float(loss.detach()), float(ratio.detach()), outside, float(entropy.detach())]
        static.backward(leaf.grad)  # type: ignore[no-untyped-call]
        self.actor_steps.step()
        means = dict(zip(("actor_loss", "last_ratio", "clipped", "entropy"), (totals / steps).tolist(), strict=True))
        if first:
            self._first_ratio = means["last_ratio"]
        return means

    def _log_probabilities(
        self, static: Tensor, rows: _Rows, state: State, picked: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Of each picked row within its class, and the entropy of the classes as a share of the greatest possible."""
        stage, availability = policy_inputs(state, self.policy)
        scores = self.actor.scores(static, stage, availability[rows.positions]) / self.policy.temperature
        if self.policy.max_repeats is not None:
            full = torch.from_numpy(state.counts >= self.policy.max_repeats)[rows.positions]
            scores = scores.masked_fill(full, -torch.inf)
        places = rows.places_of(picked)
        parts, entropies = [], []
        for number, (members, log_weight) in enumerate(rows.standing):
            mine = places[rows.classes[places] == number]
            if not len(mine):
                continue
            inside = scores[members]
            log_sum = torch.logsumexp(inside, 0)
            parts.append(scores[mine] - log_sum - log_weight)
            entropies.append(_entropy_share(inside - log_sum))
        return torch.cat(parts), torch.stack(entropies).mean()

    # --- critic ------------------------------------------------------------------------------------------------------

    def _generalised(self, gains: Sequence[Numbers], views: Sequence[Tensor]) -> tuple[list[Numbers], list[Numbers]]:
        found = []
        for one, view in zip(gains, views, strict=True):
            with torch.no_grad():
                values = self.critic(view).numpy().astype(np.float64)
            found.append(generalised_advantages(one, values, self.learning.gamma, self.learning.lam))
        return [advantages for advantages, _ in found], [returns for _, returns in found]

    def _teach_critic(self, views: Sequence[Tensor], returns: Sequence[Numbers]) -> float:
        states, wanted = torch.cat(list(views)), torch.from_numpy(np.concatenate(list(returns))).float()
        for _ in range(self.learning.passes):
            self.critic_steps.zero_grad()
            loss = torch.nn.functional.mse_loss(self.critic(states), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            self.critic_steps.step()
        return float(loss.detach())


def batch_ratio(log_p: Tensor, old: Tensor, learning: LearningSettings) -> Tensor:
    """How much likelier the batch is under the new policy than under the old."""
    log_ratio = (log_p - old).sum()
    if learning.ratio == "mean":
        log_ratio = log_ratio / len(log_p)
    return log_ratio.clamp(-learning.max_log_ratio, learning.max_log_ratio).exp()


def actor_loss(ratio: Tensor, advantage: float, clip: float) -> Tensor:
    """PPO's clipped loss of one step."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _entropy_share(log_p: Tensor) -> Tensor:
    """Rows at -inf are no part of the class."""
    inside = log_p[torch.isfinite(log_p)]
    return -(inside.exp() * inside).sum() / max(1e-9, float(np.log(max(2, len(inside)))))


class _Rows:
    """The rows that stand for the pool in one update: all, or a draw; and all that were picked."""

    def __init__(
        self, pool: PolicyPool, episodes: Sequence[Episode], policy: PolicySettings, most: int, seed: int
    ) -> None:
        count = len(pool.ids)
        drawn = np.arange(count)
        if count > most:
            ids, _ = top_k(pool.ids, uniform_of(pool.ids, seed), most)
            drawn = np.sort(np.searchsorted(pool.ids, ids))
        picked = [np.searchsorted(pool.ids, np.concatenate(episode.picks)) for episode in episodes]
        every = np.unique(np.concatenate([drawn, *picked]))
        self.positions = torch.from_numpy(every)
        self.features = torch.from_numpy(np.ascontiguousarray(masked(pool, policy.blocks)[every]))
        self.classes = pool.classes[every]
        self._every = every
        stands = np.isin(every, drawn)
        self.standing: list[tuple[Tensor, float]] = []
        for number, size in enumerate(np.bincount(pool.classes)):
            members = np.flatnonzero(stands & (self.classes == number))
            if not len(members):  # a small class of which nothing was drawn: its picked rows stand for it
                members = np.flatnonzero(self.classes == number)
            self.standing.append((torch.from_numpy(members), float(np.log(max(1, size) / max(1, len(members))))))

    def places_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the pool lie among these."""
        places: NDArray[np.int64] = np.searchsorted(self._every, positions)
        return places
