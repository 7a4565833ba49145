"""Finds, checks and lists plugins: one broken plugin is reported, the rest works."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast, final

import pluggy

from saebench_core import hookspecs
from saebench_core.errors import InputError, PluginError, nearest
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec, Shape
from saebench_core.interfaces.backbone import BackboneConfig, BackboneSpec
from saebench_core.interfaces.constraint import ConstraintConfig, ConstraintSpec
from saebench_core.interfaces.entry import EntryConfig, Kind, entry_type
from saebench_core.interfaces.loaded import LoadedConfig, LoadedSpec
from saebench_core.interfaces.metric import MetricConfig, MetricSpec
from saebench_core.sae import SparseAutoencoder, inference_rule, read_config

__all__ = ["Catalog", "LoadFailure", "Plugin", "PluginChoice", "Spec", "make_catalog"]

Spec = BackboneSpec | ArchitectureSpec | LoadedSpec | ConstraintSpec | MetricSpec

CORE_DISTRIBUTION: Final = "saebench-core"
ALLOW_VARIABLE: Final = "SAEBENCH_LOAD_PLUGINS"
BLOCK_VARIABLE: Final = "SAEBENCH_BLOCK_PLUGINS"
_KINDS: Final[Mapping[str, tuple[Kind, type[Any], type[EntryConfig]]]] = {
    "register_backbones": ("backbone", BackboneSpec, BackboneConfig),
    "register_architectures": ("architecture", ArchitectureSpec, ArchitectureConfig),
    "register_constraints": ("constraint", ConstraintSpec, ConstraintConfig),
    "register_metrics": ("metric", MetricSpec, MetricConfig),
}
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


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


@final
class Catalog:
    """All usable plugins by kind and name, and the failures."""

    def __init__(self, plugins: Sequence[Plugin], failures: Sequence[LoadFailure]) -> None:
        self.failures = tuple(failures)
        self._plugins: dict[Kind, dict[str, Plugin]] = {kind: {} for kind, _, _ in _KINDS.values()}
        for plugin in sorted(plugins, key=lambda plugin: plugin.name):
            self._plugins[plugin.kind][plugin.name] = plugin

    def __iter__(self) -> Iterator[Plugin]:
        for by_name in self._plugins.values():
            yield from by_name.values()

    def names(self, kind: Kind) -> list[str]:
        """Return the names of a kind, sorted."""
        return list(self._plugins[kind])

    def of_kind(self, kind: Kind) -> list[Plugin]:
        """Return the plugins of a kind, sorted by name."""
        return list(self._plugins[kind].values())

    def get(self, kind: Kind, name: str) -> Plugin:
        """Return a plugin.

        Raises:
            InputError: if there is none of that name, with the nearest name and the load failures.
        """
        if name in self._plugins[kind]:
            return self._plugins[kind][name]
        raise InputError(self.unknown(kind, name))

    def unknown(self, kind: Kind, name: str) -> str:
        """Return the message for a name that no plugin of a kind has."""
        message = (
            f"no {kind} is called {name!r}{nearest(name, self.names(kind))}; installed: {', '.join(self.names(kind))}"
        )
        if self.failures:
            failed = "; ".join(f"{failure.plugin}: {failure.error}" for failure in self.failures)
            message += f"; plugins that failed to load: {failed}"
        return message

    def load_sae(self, path: Path, device: str = "cpu") -> SparseAutoencoder:
        """Read a saved SAE; its rule comes from the format, or from the architecture plugin that wrote it.

        Raises:
            InputError: if nothing installed knows the architecture.
        """
        config = read_config(path)
        try:
            rule = inference_rule(config)
        except InputError:
            stored = config.get("metadata", {}).get("architecture")
            if not isinstance(stored, dict):
                raise
            plugin = self.get("architecture", str(stored.get("type")))
            entry = plugin.spec.config.model_validate(stored)
            shape = Shape(int(config["d_in"]), int(config["d_sae"]), float(config["metadata"]["l0"]))
            rule = cast(ArchitectureSpec, plugin.spec).build(entry).recipe(shape).rule
        return SparseAutoencoder.load(path, rule, device)


def make_catalog(choice: PluginChoice | None = None) -> Catalog:
    """Load every admitted entry point of the group ``saebench`` and return the catalog."""
    choice = choice or PluginChoice.from_environment()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins: list[Plugin] = []
    failures: list[LoadFailure] = []
    for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda point: (_origin(point)[0], point.name)):
        distribution, version = _origin(point)
        label = f"{distribution}:{point.name}"
        if not choice.admits(distribution, label):
            continue
        try:
            plugins.extend(_load(manager, point, label, distribution, version))
        except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit
            text = " ".join(f"{type(error).__name__}: {error}".split())
            failures.append(LoadFailure(label, distribution, version, text, traceback.format_exc()))
    if not plugins and not failures:
        failures.append(
            LoadFailure(
                CORE_DISTRIBUTION,
                CORE_DISTRIBUTION,
                "",
                "no plugin was found: install the package (in a checkout: pip install -e .), or block less",
            )
        )
    return _without_duplicates(plugins, failures)


def _origin(point: EntryPoint) -> tuple[str, str]:
    distribution = point.dist
    return (distribution.name, distribution.version) if distribution else ("unknown", "")


def _load(
    manager: pluggy.PluginManager, point: EntryPoint, label: str, distribution: str, version: str
) -> list[Plugin]:
    module = point.load()
    if not isinstance(module, ModuleType):
        raise PluginError(f"the entry point {point.value!r} names a {type(module).__name__}; it must name a module")
    if module in manager.get_plugins():
        raise PluginError(f"the module {module.__name__} is registered twice")
    manager.register(module, name=label)
    callers = manager.get_hookcallers(module) or []
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    if unknown:
        manager.unregister(module)
        raise PluginError(f"unknown hook {unknown[0]!r}{nearest(unknown[0], _KINDS)}; hooks: {', '.join(_KINDS)}")
    if not callers:
        raise PluginError(f"the module {module.__name__} implements no hook; hooks: {', '.join(_KINDS)}")
    digest = _source_digest(module)
    found: list[Plugin] = []
    for caller in callers:
        implementation = next(impl for impl in caller.get_hookimpls() if impl.plugin is module)
        _refuse_defaults(implementation.function)
        kind, spec_type, config_type = _KINDS[caller.name]
        for spec in cast(Sequence[Spec], implementation.function()):
            loaded = kind == "architecture" and isinstance(spec, LoadedSpec)
            name = _checked_name(spec, *((LoadedSpec, LoadedConfig) if loaded else (spec_type, config_type)))
            found.append(Plugin(kind, name, spec, distribution, version, digest))
    return found


def _refuse_defaults(function: Any) -> None:
    """Refuse default values: whether pluggy passes such an argument differs between its versions."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            raise PluginError(f"{function.__name__}: the argument {parameter.name!r} has a default; hooks must not")


def _checked_name(spec: Any, spec_type: type[Any], config_type: type[EntryConfig]) -> str:
    if not isinstance(spec, spec_type):
        raise PluginError(f"expected a {spec_type.__name__}, got {type(spec).__name__}")
    config = spec.config
    if not (isinstance(config, type) and issubclass(config, config_type)):
        raise PluginError(f"{spec_type.__name__}.config must be a subclass of {config_type.__name__}")
    settings = config.model_config
    if settings.get("extra") != "forbid" or not settings.get("frozen"):
        raise PluginError(f"{config.__name__} must keep extra='forbid' and frozen=True")
    name = entry_type(config)
    if not _NAME.fullmatch(name):
        raise PluginError(f"the name {name!r} must be lower-case letters, digits and underscores")
    if not spec.summary or "\n" in spec.summary:
        raise PluginError(f"{name}: the summary must be one line")
    return name


def _without_duplicates(plugins: Sequence[Plugin], failures: list[LoadFailure]) -> Catalog:
    by_name: dict[tuple[Kind, str], list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault((plugin.kind, plugin.name), []).append(plugin)
    kept = []
    for (kind, name), offered in by_name.items():
        if len(offered) == 1:
            kept.append(offered[0])
            continue
        origins = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in offered)
        error = f"the {kind} {name!r} is offered by {origins}; leave one out with --no-plugin DISTRIBUTION"
        failures.append(LoadFailure(f"{kind}:{name}", offered[-1].distribution, offered[-1].version, error))
    return Catalog(kept, failures)


def _source_digest(module: ModuleType) -> str:
    """Hash the module's source and, in order, the sources of its own package that it imports."""
    package = module.__name__.partition(".")[0]
    seen: dict[str, bytes] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _source_path(name)
        if path is None:
            continue
        seen[name] = path.read_bytes()
        waiting.extend(_imports(name, seen[name], package, path.name == "__init__.py"))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\0".encode() + hashlib.sha256(seen[name]).digest())
    return digest.hexdigest()


def _source_path(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _imports(name: str, source: bytes, package: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            if base.partition(".")[0] == package:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
