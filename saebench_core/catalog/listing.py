"""The catalog: all usable plugins by kind and name, and the failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final, get_args

from packaging.utils import canonicalize_name

from saebench_core.catalog.plugin import LoadFailure, Notice, Plugin
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.architecture import ArchitectureSpec, Shape
from saebench_core.interfaces.constraint import ConstraintSpec
from saebench_core.interfaces.entry import Kind
from saebench_core.rules import Rule
from saebench_core.sae import SparseAutoencoder, inference_rule, read_config

__all__ = ["Catalog", "checked_kind"]


def checked_kind(kind: str) -> Kind:
    """Return a kind that a user has named.

    Raises:
        InputError: if there is none of that name.
    """
    kinds = get_args(Kind)
    if kind not in kinds:
        raise InputError(f"{kind!r} is no kind of plugin{nearest(kind, kinds)}; kinds: {', '.join(kinds)}")
    return cast(Kind, kind)


@final
class Catalog:
    """All usable plugins by kind and name, and the failures."""

    def __init__(self, plugins: Sequence[Plugin], failures: Sequence[LoadFailure]) -> None:
        self.failures = tuple(failures)
        self._plugins: dict[Kind, dict[str, Plugin]] = {kind: {} for kind in get_args(Kind)}
        for plugin in sorted(plugins, key=lambda plugin: plugin.name):
            self._plugins[plugin.kind][plugin.name] = plugin

    def __iter__(self) -> Iterator[Plugin]:
        for by_name in self._plugins.values():
            yield from by_name.values()

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What authors of plugins should change, each once."""
        found = (
            Notice(plugin.origin, plugin.distribution, plugin.version, text)
            for plugin in self
            for text in plugin.notices
        )
        return tuple(dict.fromkeys(found))

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

    def find(self, name: str, kind: str | None = None) -> Plugin:
        """Return the plugin of a name, whatever its kind unless one is given.

        Raises:
            InputError: if there is no such kind, no such plugin, or several kinds have one.
        """
        if kind is not None:
            return self.get(checked_kind(kind), name)
        found = [plugin for plugin in self if plugin.name == name]
        if len(found) > 1:
            kinds_of = " and ".join(plugin.kind for plugin in found)
            raise InputError(f"{name!r} is the name of plugins of kind {kinds_of}; say which with --kind")
        if not found:
            near = nearest(name, sorted({plugin.name for plugin in self}))
            raise InputError(f"no plugin is called {name!r}{near}; see: saebench plugins list{self.failed(name)}")
        return found[0]

    def unknown(self, kind: Kind, name: str) -> str:
        """Return the message for a name that no plugin of a kind has."""
        names = self.names(kind)
        return f"no {kind} is called {name!r}{nearest(name, names)}; installed: {', '.join(names)}{self.failed(name)}"

    def failed(self, name: str) -> str:
        """Return the end of a message about a name that is not known: load failures that may be why, others counted."""
        called = canonicalize_name(name)
        meant = [one for one in self.failures if called in canonicalize_name(" ".join((one.plugin, *one.others)))]
        told = meant or (self.failures if len(self.failures) == 1 else ())
        texts = [f"{one.plugin}: {one.error}" for one in told]
        if left := len(self.failures) - len(told):
            others = f"{left} {'others' if texts else 'plugins'}" if left > 1 else "another one"
            texts.append(f"{others} (see: saebench plugins list)")
        return f"; failed to load: {'; '.join(texts)}" if texts else ""

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        """Return the selection rule of a saved SAE: the format's, or what the plugins that wrote it make of it.

        Args:
            config: the SAE's parsed ``cfg.json``.

        Raises:
            InputError: if nothing installed knows the architecture.
        """
        try:
            return inference_rule(config)
        except InputError:
            stored = config.get("metadata", {}).get("architecture")
            if not isinstance(stored, dict):
                raise
        plugin = self.get("architecture", str(stored.get("type")))
        entry = plugin.spec.config.model_validate(stored)
        shape = _shape(config)
        recipe = cast(ArchitectureSpec, plugin.spec).build(entry).recipe(shape)
        held = config["metadata"].get("constraint")
        if isinstance(held, dict):  # it may have put another rule in the place of the architecture's
            spec = cast(ConstraintSpec, self.get("constraint", str(held.get("type"))).spec)
            recipe = spec.build(spec.config.model_validate(held)).adapt(recipe, shape)
        return recipe.rule

    def load_sae(self, path: Path, device: str = "cpu") -> SparseAutoencoder:
        """Read a saved SAE, with the rule that `rule_of` gives.

        Raises:
            InputError: if nothing installed knows the architecture.
        """
        return SparseAutoencoder.load(path, self.rule_of(read_config(path)), device)


def _shape(config: Mapping[str, Any]) -> Shape:
    """Return the sizes that a saved SAE's rule was made for.

    Raises:
        InputError: if its configuration does not say them.
    """
    try:
        return Shape(int(config["d_in"]), int(config["d_sae"]), float(config["metadata"]["l0"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the configuration of this SAE needs d_in, d_sae and metadata.l0: {error!r}") from error
