"""From a validated document to named entries and cells, with every impossible value refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from saebench_core.catalog import Catalog
from saebench_core.errors import InputError, in_words, nearest
from saebench_core.interfaces.architecture import Architecture, ArchitectureConfig, Shape
from saebench_core.interfaces.backbone import Backbone, BackboneConfig, BackboneDescription, GroundTruth
from saebench_core.interfaces.constraint import Constraint, ConstraintConfig
from saebench_core.interfaces.entry import EntryConfig
from saebench_core.registry.cells import Cell, Entry, applies, matches
from saebench_core.registry.document import Document, Location
from saebench_core.registry.loaded import LoadedEntry, open_loaded
from saebench_core.registry.model import LISTS, RegistryModel, entry_lists, validate
from saebench_core.registry.plain import dotted
from saebench_core.registry.record import Registry
from saebench_core.store import canonical_json
from saebench_core.training.settings import TrainingSettings

__all__ = ["load_registry"]


def load_registry(document: Document, catalog: Catalog, overrides: tuple[str, ...] = ()) -> Registry:
    """Check and expand a document.

    Raises:
        InputError: one line for each problem, with its place.
    """
    model = validate(document, catalog)
    return _Expansion(document, catalog, model).registry(overrides)


@dataclass(frozen=True, eq=False)
class _Site:
    """One site of one backbone, with what is trained there."""

    backbone: Entry[BackboneConfig]
    name: str
    d_in: int
    l0: tuple[float, ...]
    training: TrainingSettings


class _Expansion:
    """Collects problems while it names entries and makes cells."""

    def __init__(self, document: Document, catalog: Catalog, model: RegistryModel) -> None:
        self.document = document
        self.model = model
        self.problems: list[str] = []
        self.entries: dict[str, list[Entry[Any]]] = {
            key: self._name_entries(key, configs, catalog) for key, configs in entry_lists(model).items()
        }
        self.descriptions: dict[str, BackboneDescription] = {}
        self.loaded: dict[str, LoadedEntry] = {}
        self.catalog = catalog

    def problem(self, location: Location, message: str) -> None:
        self.problems.append(f"{self.document.where(location)} {message}")

    def stop_on_problems(self) -> None:
        if self.problems:
            raise InputError(*dict.fromkeys(self.problems))

    def registry(self, overrides: tuple[str, ...]) -> Registry:
        self._check_only()
        self.stop_on_problems()
        sites = [site for index, entry in enumerate(self.entries["backbones"]) for site in self._sites(index, entry)]
        self.loaded = open_loaded(self.entries["architectures"], catalog=self.catalog, problem=self.problem)
        self.stop_on_problems()
        cells = tuple(self._exclude(self._cells(sites)))
        self._check_possible(cells)
        self._check_use(cells)
        self.stop_on_problems()
        return Registry(
            name=self.model.name,
            notice=self.model.notice,
            text=self.document.text,
            overrides=overrides,
            cells=cells,
            metrics=tuple(self.entries["metrics"]),
            descriptions=self.descriptions,
            runtime=self.model.runtime,
            catalog=self.catalog,
        )

    def _name_entries(self, key: str, configs: Sequence[EntryConfig], catalog: Catalog) -> list[Entry[Any]]:
        names = [config.name or default for config, default in zip(configs, _default_names(configs), strict=True)]
        for index, name in enumerate(names):
            if name in names[:index]:
                self.problem(
                    (key, index), f"{key}[{index}]: a second entry called {name!r}; give it another `name` or drop it"
                )
        kind = LISTS[key]
        return [
            Entry(name, config, catalog.get(kind, cast(Any, config).type))
            for name, config in zip(names, configs, strict=True)
        ]

    def _check_only(self) -> None:
        known = {name for entry in self.entries["backbones"] for name in (entry.name, entry.type)}
        for key in ("architectures", "constraints", "metrics"):
            for index, entry in enumerate(self.entries[key]):
                for position, name in enumerate(entry.config.only or ()):
                    if name not in known:
                        hint = f"{nearest(name, known)}; there are: {', '.join(sorted(known))}"
                        message = f"{key}[{index}].only: no backbone {name!r}{hint}"
                        self.problem((key, index, "only", position), message)

    def _sites(self, index: int, entry: Entry[BackboneConfig]) -> Iterator[_Site]:
        try:
            description = cast(Backbone, entry.instance).describe()
        except Exception as error:  # a plugin may raise anything
            self.problem(("backbones", index), f"backbones[{index}] ({entry.name}): {in_words(error)}")
            return
        self.descriptions[entry.name] = description
        names = entry.config.sites or tuple(description.sites)
        if entry.config.sites is None and len(names) != 1:
            self.problem(
                ("backbones", index), f"backbones[{index}]: the key `sites` is missing; {_site_list(description)}"
            )
            return
        training = self._training(index, entry.config.training)
        for position, name in enumerate(names):
            if name not in description.sites:
                hint = f"{nearest(name, description.sites)}; {_site_list(description)}"
                message = f"backbones[{index}].sites: no site {name!r}{hint}"
                self.problem(("backbones", index, "sites", position), message)
            elif training is not None:
                yield _Site(entry, name, description.sites[name], entry.config.l0 or self.model.l0, training)

    def _training(self, index: int, given: Any) -> TrainingSettings | None:
        if given is None:
            return self.model.training
        try:
            return TrainingSettings.model_validate(given)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                location = ("backbones", index, "training", *details["loc"])
                key = str(details["loc"][-1]) if details["loc"] else ""
                hint = nearest(key, TrainingSettings.model_fields) if details["type"] == "extra_forbidden" else ""
                message = details["msg"].removeprefix("Value error, ")
                self.problem(location, f"backbones[{index}].training{'.' + key if key else ''}: {message}{hint}")
            return None

    def _cells(self, sites: Sequence[_Site]) -> Iterator[Cell]:
        architectures = cast(list[Entry[ArchitectureConfig]], self.entries["architectures"])
        constraints = cast(list[Entry[ConstraintConfig]], self.entries["constraints"])
        for site, architecture in itertools.product(sites, architectures):
            if not applies(architecture.config.only, site.backbone):
                continue
            if architecture.name in self.loaded:
                yield from self._loaded_cells(site, architecture)
                continue
            d_sae = architecture.config.width(site.d_in)
            for l0, constraint, seed in itertools.product(site.l0, constraints, self.model.seeds):
                if applies(constraint.config.only, site.backbone):
                    sizes = (site.d_in, d_sae, l0, seed)
                    yield Cell(site.backbone, site.name, architecture, constraint, *sizes, site.training)

    def _loaded_cells(self, site: _Site, architecture: Entry[Any]) -> Iterator[Cell]:
        constraints = [entry for entry in self.entries["constraints"] if applies(entry.config.only, site.backbone)]
        loaded, index = self.loaded[architecture.name], self.entries["architectures"].index(architecture)
        sizes = (site.d_in, loaded.shape.d_sae, 0.0, self.model.seeds[0])
        try:
            plain = loaded.check(site.d_in, f"{site.name} of {site.backbone.name}", constraints)
        except InputError as error:
            self.problem(("architectures", index), f"architectures[{index}] ({architecture.name}): {error}")
            return
        itself = Cell(site.backbone, site.name, architecture, plain, *sizes, site.training)
        yield from loaded.cells(itself, constraints, self.model.seeds)

    def _check_possible(self, cells: Sequence[Cell]) -> None:
        """Refuse active cells that no SAE can have: more active latents than there are, a rule that cannot."""
        seen: set[tuple[int, str, int, int, float]] = set()
        for cell in cells:
            where = (id(cell.backbone), cell.site, id(cell.architecture), id(cell.constraint), cell.l0)
            if cell.excluded or cell.loaded or where in seen:
                continue
            seen.add(where)
            name = f"{cell.architecture.name} on {cell.backbone.name}"
            if cell.constraint.config.init == "truth" and not isinstance(cell.backbone.instance, GroundTruth):
                index = self.entries["constraints"].index(cell.constraint)
                message = f"constraints[{index}].init: truth needs a backbone that knows its features"
                hint = f"{cell.backbone.name} knows none; name in `only` those that do"
                self.problem(("constraints", index, "init"), f"{message}; {hint}")
                continue
            if cell.l0 > cell.d_sae:
                self.problem(self._l0_place(cell), f"l0 {cell.l0:g} is more than the {cell.d_sae} latents of {name}")
                continue
            shape = Shape(cell.d_in, cell.d_sae, cell.l0 or 1.0)  # a measured L0 is not known yet
            who = name
            try:
                recipe = cast(Architecture, cell.recipe.instance).recipe(shape)
                who = f"{name}, {cell.constraint.name}"
                cast(Constraint, cell.constraint.instance).adapt(recipe, shape)
            except Exception as error:  # a plugin may raise anything
                self.problem(self._l0_place(cell), f"{who}: {in_words(error)}")

    def _l0_place(self, cell: Cell) -> Location:
        if cell.measured:
            return ("architectures", self.entries["architectures"].index(cell.architecture))
        own = cell.backbone.config.l0
        if own is not None:
            return ("backbones", self.entries["backbones"].index(cell.backbone), "l0", own.index(cell.l0))
        return ("l0", self.model.l0.index(cell.l0))

    def _exclude(self, cells: Iterator[Cell]) -> Iterator[Cell]:
        rules = [rule.model_dump() for rule in self.model.exclude]
        used = [False] * len(rules)
        for cell in cells:
            hits = [index for index, rule in enumerate(rules) if matches(cell, rule)]
            for index in hits:
                used[index] = True
            yield replace(cell, excluded=True) if hits else cell
        for index, hit in enumerate(used):
            if not hit and not self.problems:
                self.problem(("exclude", index), f"exclude[{index}]: matches no cell; entries go by name or type")

    def _check_use(self, cells: Sequence[Cell]) -> None:
        if self.problems:
            return
        active = [cell for cell in cells if not cell.excluded]
        used = {id(entry) for cell in active for entry in (cell.backbone, cell.architecture, cell.constraint)}
        backbones = {cell.backbone for cell in active}
        for key, entries in self.entries.items():
            for index, entry in enumerate(entries):
                in_use = (
                    any(applies(entry.config.only, backbone) for backbone in backbones)
                    if key == "metrics"
                    else id(entry) in used
                )
                if not in_use:
                    self.problem(
                        (key, index),
                        f"{key}[{index}]: no cell uses {entry.name!r}; remove it, or change `only` or `exclude`",
                    )
        seen: dict[str, Cell] = {}
        for cell in active:
            if cell.cell_id in seen:
                self._refuse_twice(seen[cell.cell_id], cell)
            seen.setdefault(cell.cell_id, cell)

    def _refuse_twice(self, first: Cell, second: Cell) -> None:
        """Name what makes two cells the same: a second entry that equals a first, or a value given twice."""
        for key in ("backbones", "architectures", "constraints"):
            earlier, later = (getattr(cell, LISTS[key]) for cell in (first, second))
            if earlier is not later:
                index = self.entries[key].index(later)
                self.problem(
                    (key, index), f"{key}[{index}]: {later.name!r} gives the same cells as {earlier.name!r}; drop one"
                )
                return
        backbone = self.entries["backbones"].index(second.backbone)
        own = second.backbone.config.l0
        lists: dict[Location, Sequence[Any]] = {
            ("seeds",): self.model.seeds,
            ("backbones", backbone, "l0") if own else ("l0",): own or self.model.l0,
            ("backbones", backbone, "sites"): second.backbone.config.sites or (),
        }
        for location, values in lists.items():
            for position, value in enumerate(values):
                if value in values[:position]:
                    self.problem((*location, position), f"{dotted(location)}: {value} is given twice")


def _site_list(description: BackboneDescription) -> str:
    sites = list(description.sites)
    shown = sites if len(sites) <= 6 else [*sites[:2], "...", sites[-1]]
    return f"sites: {', '.join(shown)}"


def _default_names(configs: Sequence[EntryConfig]) -> list[str]:
    """Return ``type``, or ``type[key=value]`` with the keys in which entries of a type differ."""
    dumps = [config.identity() for config in configs]
    names = []
    for dump in dumps:
        alike = [other for other in dumps if other["type"] == dump["type"]]
        keys = [key for key in dump if len({canonical_json(other.get(key)) for other in alike}) > 1]
        shown = ",".join(f"{key}={_shown(dump[key])}" for key in keys)
        names.append(f"{dump['type']}[{shown}]" if shown else str(dump["type"]))
    return names


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else canonical_json(value)
