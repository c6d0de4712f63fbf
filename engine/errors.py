"""The few errors a caller may want to distinguish, and the exit code of each on the command line.

A message names the stage, the object (file, row, field), what was found, what was expected and what to do.
"""

import errno
import re


class RaysiftError(Exception):
    """Base of every error that raysift raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(RaysiftError):
    """A setting is unknown, of the wrong kind, or impossible together with another."""

    exit_code = 2


class DataError(RaysiftError):
    """Input that cannot be read, or holds nothing to work on."""

    exit_code = 3


class StaleRunError(RaysiftError):
    """A run folder holds results of settings or inputs that differ from the current ones."""

    exit_code = 4


class StageError(RaysiftError):
    """A stage could not finish: too many failed rows, counts that do not add up, a worker that crashes repeatedly."""

    exit_code = 5


class DeviceError(StageError):
    """A GPU, or the way to another one, that failed; the process that met it can compute nothing more."""


class ModelError(RaysiftError):
    """A model, adapter or tokenizer that cannot be found or does not fit."""

    exit_code = 6


class ClaimError(RaysiftError):
    """A comparison does not bear out what was claimed of it with `--assert`."""

    exit_code = 7


FULL = (errno.ENOSPC, errno.EDQUOT)
WAYS_OUT = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Change its permissions, or name another place."),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), "Check the name."),
    errno.ENAMETOOLONG: "Give it a shorter name.",
    **dict.fromkeys(FULL, "Make room; the same command continues the run."),
}
"""Advice for each errno of the operating system that a user can do something about."""

_OF_STORE = re.compile(r"AWS Error (\w+)")
_PASSING = {"NETWORK_CONNECTION", "UNKNOWN", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING"}
_PASSING |= {"REQUEST_TIMEOUT", "REQUEST_TIME_TOO_SKEWED"}


def find_cause(error: BaseException | None) -> RaysiftError | None:
    """The raysift error that a library wrapped in its own, else the operating system's refusal as a raysift error.

    Ray's error for a failed task also inherits from its cause's class, but its text is a traceback, so the cause is taken.
    """
    refused: RaysiftError | None = None
    seen: set[int] = set()
    on_purpose = True  # an error that was merely being handled when this one arose counts only if it is ours
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if isinstance(error, RaysiftError) and not isinstance(inner, RaysiftError):
            return error
        if isinstance(error, OSError) and on_purpose and not isinstance(inner, OSError):
            refused = refused or explain_system_error(error)
        on_purpose = on_purpose and (inner or error.__cause__) is not None
        error = inner or error.__cause__ or error.__context__
    return refused


def explain_system_error(error: OSError) -> RaysiftError | None:
    """The operating system's refusal as our error: StageError for a full disk, DataError for any other unusable place."""
    if store := _OF_STORE.search(str(error)):
        if store[1] in _PASSING:
            return StageError(
                f"storage: the object store did not do what was asked, also when asked again: {system_words(error)} The same "
                "command continues the run. If the store is only slow, wait longer (RAYSIFT_S3_TIMEOUT, in seconds) or try more "
                "often (AWS_MAX_ATTEMPTS)."
            )
        return DataError(
            f"storage: the object store refused: {system_words(error)} Check the name, and the credentials in the environment."
        )
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno  # pyarrow sets none on some
    if number not in WAYS_OUT:
        return None
    return (StageError if number in FULL else DataError)(f"files: {system_words(error)} {WAYS_OUT[number]}")


def system_words(error: OSError) -> str:
    """The operating system's message without its errno."""
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return f"there is no '{error}'."
    return re.sub(r"\[[Ee]rrno \d+\] ?", "", str(error)).strip().rstrip(".") + "."
