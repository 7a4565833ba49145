"""What is known of one plugin: its name and spec and where it came from, or why it could not be used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import final

from saebench_core.interfaces.architecture import ArchitectureSpec
from saebench_core.interfaces.backbone import BackboneSpec
from saebench_core.interfaces.constraint import ConstraintSpec
from saebench_core.interfaces.entry import Kind
from saebench_core.interfaces.loaded import LoadedSpec
from saebench_core.interfaces.metric import MetricSpec

__all__ = ["LoadFailure", "Plugin", "Spec"]

Spec = BackboneSpec | ArchitectureSpec | LoadedSpec | ConstraintSpec | MetricSpec


@final
@dataclass(frozen=True)
class Plugin:
    """One registered name.

    Attributes:
        kind: backbone, architecture, constraint or metric.
        name: the configuration's ``type``.
        spec: what the plugin returned.
        distribution: name of the distribution it came with.
        version: that distribution's version.
        source_digest: sha256 of the plugin's module and of the modules of its own package that it imports.
    """

    kind: Kind
    name: str
    spec: Spec
    distribution: str
    version: str
    source_digest: str

    def identity(self) -> dict[str, str]:
        """Return what product keys hold of the plugin."""
        own = {"distribution": self.distribution, "version": self.version, "source": self.source_digest}
        return own | {f"depends:{name}": _version_of(name) for name in self.spec.depends}


@lru_cache(maxsize=64)
def _version_of(distribution: str) -> str:
    """Return the version of an installed distribution, read without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


@final
@dataclass(frozen=True)
class LoadFailure:
    """A plugin that could not be used.

    Attributes:
        plugin: ``distribution:entry-point``.
        distribution: where it came from.
        version: that distribution's version.
        error: one line.
        details: traceback, for people who write plugins.
    """

    plugin: str
    distribution: str
    version: str
    error: str
    details: str = ""
