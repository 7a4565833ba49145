"""Which SAEs are trained before which: twins that constraints start from, and groups that see one stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from saebench_core.catalog import Catalog
from saebench_core.errors import PluginError
from saebench_core.interfaces.constraint import Constraint
from saebench_core.registry import Cell, Entry
from saebench_core.store import canonical_json

__all__ = ["groups", "twin_of", "with_twins"]


def twin_of(cell: Cell, catalog: Catalog) -> Cell | None:
    """Return the cell whose SAE a cell's constraint starts from."""
    needs = cast(Constraint, cell.constraint.instance).needs
    if needs is None:
        return None
    if cell.reference is not None:
        return cell.reference.of
    plugin = catalog.get("constraint", needs)
    config = plugin.spec.config.model_validate({"type": needs, "init": cell.constraint.config.init})
    return replace(cell, constraint=Entry(needs, cast(Any, config), plugin))


def with_twins(cells: tuple[Cell, ...], catalog: Catalog) -> tuple[Cell, ...]:
    """Return the cells, and before each the twin that its constraint starts from, if it is not among them.

    Raises:
        PluginError: if constraints need one another in a circle.
    """
    for cell in cells:
        _depth(cell, catalog)
    known = {cell.cell_id for cell in cells}
    result: list[Cell] = []
    for cell in cells:
        twin = twin_of(cell, catalog)
        while twin is not None and twin.cell_id not in known:
            known.add(twin.cell_id)
            result.insert(0, twin)
            twin = twin_of(twin, catalog)
    return (*result, *cells)


def groups(cells: tuple[Cell, ...], catalog: Catalog) -> Iterator[tuple[Cell, ...]]:
    """Yield the cells that see the same stream; twins that others start from come in groups before them.

    References of a loaded SAE are a group of their own: where it cannot be read, the other cells go on.
    """
    waiting: dict[tuple[int, str, str, str, str, str], list[Cell]] = {}
    for cell in cells:
        training = canonical_json(cell.training.model_dump(mode="json"))
        beside = cell.reference.of.cell_id if cell.reference else ""
        key = (_depth(cell, catalog), cell.backbone.name, cell.site, str(cell.seed), training, beside)
        waiting.setdefault(key, []).append(cell)
    for key in sorted(waiting, key=lambda key: key[0]):
        yield tuple(waiting[key])


def _depth(cell: Cell, catalog: Catalog) -> int:
    """Return how many SAEs must be trained before this one.

    Raises:
        PluginError: if constraints need one another in a circle.
    """
    seen: list[str] = []
    one: Cell | None = cell
    while one is not None:
        if one.constraint.type in seen:
            circle = " -> ".join([*seen, one.constraint.type])
            raise PluginError(f"constraints need one another in a circle: {circle}")
        seen.append(one.constraint.type)
        one = twin_of(one, catalog)
    return len(seen) - 1
