"""What is known of one plugin: its name and spec and where it came from, or why it could not be used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, final

from saebench_core.interfaces.architecture import ArchitectureSpec
from saebench_core.interfaces.backbone import BackboneSpec
from saebench_core.interfaces.constraint import ConstraintSpec
from saebench_core.interfaces.entry import Kind
from saebench_core.interfaces.loaded import LoadedSpec
from saebench_core.interfaces.metric import MetricSpec

__all__ = ["LoadFailure", "Notice", "Plugin", "Spec"]

_FILE: Final = "plugin file"
"""Stands for the distribution in the identity of a plugin in a single file, wherever the file lies."""

Spec = BackboneSpec | ArchitectureSpec | LoadedSpec | ConstraintSpec | MetricSpec


@final
@dataclass(frozen=True)
class Plugin:
    """One registered name.

    Attributes:
        kind: backbone, architecture, constraint or metric.
        name: the configuration's ``type``.
        spec: what the plugin returned.
        distribution: name of the distribution it came with, or the single file.
        version: that distribution's version, or the beginning of the sha256 of the file's content.
        source_digest: sha256 of the plugin's module and of the modules of its own package that it imports, or of the
            single file.
        origin: ``distribution:entry-point``, or the single file.
        path: the single file, where it is one.
        notices: what its author should change before it stops working.
        module: name of the module that was loaded and named it; empty where none was.
    """

    kind: Kind
    name: str
    spec: Spec
    distribution: str
    version: str
    source_digest: str
    origin: str = ""
    path: Path | None = None
    notices: tuple[str, ...] = ()
    module: str = ""

    def identity(self) -> dict[str, str]:
        """Return what product keys hold of the plugin; of a single file its content, not its place."""
        distribution = self.distribution if self.path is None else _FILE
        own = {"distribution": distribution, "version": self.version, "source": self.source_digest}
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
class Notice:
    """What the author of a plugin that works should change.

    Attributes:
        plugin: ``distribution:entry-point``, or the single file.
        distribution: where it came from.
        version: its version.
        text: one line.
    """

    plugin: str
    distribution: str
    version: str
    text: str


@final
@dataclass(frozen=True)
class LoadFailure:
    """A plugin that could not be used.

    Attributes:
        plugin: ``distribution:entry-point``, or the single file; ``kind:name`` where several offer one name.
        distribution: where it came from; the last of several.
        version: its version.
        error: one line.
        details: traceback, for people who write plugins.
        others: the further distributions, where several offer one name.
    """

    plugin: str
    distribution: str
    version: str
    error: str
    details: str = ""
    others: tuple[str, ...] = ()
