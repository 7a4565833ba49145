"""Which distributions plugins are loaded from."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

__all__ = ["ALLOW_VARIABLE", "BLOCK_VARIABLE", "CORE_DISTRIBUTION", "PluginChoice"]

CORE_DISTRIBUTION: Final = "saebench-core"
ALLOW_VARIABLE: Final = "SAEBENCH_LOAD_PLUGINS"
BLOCK_VARIABLE: Final = "SAEBENCH_BLOCK_PLUGINS"


@final
@dataclass(frozen=True)
class PluginChoice:
    """Which distributions are loaded: everything, unless limited.

    Attributes:
        allow: distributions or ``distribution:entry-point`` names beside the core's own; None allows all.
        block: the same, never loaded, the core's own included.
    """

    allow: frozenset[str] | None = None
    block: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, block: Sequence[str] = ()) -> PluginChoice:
        """Read ``SAEBENCH_LOAD_PLUGINS`` (empty: only the core's own) and ``SAEBENCH_BLOCK_PLUGINS``."""
        allowed = os.environ.get(ALLOW_VARIABLE)
        return cls(None if allowed is None else _names(allowed), _names(os.environ.get(BLOCK_VARIABLE, ""), *block))

    def admits(self, distribution: str, plugin: str) -> bool:
        """Say whether an entry point is to be loaded."""
        names = _names(distribution, plugin)
        if names & self.block:
            return False
        return self.allow is None or CORE_DISTRIBUTION in names or bool(names & self.allow)


def _names(*texts: str) -> frozenset[str]:
    """Return comma-separated names as the package index compares them: ``My_Plugin`` is ``my-plugin``."""
    parts = (part.strip() for text in texts for part in text.split(","))
    return frozenset(re.sub(r"[-_.]+", "-", part).lower() for part in parts if part)
