"""Cells of SAEs that are loaded: one for the SAE at each site, and its references under every random constraint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from saebench_core.catalog import Catalog, Plugin
from saebench_core.errors import InputError, in_words, nearest
from saebench_core.interfaces.architecture import ArchitectureConfig
from saebench_core.interfaces.constraint import Constraint, ConstraintConfig
from saebench_core.interfaces.loaded import LoadedArchitecture, LoadedConfig, LoadedShape
from saebench_core.registry.cells import Cell, Entry, Reference
from saebench_core.registry.document import Location

__all__ = ["LoadedEntry", "open_loaded"]

_SIZES = ("d_sae", "expansion")
_NO_PLAIN = "a constraint that holds nothing random, such as `trained`, is missing for the SAE itself"


class _TwinError(InputError):
    """A twin cannot be used; ``key`` is the key of it that is concerned."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


@final
@dataclass(frozen=True)
class LoadedEntry:
    """A loaded SAE as a registry needs it.

    Attributes:
        shape: its sizes.
        twin: entry that its references are trained from, with the same size.
    """

    shape: LoadedShape
    twin: Entry[ArchitectureConfig]

    def check(self, d_in: int, where: str, constraints: Sequence[Entry[ConstraintConfig]]) -> Entry[ConstraintConfig]:
        """Return the constraint that the SAE itself stands under: the first that holds nothing random.

        Args:
            d_in: width of the site.
            where: the site, for messages.
            constraints: those that apply to the backbone.

        Raises:
            InputError: if there is none, or the SAE is for activations of another width.
        """
        if self.shape.d_in != d_in:
            raise InputError(
                f"reads {self.shape.d_in} numbers, but {where} has {d_in}; limit it to its backbone with `only`"
            )
        plain = next((entry for entry in constraints if not _random(entry) and entry.instance.needs is None), None)
        if plain is None:
            raise InputError(_NO_PLAIN)
        return plain

    def cells(
        self, itself: Cell, constraints: Sequence[Entry[ConstraintConfig]], seeds: Sequence[int]
    ) -> Iterator[Cell]:
        """Yield the cell of the SAE, then its references under every constraint that holds something random."""
        yield itself
        for constraint in filter(_random, constraints):
            for seed in seeds:
                yield replace(itself, constraint=constraint, seed=seed, reference=Reference(self.twin, itself))


def _random(entry: Entry[ConstraintConfig]) -> bool:
    return bool(cast(Constraint, entry.instance).randomises)


def open_loaded(
    entries: Sequence[Entry[Any]], catalog: Catalog, problem: Callable[[Location, str], None]
) -> dict[str, LoadedEntry]:
    """Return the loaded SAEs among the architectures of a registry, by name; reads headers only.

    Args:
        entries: architectures.
        catalog: installed plugins.
        problem: told of what cannot be used, with its place.
    """
    found: dict[str, LoadedEntry] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry.config, LoadedConfig):
            continue
        try:
            shape = cast(LoadedArchitecture, entry.instance).shape()
            found[entry.name] = LoadedEntry(shape, _twin(entry.config.twin, shape.d_sae, catalog))
        except _TwinError as error:
            where: Location = ("architectures", index, "twin", *([error.key] if error.key else []))
            problem(where, f"architectures[{index}].twin: {error}")
        except Exception as error:  # a plugin may raise anything
            problem(("architectures", index), f"architectures[{index}] ({entry.name}): {in_words(error)}")
    return found


def _twin(given: Mapping[str, Any], d_sae: int, catalog: Catalog) -> Entry[ArchitectureConfig]:
    trained = [
        plugin.name for plugin in catalog.of_kind("architecture") if not issubclass(plugin.spec.config, LoadedConfig)
    ]
    name, installed = given.get("type"), f"installed: {', '.join(trained)}"
    if not isinstance(name, str):
        raise _TwinError(f"the key `type` is missing; {installed}")
    if name not in trained:
        raise _TwinError(
            f"no architecture that is trained is called {name!r}{nearest(name, trained)}; {installed}", "type"
        )
    for key in _SIZES:
        if key in given:
            raise _TwinError(f"references have the size of the SAE, {d_sae} latents; leave {key!r} out", key)
    plugin = catalog.get("architecture", name)
    try:
        config = plugin.spec.config.model_validate({**given, "d_sae": d_sae})
    except ValidationError as error:
        raise _in_place(error.errors(include_url=False)[0], plugin) from error
    return Entry(name, cast(ArchitectureConfig, config), plugin)


def _in_place(details: ErrorDetails, plugin: Plugin) -> _TwinError:
    key = str(details["loc"][0]) if details["loc"] else None
    if key is not None and details["type"] == "extra_forbidden":
        allowed = sorted(field for field in plugin.spec.config.model_fields if field not in (*_SIZES, "only", "name"))
        return _TwinError(f"unknown key {key!r}{nearest(key, allowed)}; allowed: {', '.join(allowed)}", key)
    message = details["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    return _TwinError(f"{key}: {message} (given: {details['input']!r})" if key else message, key)
