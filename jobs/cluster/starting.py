"""Starts Ray, or joins the cluster that the environment names, with the settings that our stages count on."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import ray

from raysift.errors import ConfigError

HEAD_TIMEOUT_S = 10.0
OOM_RETRIES = 5  # of a task that memory kills; for ever by default. Actors count their own ends (see `lives`)

TOLD_FROM = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # it reports that its bars are off
}


def start_ray(**options: Any) -> bool:
    """Join the running Ray (or the cluster of RAY_ADDRESS), or start a local one; return True if this call started it.

    A caller that gets True owns the session and may shut it down. We never shut down a host's session.
    """
    if ray.is_initialized():
        return False
    # A fresh Ray turns on token authentication by itself, so set it explicitly either way. A session that we start
    # listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        settings["include_dashboard"] = False
    _require_head(address)
    try:
        ray.init(**(settings | options))
    except ConnectionError as error:
        raise ConfigError(
            f"ray: the cluster at RAY_ADDRESS={address} refuses this client (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}). If it "
            f"asks for tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Ray says: {error}"
        ) from None
    level = max(logging.WARNING, logging.getLogger().level)
    for library in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(library).setLevel(level)  # Ray Data sets its own level at import
    logging.getLogger("ray.data._internal.progress").setLevel(TOLD_FROM["ray.data._internal.progress"])
    return True


def _require_head(address: str) -> None:
    """Refuses HOST:PORT if nothing listens there: Ray would retry silently for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray: nothing answers at RAY_ADDRESS={address}: {error}. Start the cluster, correct the address, or unset "
            "RAY_ADDRESS to run on this machine."
        ) from None
