"""What a cell produced, as records; and the journal of a sweep on disk.

`CellResult` is the public record behind ``saebench results --json``. It holds no times, so that equal runs give
equal bytes; times live in `CellRecord` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, final

from pydantic import BaseModel, ConfigDict

from saebench_core.store import write_atomically

__all__ = [
    "SCHEMA_VERSION",
    "CellRecord",
    "CellResult",
    "EntryRef",
    "Journal",
    "MetricValue",
    "Sweep",
    "read_curves",
    "results_json",
]

SCHEMA_VERSION: Final = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@final
class EntryRef(_Record):
    """A registry entry as a result refers to it."""

    name: str
    type: str
    config: Mapping[str, Any]


@final
class MetricValue(_Record):
    """One score of one cell; absent numbers are None, never NaN.

    Attributes:
        status: ``ok`` or ``not_applicable``.
        reason: why it does not apply.
        value: the score.
        floor: score of a no-op or chance, one number for all cells of a backbone and site.
        ceiling: score of the best reference.
        n: items behind the value.
        direction: ``higher``, ``lower`` or ``none``.
        unit: unit of the value.
        reads: parts of the SAE the score depends on.
        valid_null: whether the cell's constraint randomises something that the score reads.
        metric_version: version of the metric.
    """

    status: Literal["ok", "not_applicable"]
    reason: str | None = None
    value: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    n: int | None = None
    direction: Literal["higher", "lower", "none"]
    unit: str
    reads: Literal["encoder", "decoder", "both"]
    valid_null: bool
    metric_version: int


@final
class CellResult(_Record):
    """One cell of the cross-product with all its scores.

    Attributes:
        artifacts: what lies in the workdir, name to path relative to it: ``sae`` (a folder that SAELens
            loads, unless a plugin's rule has no form there), ``certificate``, ``curves``, ``drift``,
            ``items/<metric>``.
        l0_target: None where it is measured on a loaded SAE that has not been loaded yet.
        flags: such as ``missed_l0``, ``collapsed``, ``not_converged``.
    """

    cell_id: str
    backbone: EntryRef
    site: str
    architecture: EntryRef
    constraint: EntryRef
    init: str
    l0_target: float | None
    seed: int
    status: Literal["done", "failed", "pending", "excluded"]
    error: str | None = None
    flags: tuple[str, ...] = ()
    metrics: Mapping[str, MetricValue] = {}
    certificate: Mapping[str, Any] | None = None
    artifacts: Mapping[str, str] = {}


@final
class CellRecord(_Record):
    """A cell's result with what is not part of the comparison.

    Attributes:
        result: the result.
        finished_ms: when its last product was published, milliseconds since 1970.
        seconds: time of building, by kind of task.
        params: flat settings (numbers and text) that people filter and group by, the same keys for every cell.
        plugins: distribution and version behind the entries, e.g. ``{"architecture": "saebench-core 0.1.0"}``; metrics
            have keys such as ``metric.reconstruction``.
        paired: False for a loaded SAE and its references, which share neither draw nor batches with it.
    """

    result: CellResult
    finished_ms: int
    seconds: Mapping[str, float] = {}
    params: Mapping[str, str | float | int] = {}
    plugins: Mapping[str, str] = {}
    paired: bool = True


@final
class Sweep(_Record):
    """One registry as it was run; running it again is the same sweep.

    Attributes:
        sweep_id: hash of name, cells and metrics.
        name: name of the registry.
        started_ms: when it was first started.
        registry: text of the registry file as written.
        cells: ids of its cells in order.
        environment: versions of packages, device, commit.
    """

    sweep_id: str
    name: str
    started_ms: int
    registry: str
    cells: tuple[str, ...]
    environment: Mapping[str, str] = {}


def results_json(cells: list[CellResult]) -> str:
    """Return the public JSON document of results; equal results give equal bytes."""
    document = {"schema": SCHEMA_VERSION, "cells": [cell.model_dump(mode="json") for cell in cells]}
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Return the points of a training curve: ``{"step", "rows", "time_ms", "values": {name: number}}``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


@final
class Journal:
    """Sweeps and their cells' records below ``<workdir>/sweeps``; what trackers and reports are rebuilt from."""

    def __init__(self, workdir: Path) -> None:
        self.root = workdir / "sweeps"

    def write_sweep(self, sweep: Sweep) -> Sweep:
        """Keep a sweep; one that is there already keeps its start time."""
        path = self.root / sweep.sweep_id / "sweep.json"
        if path.is_file():
            earlier = Sweep.model_validate_json(path.read_text(encoding="utf-8"))
            sweep = sweep.model_copy(update={"started_ms": earlier.started_ms})
        write_atomically(path, sweep.model_dump_json(indent=1))
        return sweep

    def write_cell(self, sweep_id: str, record: CellRecord) -> None:
        """Keep a cell's record, in place of an earlier one."""
        path = self.root / sweep_id / "cells" / f"{record.result.cell_id}.json"
        write_atomically(path, record.model_dump_json(indent=1))

    def sweeps(self) -> list[Sweep]:
        """Return all sweeps, oldest first."""
        found = [
            Sweep.model_validate_json(path.read_text(encoding="utf-8"))
            for path in sorted(self.root.glob("*/sweep.json"))
        ]
        return sorted(found, key=lambda sweep: (sweep.started_ms, sweep.sweep_id))

    def cells(self, sweep: Sweep) -> Iterator[CellRecord]:
        """Yield the records of a sweep's cells that have one, in the sweep's order."""
        for cell_id in sweep.cells:
            path = self.root / sweep.sweep_id / "cells" / f"{cell_id}.json"
            if path.is_file():
                yield CellRecord.model_validate_json(path.read_text(encoding="utf-8"))
