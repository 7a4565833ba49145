"""Which distributions and files plugins are loaded from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from packaging.utils import canonicalize_name

__all__ = ["ALLOW_VARIABLE", "BLOCK_VARIABLE", "CORE_DISTRIBUTION", "FILES_VARIABLE", "PluginChoice"]

CORE_DISTRIBUTION: Final = "saebench-core"
ALLOW_VARIABLE: Final = "SAEBENCH_LOAD_PLUGINS"
BLOCK_VARIABLE: Final = "SAEBENCH_BLOCK_PLUGINS"
FILES_VARIABLE: Final = "SAEBENCH_PLUGIN_FILES"


@final
@dataclass(frozen=True)
class PluginChoice:
    """What is loaded: everything that is installed, unless limited, and the files that are named.

    Attributes:
        allow: distributions or ``distribution:entry-point`` names beside the core's own; None allows all.
        block: the same, never loaded, the core's own and files included.
        files: Python files with plugins, loaded without packaging.
    """

    allow: frozenset[str] | None = None
    block: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()

    @classmethod
    def from_environment(cls, block: Sequence[str] = (), files: Sequence[Path] = ()) -> PluginChoice:
        """Read the environment: what is loaded, what is left out, which files; arguments add to it.

        ``SAEBENCH_LOAD_PLUGINS`` (empty: only the core's own) and ``SAEBENCH_BLOCK_PLUGINS`` are separated by commas,
        ``SAEBENCH_PLUGIN_FILES`` as paths are on this system.
        """
        allowed = os.environ.get(ALLOW_VARIABLE)
        named = os.environ.get(FILES_VARIABLE, "").split(os.pathsep)
        return cls(
            None if allowed is None else _names(allowed),
            _names(os.environ.get(BLOCK_VARIABLE, ""), *block),
            (*(Path(name).expanduser() for name in named if name), *files),
        )

    def admits(self, distribution: str, plugin: str) -> bool:
        """Say whether an entry point is to be loaded."""
        if self.blocks(distribution, plugin):
            return False
        names = _names(distribution, plugin)
        return self.allow is None or CORE_DISTRIBUTION in names or bool(names & self.allow)

    def blocks(self, *names: str) -> bool:
        """Say whether one of the names is left out."""
        return bool(_names(*names) & self.block)


def _names(*texts: str) -> frozenset[str]:
    """Return comma-separated names as the package index compares them: ``My_Plugin`` is ``my-plugin``."""
    parts = (part.strip() for text in texts for part in text.split(","))
    return frozenset(canonicalize_name(part) for part in parts if part)
