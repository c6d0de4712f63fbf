"""The few errors a caller may want to tell apart, and the exit code each one gives on the command line.

A message names the stage, the thing (file, row, field), what was found, what was expected and what to do.
"""


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
    """A run folder holds results of other settings or other inputs than those asked for now."""

    exit_code = 4


class StageError(RaysiftError):
    """A stage could not finish: too many failed rows, counts that do not add up, a worker that dies again and again."""

    exit_code = 5


class ModelError(RaysiftError):
    """A model, adapter or tokenizer that cannot be found or does not fit."""

    exit_code = 6


def find_cause(error: BaseException | None) -> RaysiftError | None:
    """The raysift error inside an error that a library wrapped around it, if there is one.

    Ray's error for a failed task is of the class of its cause too, but its text is a traceback: then the cause is meant.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if isinstance(error, RaysiftError) and not isinstance(inner, RaysiftError):
            return error
        error = inner or error.__cause__ or error.__context__
    return None
