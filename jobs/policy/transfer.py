"""Take over a policy that another run learned, or found in a search, for this run's pool."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from raysift.errors import ConfigError
from raysift.jobs.runs.run import open_run
from raysift.manifest import read_manifest
from raysift.policy.settings import RaiseConfig
from raysift.settings.config import make_config
from raysift.storage import Location


@dataclass(frozen=True)
class LearnedPolicy:
    """Files of a policy and of the scales and classes it was learned with, and the settings of its run."""

    policy: Location
    fitted: Location
    settings: RaiseConfig

    def settings_for(self, own: RaiseConfig) -> RaiseConfig:
        """The run's own settings, with `features` and `policy` taken from the policy's run."""
        return own.model_copy(update={"features": self.settings.features, "policy": self.settings.policy})


def learned_by(settings: RaiseConfig) -> LearnedPolicy:
    """The policy of the run that `policy_from` names."""
    run = open_run(str(settings.policy_from))
    searched = read_manifest(run.folder / "search")
    if searched is not None:
        best = getattr(make_config(yaml.safe_load(run.files(searched, "best")[0].read_text())), "raise")
        return LearnedPolicy(run.files(searched, "policy")[0], run.files(searched, "fitted")[0], best)
    config = run.config()
    learned, features = (read_manifest(run.folder / stage) for stage in ("learn", "features"))
    theirs = getattr(config, "raise", None)
    if learned is None or features is None or not isinstance(theirs, RaiseConfig):
        raise ConfigError(
            f"raise.policy_from: {settings.policy_from} has not learned a policy (its method is '{config.method}'). Name a "
            "finished run of `raysift raise` or `raysift search`."
        )
    return LearnedPolicy(run.files(learned, "policy")[0], run.files(features, "fitted")[0], theirs)
