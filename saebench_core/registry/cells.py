"""Entries and cells as validated records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast, final

from saebench_core.catalog import Plugin
from saebench_core.interfaces.architecture import ArchitectureConfig
from saebench_core.interfaces.backbone import BackboneConfig
from saebench_core.interfaces.constraint import ConstraintConfig
from saebench_core.interfaces.entry import EntryConfig
from saebench_core.interfaces.loaded import LoadedConfig
from saebench_core.store import content_key
from saebench_core.training.settings import TrainingSettings

__all__ = ["AXES", "Cell", "Entry", "Reference", "applies", "matches"]

C = TypeVar("C", bound=EntryConfig)
CELL_SCHEMA = 1
AXES = ("backbone", "site", "architecture", "constraint", "l0", "seed")


@final
@dataclass(frozen=True, eq=False)
class Entry(Generic[C]):
    """One entry of a list.

    Attributes:
        name: unique in its list.
        config: validated configuration.
        plugin: what it is an entry of.
    """

    name: str
    config: C
    plugin: Plugin

    @property
    def type(self) -> str:
        """Name of the plugin."""
        return self.plugin.name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Configuration without bookkeeping, as JSON data."""
        return self.config.identity()

    @cached_property
    def instance(self) -> Any:
        """The plugin's object, built from the configuration; building loads nothing."""
        return self.plugin.spec.build(self.config)


@final
@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the cross-product.

    Attributes:
        backbone, architecture, constraint: entries.
        site: place in the backbone.
        d_in, d_sae: sizes.
        l0: target number of active latents; 0 where it is measured on a loaded SAE, and not known yet.
        seed: seed of weights and batch order.
        training: settings that apply here.
        excluded: left out by a rule.
        reference: for a reference of a loaded SAE, what it is trained from and beside.
    """

    backbone: Entry[BackboneConfig]
    site: str
    architecture: Entry[ArchitectureConfig] | Entry[LoadedConfig]
    constraint: Entry[ConstraintConfig]
    d_in: int
    d_sae: int
    l0: float
    seed: int
    training: TrainingSettings
    excluded: bool = False
    reference: Reference | None = None

    @property
    def measured(self) -> bool:
        """Whether the L0 is that of a loaded SAE: the SAE itself, or one of its references."""
        return isinstance(self.architecture.config, LoadedConfig)

    @property
    def loaded(self) -> bool:
        """Whether the SAE is loaded, not trained."""
        return self.measured and self.reference is None

    @property
    def recipe(self) -> Entry[Any]:
        """Entry that the SAE is trained from: its architecture, or the twin that a loaded SAE names."""
        return self.architecture if self.reference is None else self.reference.entry

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the cell's results depend on, versions of plugins left aside."""
        return {
            "schema": CELL_SCHEMA,
            "backbone": self.backbone.identity,
            "site": self.site,
            "architecture": self.architecture.identity,
            "constraint": self.constraint.identity,
            "l0": "measured" if self.measured else self.l0,
            "seed": self.seed,
            "training": self.training.model_dump(mode="json"),
        }

    @cached_property
    def cell_id(self) -> str:
        """Stable id: a hash of the identity."""
        return content_key(self.identity)[:16]

    @property
    def label(self) -> str:
        """Short name for people."""
        parts = (
            self.backbone.name,
            self.site,
            self.architecture.name,
            self.constraint.name,
            f"L0={self.l0:g}" if self.l0 else "L0 measured",
            f"s{self.seed}",
        )
        return " | ".join(parts)

    def axis(self, name: str) -> frozenset[str | int | float]:
        """Return the values by which a cell is matched along an axis: name and type of entries."""
        if name in {"backbone", "architecture", "constraint"}:
            entry = cast(Entry[Any], getattr(self, name))
            return frozenset({entry.name, entry.type})
        if name == "l0" and self.measured:
            return frozenset({"measured"})
        return frozenset({getattr(self, name)})


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What stands behind a reference of a loaded SAE.

    Attributes:
        entry: the loaded SAE's ``twin``, with its size.
        of: the loaded SAE's cell.
    """

    entry: Entry[ArchitectureConfig]
    of: Cell


def applies(only: tuple[str, ...] | None, backbone: Entry[BackboneConfig]) -> bool:
    """Say whether an entry with this ``only`` is for a backbone."""
    return only is None or bool({backbone.name, backbone.type} & set(only))


def matches(cell: Cell, wanted: Mapping[str, Any]) -> bool:
    """Say whether a cell matches every axis of an exclude rule; None matches everything."""
    for axis, choice in wanted.items():
        if choice is None:
            continue
        choices = set(choice) if isinstance(choice, tuple) else {choice}
        if not (cell.axis(axis) & choices):
            return False
    return True
