"""Loads the entry points of the group `saebench`: one that fails is recorded, the rest is loaded."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import cast

import pluggy

from saebench_core import hookspecs
from saebench_core.catalog.checks import HOOKS, checked_name, refuse_defaults
from saebench_core.catalog.choice import CORE_DISTRIBUTION, PluginChoice
from saebench_core.catalog.digests import source_digest
from saebench_core.catalog.listing import Catalog
from saebench_core.catalog.plugin import LoadFailure, Plugin, Spec
from saebench_core.errors import PluginError, nearest
from saebench_core.interfaces.entry import Kind

__all__ = ["make_catalog"]


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
        raise PluginError(f"unknown hook {unknown[0]!r}{nearest(unknown[0], HOOKS)}; hooks: {', '.join(HOOKS)}")
    if not callers:
        raise PluginError(f"the module {module.__name__} implements no hook; hooks: {', '.join(HOOKS)}")
    digest = source_digest(module)
    found: list[Plugin] = []
    for caller in callers:
        implementation = next(impl for impl in caller.get_hookimpls() if impl.plugin is module)
        refuse_defaults(implementation.function)
        for spec in cast(Sequence[Spec], implementation.function()):
            name = checked_name(caller.name, spec)
            found.append(Plugin(HOOKS[caller.name][0], name, spec, distribution, version, digest))
    return found


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
