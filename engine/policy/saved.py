"""A policy on disk, with all that is needed to continue learning; weights are safetensors.

policy.safetensors    the acquisition function; metadata: its settings
learner.safetensors   the critic, and the state of both optimizers
episodes.parquet      the logs of the round's trainings (`state.LOG`)
round.json            the round's results; written last, so a round without it does not count
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import DataError
from raysift.policy.settings import PolicySettings
from raysift.policy.state import LOG, Episode
from raysift.storage import Location
from raysift.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from raysift.policy.learning import Learner
    from raysift.policy.network import Acquisition

POLICY, LEARNER, EPISODES, ROUND = "policy.safetensors", "learner.safetensors", "episodes.parquet", "round.json"


def save_policy(place: Location, actor: Acquisition, settings: PolicySettings) -> None:
    """Save the acquisition function and its settings: all that a frozen policy needs."""
    _write(place, dict(actor.state_dict()), {"settings": settings.model_dump_json()})


def load_policy(place: Location) -> tuple[Acquisition, PolicySettings]:
    """Read what `save_policy` wrote."""
    from raysift.policy.network import Acquisition

    tensors, metadata = _read(place)
    try:
        settings = PolicySettings.model_validate_json(metadata["settings"])
        actor = Acquisition(tensors["static.weight"].shape[1], settings.hidden, seed=0)
        actor.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"policy: {place} holds no policy of this version ({error}). Learn it again.") from error
    return actor.eval(), settings


def save_learner(folder: Location, learner: Learner) -> None:
    """Write both files of a learner."""
    save_policy(folder / POLICY, learner.actor, learner.policy)
    tensors = {f"critic.{name}": value for name, value in learner.critic.state_dict().items()}
    for part, optimizer in _optimizers(learner):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{number}.{key}": value for key, value in state.items()}
    _write(folder / LEARNER, tensors, {})


def load_learner(folder: Location, learner: Learner) -> None:
    """Restore a learner's saved state."""
    actor, _ = load_policy(folder / POLICY)
    learner.actor.load_state_dict(actor.state_dict())
    tensors, _ = _read(folder / LEARNER)
    learner.critic.load_state_dict(
        {name.removeprefix("critic."): value for name, value in tensors.items() if name.startswith("critic.")}
    )
    for part, optimizer in _optimizers(learner):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"{part}."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value
        whole = optimizer.state_dict()
        optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def save_round(folder: Location, learner: Learner, episodes: Sequence[Episode], account: dict[str, Any]) -> None:
    """Write a finished round; `account` is the content of `round.json`."""
    folder.delete()
    folder.make_folder()
    save_learner(folder, learner)
    pq.write_table(pa.concat_tables([e.table for e in episodes]), (folder / EPISODES).path, filesystem=folder.fs)
    reports = [[episode.report_start, episode.report_end] for episode in episodes]
    (folder / ROUND).write(json.dumps(account | {"reports": reports}, indent=2) + "\n")


def load_episodes(folder: Location) -> list[Episode]:
    """The trainings of a finished round."""
    place = folder / EPISODES
    table = pq.read_table(place.path, filesystem=place.fs).cast(LOG)
    reports = json.loads((folder / ROUND).read_text())["reports"]
    numbers = table["episode"].to_numpy()
    return [Episode(table.filter(pa.array(numbers == number)), *report) for number, report in enumerate(reports)]


def finished_rounds(folder: Location) -> list[Location]:
    """Folders of the finished rounds in order, up to the first gap."""
    found: list[Location] = []
    while (folder / round_name(len(found) + 1) / ROUND).exists():
        found.append(folder / round_name(len(found) + 1))
    return found


def read_account(folder: Location) -> dict[str, Any]:
    """The results of a finished round, from its `round.json`."""
    account: dict[str, Any] = json.loads((folder / ROUND).read_text())
    return account


def kept_round(rounds: Sequence[Location], keep: Literal["best", "last"]) -> Location:
    """The round whose policy is used. A round saves the policy after its update, and the next round measures that policy.

    So the last policy is unmeasured; it is kept only with `keep="last"`, or if there is no other round.
    """
    if keep == "last" or len(rounds) == 1:
        return rounds[-1]
    measured = [read_account(folder)["performance"] for folder in rounds[1:]]
    return rounds[measured.index(max(measured))]


def round_name(number: int) -> str:
    """The folder name of a round; rounds count from 1."""
    return f"round-{number:04d}"


def _optimizers(learner: Learner) -> list[tuple[str, Optimizer]]:
    return [("actor_steps", learner.actor_steps), ("critic_steps", learner.critic_steps)]


def _write(place: Location, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    save_tensors(place, {name: value.detach().cpu().numpy() for name, value in tensors.items()}, metadata)


def _read(place: Location) -> tuple[dict[str, Tensor], dict[str, str]]:
    import torch

    tensors, metadata = load_tensors(place, "policy")
    return {name: torch.tensor(value) for name, value in tensors.items()}, metadata
