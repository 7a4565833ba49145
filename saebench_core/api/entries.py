"""Entries of a registry as functions of a notebook take them: mappings, or types alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saebench_core.errors import InputError

__all__ = ["EntryLike", "as_block", "as_entry", "as_list"]

EntryLike = str | Mapping[str, Any]
"""An entry of a registry: a mapping with ``type``, or the type alone."""


def as_entry(given: EntryLike) -> Any:
    """Return an entry as a mapping of its own; what is none is left to the checks of the registry."""
    if isinstance(given, str):
        return {"type": given}
    return dict(given) if isinstance(given, Mapping) else given


def as_block(given: Mapping[str, Any] | None) -> Any:
    """Return a block such as ``training`` as a mapping of its own; what is none is left to the registry's checks."""
    return dict(given or {}) if given is None or isinstance(given, Mapping) else given


def as_list(caller: str, key: str, given: Sequence[EntryLike]) -> list[Any]:
    """Return a list of entries.

    Args:
        caller: what errors begin with.
        key: name of the argument.
        given: entries.

    Raises:
        InputError: if it is one entry, or no list at all.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InputError(f"{caller}: {key}: expected a list of entries such as [{{'type': ...}}], got {given!r}")
    return [as_entry(entry) for entry in given]
