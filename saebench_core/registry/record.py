"""The registry as a validated record: made from a file, a preset or Python data; it knows its cells and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from saebench_core.catalog import Catalog, make_catalog
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.backbone import BackboneDescription
from saebench_core.interfaces.metric import MetricConfig
from saebench_core.presets import PREFIX, preset_text
from saebench_core.registry.cells import AXES, Cell, Entry, applies
from saebench_core.registry.document import Document
from saebench_core.registry.model import RuntimeSettings
from saebench_core.store import content_key

__all__ = ["Registry"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Registry:
    """A validated registry; `from_file`, `from_preset` and `from_dict` make one.

    Attributes:
        name: of the sweep.
        notice: line to print with results, or None.
        text: the file as written.
        overrides: ``--set`` options in force.
        cells: all cells in order, excluded ones marked.
        metrics: entries.
        descriptions: backbone entry name to its description.
        runtime: device, number format, threads.
        catalog: plugins that it was checked against.
    """

    name: str
    notice: str | None
    text: str
    overrides: tuple[str, ...]
    cells: tuple[Cell, ...]
    metrics: tuple[Entry[MetricConfig], ...]
    descriptions: Mapping[str, BackboneDescription]
    runtime: RuntimeSettings
    catalog: Catalog

    @classmethod
    def from_file(cls, path: str | Path, *, overrides: Sequence[str] = (), catalog: Catalog | None = None) -> Registry:
        """Read, check and expand a registry file.

        Args:
            path: the file.
            overrides: ``key=value`` as ``--set`` takes them, such as ``training.steps=100``.
            catalog: plugins; by default those that are installed.

        Raises:
            InputError: one line for each problem, with file, line and column.
        """
        return _load(Document.read(Path(path), overrides), overrides, catalog)

    @classmethod
    def from_preset(cls, name: str, *, overrides: Sequence[str] = (), catalog: Catalog | None = None) -> Registry:
        """Check and expand a registry that comes with the package; the other arguments are those of `from_file`.

        Args:
            name: of the preset, such as ``smoke``.
            overrides: ``key=value``.
            catalog: plugins.

        Raises:
            InputError: if there is none of that name, or as `from_file`.
        """
        name = name.removeprefix(PREFIX)
        return _load(Document(f"{PREFIX}{name}", preset_text(name), overrides), overrides, catalog)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        overrides: Sequence[str] = (),
        catalog: Catalog | None = None,
        label: str = "registry",
    ) -> Registry:
        """Check and expand a registry that is written in Python; the other arguments are those of `from_file`.

        Args:
            data: the keys of a registry, with plain values: numbers, text, lists, mappings.
            overrides: ``key=value``.
            catalog: plugins.
            label: what errors call it.

        Raises:
            InputError: one line for each problem, with the key that is concerned.
        """
        return _load(Document.of(label, data, overrides), overrides, catalog)

    def __repr__(self) -> str:
        metrics = ", ".join(entry.name for entry in self.metrics)
        return f"Registry({self.name!r}, {len(self.active)} cells, metrics: {metrics})"

    @property
    def active(self) -> tuple[Cell, ...]:
        """Cells that are not excluded."""
        return tuple(cell for cell in self.cells if not cell.excluded)

    @property
    def sweep_id(self) -> str:
        """Hash of name, active cells and metrics: the same registry is the same sweep."""
        metrics = [entry.identity | {"name": entry.name} for entry in self.metrics]
        return content_key({"name": self.name, "cells": [cell.cell_id for cell in self.active], "metrics": metrics})[
            :16
        ]

    @property
    def headline(self) -> list[str]:
        """Scores that tables show by default, in the order of the metrics."""
        return [
            f"{entry.name}/{name}"
            for entry in self.metrics
            for name, info in entry.instance.scores().items()
            if info.headline
        ]

    def backbone(self, name: str | None = None) -> dict[str, Any]:
        """Return a backbone's entry as it was given, for `score` or another registry.

        Args:
            name: of the entry; may be left out where there is one only.

        Raises:
            InputError: if there is none of that name, or several to choose from.
        """
        known = {cell.backbone.name: cell.backbone for cell in self.cells}
        if name is None and len(known) == 1:
            (name,) = known
        if name is None or name not in known:
            hint = nearest(name, known) if name else ""
            raise InputError(f"no backbone {name!r} in {self.name}{hint}; there are: {', '.join(known)}")
        return known[name].config.model_dump(mode="json", exclude_unset=True)

    def metrics_of(self, cell: Cell) -> tuple[Entry[MetricConfig], ...]:
        """Return the metrics that score a cell."""
        return tuple(entry for entry in self.metrics if applies(entry.config.only, cell.backbone))

    def select(self, only: Sequence[str]) -> tuple[Cell, ...]:
        """Return the active cells that match every ``key=value``, values separated by ``|``.

        Raises:
            InputError: if a key is no axis, or nothing matches.
        """
        cells = self.active
        for option in only:
            key, _, wanted = option.partition("=")
            if key not in AXES or not wanted:
                raise InputError(
                    f"--only {option}: expected AXIS=NAME with an axis of {', '.join(AXES)}{nearest(key, AXES)}"
                )
            choices = wanted.split("|")
            kept = tuple(cell for cell in cells if {str(value) for value in cell.axis(key)} & set(_numbers(choices)))
            if not kept:
                known = sorted({str(value) for cell in cells for value in cell.axis(key)})
                raise InputError(
                    f"--only {option}: no cell matches{nearest(wanted, known)}; there are: {', '.join(known)}"
                )
            cells = kept
        return cells


def _load(document: Document, overrides: Sequence[str], catalog: Catalog | None) -> Registry:
    from saebench_core.registry.expand import load_registry  # makes records of the class above

    return load_registry(document, catalog or make_catalog(), tuple(overrides))


def _numbers(choices: Sequence[str]) -> list[str]:
    """Return the choices, and those that are numbers also as floats print, so that 20 matches 20.0."""
    extended = list(choices)
    for choice in choices:
        try:
            extended.append(str(float(choice)))
        except ValueError:
            continue
    return extended
