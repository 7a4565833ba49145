"""How a mutant is made: a plugin that passes the kit, with one thing changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from saebench_core.catalog import Catalog, Plugin, PluginChoice, make_catalog
from saebench_core.conformance.subjects import Config


@functools.cache
def catalog() -> Catalog:
    return make_catalog(PluginChoice(frozenset()))


@dataclass(frozen=True)
class Mutant:
    """A broken plugin.

    Attributes:
        name: what is broken.
        check: the check that is meant to find it.
        parent: the plugin that it was made from, which passes.
        plugin: the broken one.
        config: keys of the entry.
        says: part of what the check must say.
    """

    name: str
    check: str
    parent: Plugin
    plugin: Plugin
    config: Config
    says: str = ""


def rebuilt(parent: Plugin, build: Callable[[Any], Any], **spec: Any) -> Plugin:
    """Return the plugin with another factory, or other fields of its spec."""
    return replace(parent, spec=replace(parent.spec, build=build, **spec))


def with_methods(parent: Plugin, methods: Mapping[str, Any]) -> Plugin:
    """Return the plugin with some methods of its class replaced; each is given the inherited one first."""

    def build(config: Any) -> Any:
        original = parent.spec.build(config)
        made = original.__class__.__new__(type("Mutant", (original.__class__,), dict(bound)))
        made.__dict__.update(original.__dict__)
        return made

    def overriding(name: str, method: Any) -> Any:
        if not callable(method) or isinstance(method, type):
            return method

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            inherited = getattr(super(type(self), self), name)
            return method(self, inherited, *args, **kwargs)

        return call

    bound = {name: overriding(name, method) for name, method in methods.items()}
    return rebuilt(parent, build)


def plugin(kind: str, name: str) -> Plugin:
    return catalog().get(kind, name)
