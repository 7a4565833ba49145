"""Which version of the core a distribution asks for: one that needs a newer core is refused before it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from saebench_core._version import __version__
from saebench_core.catalog.choice import CORE_DISTRIBUTION
from saebench_core.errors import PluginError

__all__ = ["check_core_version"]

_NEWER: Final = frozenset({">=", ">", "==", "===", "~="})


def check_core_version(distribution: str, requires: Sequence[str], installed: str = __version__) -> str | None:
    """Return a notice if a distribution was made for an older core, None if it was made for this one.

    Args:
        distribution: its name.
        requires: its ``Requires-Dist`` lines.
        installed: version of the core.

    Raises:
        PluginError: if it needs a newer core.
    """
    unmet = {
        f"{CORE_DISTRIBUTION}{requirement.specifier}": missed
        for requirement in _asked(requires)
        if (missed := [one for one in requirement.specifier if not one.contains(installed, prereleases=True)])
    }
    for wanted, missed in unmet.items():
        if any(_is_newer(one, installed) for one in missed):
            raise PluginError(
                f"needs {wanted}, installed is {installed}: upgrade it (pip install --upgrade '{wanted}'), "
                f"or install a version of {distribution} for {installed}"
            )
    for wanted in unmet:
        return f"was made for {wanted}, installed is {installed}: look for a newer version of {distribution}"
    return None


def _asked(requires: Sequence[str]) -> Iterator[Requirement]:
    """Yield what is asked of the core here; a line that is no requirement is pip's business."""
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != CORE_DISTRIBUTION:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _is_newer(specifier: Specifier, installed: str) -> bool:
    """Say whether an unmet part of a requirement would be met by a newer version; ``===`` may name what is none."""
    try:
        wanted = Version(specifier.version.removesuffix(".*"))
    except InvalidVersion:
        return False
    return specifier.operator in _NEWER and wanted >= Version(installed)
