"""Loads entry points of the group `saebench` and single files: one that fails is recorded, the rest is loaded."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import final

import pluggy

from saebench_core import hookspecs
from saebench_core.catalog.checks import HOOKS, checked_name, checked_specs
from saebench_core.catalog.choice import CORE_DISTRIBUTION, PluginChoice
from saebench_core.catalog.digests import source_digest
from saebench_core.catalog.implementations import implementations
from saebench_core.catalog.listing import Catalog
from saebench_core.catalog.origins import Origin, origins
from saebench_core.catalog.plugin import LoadFailure, Plugin
from saebench_core.catalog.requirements import check_core_version
from saebench_core.errors import PluginError, SaebenchError
from saebench_core.interfaces.entry import Kind
from saebench_core.store import file_sha256

__all__ = ["Hooks", "make_catalog"]


@final
@dataclass(frozen=True)
class Hooks:
    """What plugins are asked by.

    Attributes:
        specs: module or class with the hooks.
        arguments: what they are called with; an implementation is passed those that it takes.
    """

    specs: ModuleType | type = hookspecs
    arguments: Mapping[str, object] = field(default_factory=dict)

    def call(self, function: Callable[..., object]) -> object:
        """Return what an implementation says."""
        taken = function.__code__.co_varnames[: function.__code__.co_argcount]
        return function(**{name: self.arguments[name] for name in taken})


def make_catalog(choice: PluginChoice | None = None, hooks: Hooks | None = None) -> Catalog:
    """Load every admitted entry point of the group ``saebench`` and every file, and return the catalog.

    Args:
        choice: what is loaded; by default what the environment says.
        hooks: what plugins are asked by; by default `saebench_core.hookspecs`.
    """
    hooks = hooks or Hooks()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hooks.specs)
    plugins: list[Plugin] = []
    failures: list[LoadFailure] = []
    for origin in origins(hookspecs.PROJECT, choice or PluginChoice.from_environment()):
        try:
            plugins.extend(_load(manager, hooks, origin))
        except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit
            own = isinstance(error, SaebenchError)
            text = str(error) if own else f"{type(error).__name__}: {error}{_place(error, origin)}"
            line, details = " ".join(text.split()), traceback.format_exc()
            failures.append(LoadFailure(origin.label, origin.distribution, origin.version, line, details))
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


def _place(error: BaseException, origin: Origin) -> str:
    """Return the last line of the plugin that an error came through, for the end of a message; empty if none."""
    if isinstance(error, SyntaxError):
        return ""  # says it itself
    top = origin.says.partition(":")[0].partition(".")[0]
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == top or file == str(origin.path):
            place = f" ({file}, line {line})"
    return place


def _load(manager: pluggy.PluginManager, hooks: Hooks, origin: Origin) -> list[Plugin]:
    outdated = check_core_version(origin.distribution, origin.requires)
    module = origin.load()
    if not isinstance(module, ModuleType):
        raise PluginError(f"the entry point {origin.says!r} names a {type(module).__name__}; it must name a module")
    if module in manager.get_plugins():
        raise PluginError(f"the module {module.__name__} is registered twice")
    functions = implementations(manager, module)
    notices = (*([outdated] if outdated else []), *_register(manager, module, origin.label))
    digest = source_digest(module) if origin.path is None else file_sha256(origin.path)
    return [
        Plugin(
            kind=HOOKS[hook][0],
            name=checked_name(hook, spec),
            spec=spec,
            distribution=origin.distribution,
            version=origin.version,
            source_digest=digest,
            origin=origin.label,
            path=origin.path,
            notices=notices,
            module=module.__name__,
        )
        for hook, function in functions.items()
        for spec in checked_specs(hook, hooks.call(function))
    ]


def _register(manager: pluggy.PluginManager, module: ModuleType, label: str) -> list[str]:
    """Register a module and return what pluggy warns of: hooks and arguments that are deprecated."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # a notice for authors, whatever the filters of the process do with warnings
        manager.register(module, name=label)
    return list(dict.fromkeys(" ".join(str(warning.message).split()) for warning in told))


def _without_duplicates(plugins: Sequence[Plugin], failures: list[LoadFailure]) -> Catalog:
    by_name: dict[tuple[Kind, str], list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault((plugin.kind, plugin.name), []).append(plugin)
    kept = []
    for (kind, name), offered in by_name.items():
        if len(offered) == 1:
            kept.append(offered[0])
            continue
        *others, last = (plugin.distribution for plugin in offered)
        error = f"the {kind} {name!r} is offered {_by(offered)}"
        failures.append(LoadFailure(f"{kind}:{name}", last, offered[-1].version, error, others=tuple(others)))
    return Catalog(kept, failures)


def _by(offered: Sequence[Plugin]) -> str:
    """Say who offers one name, and what to do; two entry points of one distribution are told apart by their names."""
    origins_of = list(dict.fromkeys(plugin.origin for plugin in offered))
    if len(origins_of) == 1:
        return f"{len(offered)} times by {origins_of[0]}; keep one, or leave it out with --no-plugin {origins_of[0]}"
    alone = len({plugin.distribution for plugin in offered}) == len(offered)
    sources = (f"{plugin.distribution if alone else plugin.origin} {plugin.version}" for plugin in offered)
    choices = " or ".join(f"--no-plugin {origin}" for origin in origins_of)
    return f"by {' and '.join(dict.fromkeys(sources))}; leave one out with {choices}"
