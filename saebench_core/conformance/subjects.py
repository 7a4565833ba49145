"""What checks look at: a plugin with a configuration, and what is made of it once for all of its checks."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saebench_core.catalog import Catalog, Plugin, make_catalog
from saebench_core.conformance.watching import Watched, watch
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.entry import EntryConfig

__all__ = ["Config", "PluginSubject", "entries_of", "modules_of", "required_keys", "shown_errors"]

Config = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Keys of the registry's entry beside ``type``; a function may write files into the folder that it is given."""

_SMALL: Mapping[str, Any] = {"d_sae": 24}
_SIZES = ("d_sae", "expansion")


class PluginSubject(ABC):
    """A plugin under examination.

    Attributes:
        plugin: what is known of it.
        catalog: other plugins, which constraints and architectures are tried with.
        given: keys of its entry, or what makes them.
    """

    def __init__(self, plugin: Plugin, config: Config | None = None, catalog: Catalog | None = None) -> None:
        self.plugin = plugin
        self.given: Config = {} if config is None else config
        self.catalog = catalog if catalog is not None else make_catalog()
        self._folders = 0

    @cached_property
    def folder(self) -> Path:
        """A temporary folder, removed with the subject."""
        made = tempfile.mkdtemp(prefix="saebench-conformance-")
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return Path(made)

    def new_folder(self) -> Path:
        """Return a temporary folder that nothing is in."""
        self._folders += 1
        made = self.folder / str(self._folders)
        made.mkdir()
        return made

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Keys of the entry, with a small size where the kind has one and none is given."""
        given = dict(self.given(self.new_folder()) if callable(self.given) else self.given)
        fields = self.plugin.spec.config.model_fields
        if "d_sae" in fields and not any(given.get(name) is not None for name in _SIZES):
            given |= _SMALL
        return {"type": self.plugin.name} | given

    @cached_property
    def config(self) -> EntryConfig:
        """The validated configuration.

        Raises:
            InputError: if keys are missing or wrong.
        """
        try:
            return self.plugin.spec.config.model_validate(self.keys)
        except ValidationError as error:
            raise InputError(f"{self.plugin.kind} {self.plugin.name}: {shown_errors(error, self.plugin)}") from error

    def build(self) -> Any:
        """Return the plugin's object, built anew."""
        return self.plugin.spec.build(self.config)

    @abstractmethod
    def exercise(self) -> object:
        """Do everything that a run would ask of the plugin, from the start."""

    @cached_property
    def watched(self) -> Watched:
        """What the plugin did outside its place while it was exercised.

        Where a generator moved it is tried again: a library that is imported on first use may draw on import.
        """
        found = watch(self._exercise_quietly)
        if not found.generators:
            return found
        return Watched(watch(self._exercise_quietly).generators, found.addresses)

    def _exercise_quietly(self) -> None:
        with contextlib.suppress(Exception):  # other checks tell of it; here only what was done until then counts
            self.exercise()

    @property
    def modules(self) -> tuple[tuple[str, str], ...]:
        """Modules of the plugins of this distribution, this one's among them, with their files."""
        together = [other for other in self.catalog if other.distribution == self.plugin.distribution]
        own = sorted({name for plugin in (*together, self.plugin) for name in modules_of(plugin)})
        return tuple((name, getattr(sys.modules.get(name), "__file__", None) or "") for name in own)


def modules_of(plugin: Plugin) -> list[str]:
    """Return the module that was loaded for a plugin, if one was, and the one that its configuration comes from."""
    return list(dict.fromkeys(name for name in (plugin.module, plugin.spec.config.__module__) if name))


def required_keys(plugin: Plugin) -> list[str]:
    """Return the keys that an entry of this plugin cannot do without."""
    return [name for name, field in plugin.spec.config.model_fields.items() if field.is_required()]


def shown_errors(error: ValidationError, plugin: Plugin) -> str:
    """Return pydantic's findings in one line; a key that is not known with those that are."""
    keys = [name for name in plugin.spec.config.model_fields if name != "type"]
    told = []
    for one in error.errors():
        where = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden" and len(one["loc"]) == 1:
            told.append(f"there is no key {where!r}{nearest(where, keys)}; keys: {', '.join(keys)}")
        else:
            told.append(f"{where}: {one['msg']}" if where else one["msg"])
    return "; ".join(told)


def entries_of(plugins: Sequence[Plugin]) -> dict[Plugin, EntryConfig]:
    """Return the smallest entry of each plugin; those that need keys which only a user knows are left out."""
    found: dict[Plugin, EntryConfig] = {}
    for plugin in plugins:
        small = _SMALL if "d_sae" in plugin.spec.config.model_fields else {}
        with contextlib.suppress(ValidationError):
            found[plugin] = plugin.spec.config.model_validate({"type": plugin.name, **small})
    return found
