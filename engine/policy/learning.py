"""PPO over the trainings of a round.

    p_i(d)   = exp F(d) / sum over d' of class i of exp F(d')         (F divided by the temperature of the draws)
    r_t      = prod over classes i, prod over picked d in i, of p_new,i(d) / p_old,i(d);  ratio `mean`: its B-th root
    L_actor  = -E min(r_t Adv_t, clip(r_t, 1-eps, 1+eps) Adv_t) - entropy weight x E H(p)
               with advantage `credit`, per row: its own ratio and its share of the gain (see credit.py)
    L_critic = E (V(S_t) - G_t)^2

Ratios are kept as logarithms and clamped to +-max_log_ratio. In the first pass the new policy is the old one, so r is exactly
1. States are rebuilt one at a time. The static part of the first layer is computed once per pass; its gradient is summed over
the steps and backpropagated at the end, so memory does not grow with T.

An update uses the newest round alone. Using the last six, each with the ratio to the policy that picked in it, was tried on
the nano world and slowed learning: good picks of an older policy are pulled back to their probability at that time, while
the clip stops the push against bad picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysift.draws import seed_for, uniform_of
from raysift.errors import StageError
from raysift.policy.credit import Evidence, Matrix, credit_features, evidence_of, fit_credit, row_credits
from raysift.policy.network import Acquisition, Critic
from raysift.policy.picking import policy_inputs
from raysift.policy.pool import PolicyPool
from raysift.policy.rewards import (
    centred,
    generalised_advantages,
    rewards,
)
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import STAGE_INPUTS, Episode, Numbers, State, masked, replay, summaries
from raysift.topk import top_k

Credits = Sequence[Any] | Numbers
"""For each step of a training, one advantage, or one per row of the batch."""


@dataclass(frozen=True)
class Update:
    """Statistics of an update, averaged over its steps."""

    actor_loss: float
    """Actor loss in the last pass."""
    critic_loss: float | None
    first_ratio: float
    """Mean ratio in the first pass; exactly 1."""
    last_ratio: float
    clipped: float
    """Share of ratios in the last pass that lay outside the clip range."""
    entropy: float
    """Entropy of the class softmax as a share of its maximum, averaged over classes and steps."""


class Learner:
    """The policy being learned: networks, optimizers, and the evidence of the trainings so far."""

    def __init__(self, pool: PolicyPool, policy: PolicySettings, learning: LearningSettings, seed: int) -> None:
        self.pool, self.policy, self.learning, self.seed = pool, policy, learning, seed
        width = pool.features.shape[1]
        self.actor = Acquisition(width, policy.hidden, seed_for(seed, "policy: actor") % 2**31)
        self.critic = Critic(STAGE_INPUTS + 2 + width, policy.critic_hidden, seed_for(seed, "policy: critic") % 2**31)
        decay = learning.weight_decay
        self.actor_steps = torch.optim.AdamW(self.actor.parameters(), lr=learning.actor_rate, weight_decay=decay)
        self.critic_steps = torch.optim.AdamW(self.critic.parameters(), lr=learning.critic_rate, weight_decay=decay)
        self.evidence: list[list[Evidence]] = []
        """For advantage `credit`: evidence of the trainings, by round."""

    def recall(self, rounds: Sequence[Sequence[Episode]]) -> None:
        """Record the evidence of earlier rounds without learning from them again."""
        for episodes in rounds:
            self._note(episodes)

    def update(self, episodes: Sequence[Episode], number: int) -> Update:
        """Learn from the trainings of round `number`, in which this policy picked."""
        self._note(episodes)
        self._set_rates(number)
        advantages: Sequence[Credits]
        critic_loss: float | None = None
        if self.learning.advantage == "gae":
            views = [torch.from_numpy(summaries(episode, self.pool, self.policy.blocks)) for episode in episodes]
            found, returns = self._generalised([rewards(episode) for episode in episodes], views)
            critic_loss = self._teach_critic(views, returns)
            advantages = centred(found)
        else:
            weights = fit_credit(self.evidence, self.learning.momentum, self.learning.baseline_window)
            features = [self._credit_features(episode) for episode in episodes]
            advantages = row_credits(features, weights, masked(self.pool, self.policy.blocks))
        seed = seed_for(self.seed, f"policy: update {number}")
        rows = _Rows(self.pool, episodes, self.policy, self.learning.pool_rows, seed)
        old: dict[tuple[int, int], Tensor] = {}
        first = last = self._pass(episodes, advantages, rows, old)
        for _ in range(self.learning.passes - 1):
            last = self._pass(episodes, advantages, rows, old)
        if not all(bool(torch.isfinite(weights).all()) for weights in self.actor.parameters()):
            raise StageError(
                f"learn: the policy's weights are no longer numbers after round {number}. "
                f"Lower learning.actor_rate ({self.learning.actor_rate:g})."
            )
        return Update(critic_loss=critic_loss, first_ratio=first["last_ratio"], **last)

    def _set_rates(self, number: int) -> None:
        left = max(1, self.learning.rounds - number + 1)  # a search may have more rounds than its run
        share = left / self.learning.rounds if self.learning.rate_schedule == "linear" else 1.0
        rates = (self.actor_steps, self.learning.actor_rate), (self.critic_steps, self.learning.critic_rate)
        for steps, rate in rates:
            for group in steps.param_groups:
                group["lr"] = rate * share

    def _note(self, episodes: Sequence[Episode]) -> None:
        """Keep the evidence of a round's trainings for later updates."""
        if self.learning.advantage == "credit":
            self.evidence.append([evidence_of(episode, self._credit_features(episode)) for episode in episodes])

    def _credit_features(self, episode: Episode) -> list[Matrix]:
        return credit_features(episode, self.pool, masked(self.pool, self.policy.blocks))

    # --- actor -------------------------------------------------------------------------------------------------------

    def _pass(
        self,
        episodes: Sequence[Episode],
        advantages: Sequence[Credits],
        rows: _Rows,
        old: dict[tuple[int, int], Tensor],
    ) -> dict[str, float]:
        """Update the actor once over all steps of all trainings; the first pass fills `old`."""
        steps = sum(len(found) for found in advantages)
        self.actor_steps.zero_grad()
        static = self.actor.static_part(rows.features)
        leaf = static.detach().requires_grad_()
        totals = np.zeros(4)
        for which, episode in enumerate(episodes):
            for step, (state, picked) in enumerate(replay(episode, self.pool)):
                log_p, entropy = self._log_probabilities(leaf, rows, state, picked)
                before = old.setdefault((which, step), log_p.detach())
                advantage = torch.as_tensor(advantages[which][step], dtype=log_p.dtype)
                ratio = ratio_of(log_p, before, self.learning, by_row=advantage.ndim > 0)
                loss = actor_loss(ratio, advantage, self.learning.clip).mean() - self.learning.entropy * entropy
                (loss / steps).backward()  # type: ignore[no-untyped-call]
                outside = ((ratio.detach() - 1).abs() > self.learning.clip).float().mean()
                totals += [float(found) for found in (loss.detach(), ratio.detach().mean(), outside, entropy.detach())]
        static.backward(leaf.grad)  # type: ignore[no-untyped-call]
        self.actor_steps.step()
        names = ("actor_loss", "last_ratio", "clipped", "entropy")
        return dict(zip(names, (totals / steps).tolist(), strict=True))

    def _log_probabilities(
        self, static: Tensor, rows: _Rows, state: State, picked: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability of each picked row within its class, in the order of the picks, and the mean entropy of the
        classes as a share of its maximum."""
        here = np.append(rows.positions[: rows.drawn], picked)
        stage, availability = policy_inputs(state, self.policy, here)
        parts = torch.cat([static[: rows.drawn], static[torch.from_numpy(rows.places_of(picked))]])
        scores = self.actor.scores(parts, stage, availability) / self.policy.temperature
        pool_scores, own_scores = scores[: rows.drawn], scores[rows.drawn :]
        if self.policy.max_repeats is not None:
            full = torch.from_numpy(state.counts[here[: rows.drawn]] >= self.policy.max_repeats)
            pool_scores = pool_scores.masked_fill(full, -torch.inf)
        classes = self.pool.classes[picked]
        found, entropies = [], []
        for number in np.unique(classes):
            mine = own_scores[torch.from_numpy(np.flatnonzero(classes == number))]
            inside = pool_scores[rows.members[number]]
            inside = inside[torch.isfinite(inside)]  # rows at max_repeats are not part of their class
            # If no available row of a small class was sampled, the picked rows stand in for it.
            log_sum = torch.logsumexp(inside if len(inside) else mine, 0)
            found.append(mine - log_sum - rows.log_weights[number])
            entropies.append(_entropy_share(inside - log_sum) if len(inside) else log_sum * 0)
        by_class = np.argsort(np.argsort(classes, kind="stable"), kind="stable")
        return torch.cat(found)[torch.from_numpy(by_class)], torch.stack(entropies).mean()

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


def ratio_of(log_p: Tensor, old: Tensor, learning: LearningSettings, by_row: bool = False) -> Tensor:
    """Probability ratio of the new policy to the old one, for the batch or for each of its rows."""
    log_ratio = log_p - old
    if not by_row:
        log_ratio = log_ratio.mean() if learning.ratio == "mean" else log_ratio.sum()
    return log_ratio.clamp(-learning.max_log_ratio, learning.max_log_ratio).exp()


def actor_loss(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped loss, for a step or for each of its rows."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _entropy_share(log_p: Tensor) -> Tensor:
    """Entropy as a share of its maximum; rows at -inf are not part of the class."""
    inside = log_p[torch.isfinite(log_p)]
    return -(inside.exp() * inside).sum() / max(1e-9, float(np.log(max(2, len(inside)))))


class _Rows:
    """The rows of one update: first the whole pool or a sample of it, then the other rows that were picked."""

    def __init__(
        self, pool: PolicyPool, episodes: Sequence[Episode], policy: PolicySettings, most: int, seed: int
    ) -> None:
        drawn = np.arange(len(pool.ids))
        if len(pool.ids) > most:
            ids, _ = top_k(pool.ids, uniform_of(pool.ids, seed), most)
            drawn = np.sort(np.searchsorted(pool.ids, ids))
        picked = np.unique(np.searchsorted(pool.ids, np.concatenate([p for e in episodes for p in e.picks])))
        self.drawn = len(drawn)
        self.positions = np.concatenate([drawn, np.setdiff1d(picked, drawn, assume_unique=True)])
        self._order = np.argsort(self.positions)
        self.features = torch.from_numpy(np.ascontiguousarray(masked(pool, policy.blocks)[self.positions]))
        sizes = np.bincount(pool.classes)
        self.members = [torch.from_numpy(np.flatnonzero(pool.classes[drawn] == number)) for number in range(len(sizes))]
        self.log_weights = [
            float(np.log(max(1, size) / max(1, len(members))))
            for size, members in zip(sizes, self.members, strict=True)
        ]

    def places_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices among the rows of this update, from positions in the pool."""
        places: NDArray[np.int64] = self._order[np.searchsorted(self.positions, positions, sorter=self._order)]
        return places
