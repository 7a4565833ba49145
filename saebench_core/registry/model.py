"""The registry's shape: a pydantic model made from the installed plugins, and its errors in words."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, create_model
from pydantic_core import ErrorDetails

from saebench_core.catalog import Catalog
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.entry import EntryConfig, Kind, Model
from saebench_core.registry.document import Document, Location
from saebench_core.registry.plain import dotted
from saebench_core.training.settings import TrainingSettings

__all__ = ["LISTS", "ExcludeRule", "RegistryModel", "RuntimeSettings", "Selector", "registry_model", "validate"]

LISTS: dict[str, Kind] = {
    "backbones": "backbone",
    "architectures": "architecture",
    "constraints": "constraint",
    "metrics": "metric",
}
"""Lists of entries in a registry, and the kind of plugin behind each."""

_NOT_REPEATED: Literal["secret"] = "secret"
"""Type of a validator's error (pydantic's `PydanticCustomError`) where what was given may be a key."""

Selector = str | int | float
_Choice = Selector | tuple[Selector, ...]


class ExcludeRule(Model):
    """Cells to leave out: those that match every key given, by name or type."""

    backbone: _Choice | None = Field(None, description="Names or types.")
    site: _Choice | None = Field(None, description="Sites.")
    architecture: _Choice | None = Field(None, description="Names or types.")
    constraint: _Choice | None = Field(None, description="Names or types.")
    l0: _Choice | None = Field(None, description="Targets.")
    seed: _Choice | None = Field(None, description="Seeds.")


class RuntimeSettings(Model):
    """Where and how the work runs; changes no cell id."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="`auto` takes cuda, then mps, then cpu.")
    backbone_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Format that model backbones run in; `auto` takes bf16 where the processor is fast at it."
    )
    checkpoint_seconds: float = Field(
        300.0, ge=0, description="Least time between two checkpoints of SAEs in training; what is killed goes on there."
    )
    threads: int | None = Field(None, ge=1, description="Threads of one process; default: all cores.")


class RegistryModel(BaseModel):
    """Keys of a registry beside its lists of entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200, description="Name of the sweep and of its MLflow experiment.")
    notice: str | None = Field(None, description="Line that is printed with every result, such as a warning.")
    l0: tuple[PositiveFloat, ...] = Field(min_length=1, description="Target numbers of active latents.")
    seeds: tuple[int, ...] = Field(min_length=1, description="Seeds of weights and batch order.")
    training: TrainingSettings = Field(description="Budget, optimiser and schedules.")
    runtime: RuntimeSettings = Field(RuntimeSettings(), description="Device, number format, threads.")
    exclude: tuple[ExcludeRule, ...] = Field((), description="Cells to leave out.")


def registry_model(catalog: Catalog) -> type[RegistryModel]:
    """Return the model of registries that use the catalog's plugins."""
    fields: dict[str, Any] = {}
    for key, kind in LISTS.items():
        models = [plugin.spec.config for plugin in catalog.of_kind(kind)]
        if not models:
            raise InputError(f"no {kind} plugin is installed; `saebench plugins list` shows what was found")
        union: Any = Annotated[reduce(or_, models), Field(discriminator="type")] if len(models) > 1 else models[0]
        entries = tuple.__class_getitem__((union, ...))
        fields[key] = (entries, Field(min_length=1, description=f"Entries of kind {kind}."))
    return create_model("Registry", __base__=RegistryModel, **fields)


def validate(document: Document, catalog: Catalog) -> RegistryModel:
    """Return the validated registry.

    Raises:
        InputError: one line for each problem, with file, line and column.
    """
    model = registry_model(catalog)
    try:
        checked = model.model_validate(document.data)
        problems = list(_converted(document.data, checked.model_dump(), (), document))
        if problems:
            raise InputError(*problems)
        return checked
    except ValidationError as error:
        problems = [
            _describe(details, document, catalog, model)
            for details in error.errors(include_url=False)
            if not _echo(details)
        ]
        raise InputError(*dict.fromkeys(problems)) from error


def _converted(given: Any, taken: Any, location: Location, document: Document) -> Iterator[str]:
    """Yield a problem for every text or truth value that pydantic took for a number, or the reverse."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key in given.keys() & taken.keys():
            yield from _converted(given[key], taken[key], (*location, key), document)
    elif isinstance(given, list) and isinstance(taken, list | tuple):
        for index, (one, other) in enumerate(zip(given, taken, strict=False)):
            yield from _converted(one, other, (*location, index), document)
    elif isinstance(given, str | bool) and isinstance(taken, int | float | bool) and type(given) is not type(taken):
        wanted = "true or false" if isinstance(taken, bool) else "a number"
        kind = "text" if isinstance(given, str) else "a truth value"
        yield f"{document.where(location)} {dotted(location)}: expected {wanted}, not {kind} (given: {given!r})"


def _echo(details: ErrorDetails) -> bool:
    """Say whether a list is reported as too short only because its items failed themselves."""
    return details["type"] == "too_short" and bool(details["input"])


def _describe(details: ErrorDetails, document: Document, catalog: Catalog, model: type[RegistryModel]) -> str:
    location = details["loc"]
    place = document.where(location)
    shown = dotted(_present(location, document))
    kind = details["type"]
    if kind in {"union_tag_invalid", "literal_error"} and _is_entry(location):
        entry = document.data[str(location[0])][int(location[1])]
        where = document.where((location[0], location[1], "type"))
        return f"{where} {catalog.unknown(LISTS[str(location[0])], str(entry.get('type')))}"
    if kind == "union_tag_not_found":
        installed = ", ".join(catalog.names(LISTS[str(location[0])]))
        return f"{place} {shown}: the key `type` is missing; installed: {installed}"
    if kind == "extra_forbidden":
        allowed = _fields_around(location, document, catalog, model)
        key = str(location[-1])
        return f"{place} {shown}: unknown key {key!r}{nearest(key, allowed)}; allowed: {', '.join(sorted(allowed))}"
    if kind == "missing":
        return f"{place} {shown}: the key {str(location[-1])!r} is missing"
    message = details["msg"].removeprefix("Value error, ")
    given = details["input"]
    if kind == _NOT_REPEATED:
        return f"{place} {shown}: {message}"
    suffix = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{place} {shown}: {message[0].lower()}{message[1:]}{suffix}"


def _is_entry(location: Location) -> bool:
    return len(location) in {2, 3, 4} and location[0] in LISTS and (len(location) == 2 or location[-1] == "type")


def _present(location: Location, document: Document) -> list[int | str]:
    """Drop the parts of a location that are pydantic's own tags and no keys of the document."""
    kept: list[int | str] = []
    node: Any = document.data
    for index, part in enumerate(location):
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            if index == len(location) - 1:
                kept.append(part)
            continue
        kept.append(part)
    return kept


def _fields_around(
    location: Location, document: Document, catalog: Catalog, model: type[RegistryModel]
) -> Sequence[str]:
    """Return the keys that are allowed where an unknown one was found."""
    current: Any = model
    for part in location[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        candidates = _models(current)
        tagged = [candidate for candidate in candidates if _tag(candidate) == part]
        if tagged:
            current = tagged[0]
    candidates = _models(current)
    return list(candidates[0].model_fields) if candidates else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation: itself, or the members of a union, tuple or Annotated."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    found: list[type[BaseModel]] = []
    for argument in typing.get_args(annotation):
        found.extend(_models(argument))
    return found


def _tag(candidate: type[BaseModel]) -> str | None:
    field = candidate.model_fields.get("type")
    names = typing.get_args(field.annotation) if field else ()
    return str(names[0]) if names else None


def entry_lists(model: RegistryModel) -> dict[str, tuple[EntryConfig, ...]]:
    """Return the four lists of entries of a validated registry."""
    return {key: getattr(model, key) for key in LISTS}
