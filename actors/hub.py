"""Asks the Hugging Face hub once whether it answers at all: its library asks for each file six times, ten seconds each.

Where it does not answer, this process goes on with what the machine's cache holds.
"""

from __future__ import annotations

import functools
import logging

HUB_S = 10.0  # to connect, and again to answer

log = logging.getLogger(__name__)


@functools.cache
def why_offline() -> str:
    """Why this process does not ask the hub; empty if it does."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "it is not asked: HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_S)
    except Exception as error:  # of another network library in each version; an answer with an error does not raise
        constants.HF_HUB_OFFLINE = True  # read by the hub's library and transformers at each request
        why = f"{constants.ENDPOINT} does not answer ({type(error).__name__} after at most {2 * HUB_S:g} s)"
        log.warning("model: %s; models come from this machine's cache", why)
        return why
    return ""
