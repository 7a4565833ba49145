"""A registry in a folder, run by the command line, and its cells afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.helpers.registries import Outcome, call

__all__ = ["cells", "of", "results", "run"]


def run(folder: Path, *args: Any) -> Outcome:
    """Run the folder's registry, without a tracker."""
    return call("run", "--no-tracking", *args, cwd=folder)


def results(folder: Path) -> str:
    """Return what ``results --json`` prints."""
    return call("results", "--json", cwd=folder).out


def cells(folder: Path) -> list[dict[str, Any]]:
    """Return the cells of ``results --json``."""
    found: list[dict[str, Any]] = json.loads(results(folder))["cells"]
    return found


def of(cells: Iterable[Any], constraint: str, seed: int = 0, architecture: str = "theirs") -> Any:
    """Return the one cell, or result of a cell, with this constraint, seed and architecture."""
    (found,) = [
        cell
        for cell in cells
        if (cell.architecture.name, cell.constraint.name, cell.seed) == (architecture, constraint, seed)
    ]
    return found
