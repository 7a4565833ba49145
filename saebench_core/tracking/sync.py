"""Rebuilds MLflow from the journal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from saebench_core.results import CellRecord, Journal, Sweep
from saebench_core.tracking.tracker import SweepStatus, Tracker

__all__ = ["SyncCount", "sync"]


class SyncCount(NamedTuple):
    """What a sync went through, and how many cells it had to write; the second of two syncs writes none."""

    sweeps: int
    cells: int
    written: int


def _status(sweep: Sweep, records: list[CellRecord]) -> SweepStatus:
    states = {record.result.cell_id: record.result.status for record in records}
    if "failed" in states.values():
        return "failed"
    complete = all(states.get(cell) in ("done", "excluded") for cell in sweep.cells)
    return "done" if complete else "interrupted"


def sync(
    journal: Journal,
    uri: str | None,
    workdir: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    weights: bool = True,
) -> SyncCount:
    """Bring a tracker up to the journal; running it twice changes nothing.

    Args:
        journal: what to show.
        uri: tracking URI, or None for the workdir's own database.
        workdir: what the artifacts' paths are relative to.
        progress: called with the cells done and the cells in all.
        weights: whether to upload the SAEs' weights.

    Raises:
        ConnectionError: if the server or database cannot be reached.
    """
    tracker = Tracker(uri, workdir, weights=weights)
    try:
        work = [(sweep, list(journal.cells(sweep))) for sweep in journal.sweeps()]
        total, done, written = sum(len(records) for _, records in work), 0, 0
        for sweep, records in work:
            tracker.reconcile(sweep)
            live = tracker.is_live(sweep)
            for record in records:
                written += tracker.cell(sweep, record)
                done += 1
                if progress is not None:
                    progress(done, total)
            if not live:
                latest = max((record.finished_ms for record in records), default=sweep.started_ms)
                tracker.end(sweep, _status(sweep, records), latest)
        return SyncCount(len(work), done, written)
    finally:
        tracker.close()
