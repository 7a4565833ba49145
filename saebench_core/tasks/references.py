"""Cells whose L0 is measured: a loaded SAE, and the references that are trained at its L0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from saebench_core.errors import InputError
from saebench_core.interfaces.architecture import Architecture, Shape
from saebench_core.plan import Product, Task
from saebench_core.registry import Cell
from saebench_core.store import Store

__all__ = ["at_measured_l0", "shape_of", "with_measured_l0"]


def at_measured_l0(cell: Cell, measured: Mapping[str, Product], store: Store) -> Cell:
    """Return a cell with the L0 that was measured, if it has one and that is known; the id stays.

    Args:
        cell: any cell.
        measured: the loaded SAE behind a cell, by cell id.
        store: where it is, once it is loaded.
    """
    product = measured.get(cell.cell_id)
    if product is None or not store.has(product.kind, product.key):
        return cell
    path = store.path(product.kind, product.key) / "certificate.json"
    return replace(cell, l0=float(json.loads(path.read_text(encoding="utf-8"))["realised_l0"]))


def with_measured_l0(task: Task, measured: Mapping[str, Product], store: Store) -> Task:
    """Return a train task whose cells have their L0.

    Raises:
        InputError: if a loaded SAE has no active latent, so that there is nothing to train references at.
    """
    cells = tuple(at_measured_l0(cell, measured, store) for cell in task.cells)
    silent = next((cell for cell in cells if cell.reference is not None and not cell.l0), None)
    if silent is not None:
        raise InputError(f"{silent.architecture.name} has no active latent on these rows: no L0 to train references at")
    return replace(task, cells=cells)


def shape_of(cell: Cell) -> Shape:
    """Return the sizes that a recipe is made for; a reference takes a whole L0 where its architecture needs one."""
    shape = Shape(cell.d_in, cell.d_sae, cell.l0)
    if cell.reference is None:
        return shape
    try:
        cast(Architecture, cell.recipe.instance).recipe(shape)
    except InputError:
        return replace(shape, l0=float(max(1, round(cell.l0))))
    return shape
