"""The errors of the project: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "InputError",
    "InsufficientSpaceError",
    "MissingPackageError",
    "PluginError",
    "SaebenchError",
    "StoreError",
    "in_words",
    "is_interruption",
    "nearest",
]


class SaebenchError(Exception):
    """Base of all errors that are shown to a user without a traceback."""

    exit_code = 1


class InputError(SaebenchError):
    """The user's input cannot be used: a registry, an option, a path.

    Several problems may be given at once; each becomes one line of output.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingPackageError(InputError):
    """An optional package or a package that carries data is not installed."""


class PluginError(SaebenchError):
    """A plugin breaks its contract."""


class StoreError(SaebenchError):
    """A product in the store is missing, damaged or cannot be written."""


class InsufficientSpaceError(InputError):
    """The disk has less room than the plan expects to need."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def in_words(error: Exception) -> str:
    """Return an error of a plugin in one line; one that is not meant for users names its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SaebenchError) else f"the plugin failed: {type(error).__name__}: {text}"


def is_interruption(error: BaseException) -> bool:
    """Say whether an error came out of the user's interruption, such as an exit that a library makes of it."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, KeyboardInterrupt):
            return True
        one = one.__cause__ or one.__context__
    return False
