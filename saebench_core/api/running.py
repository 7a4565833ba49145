"""Runs what is left of an open registry, and logs every cell as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from saebench_core.api.checks import check_device, check_space
from saebench_core.api.opening import Opened
from saebench_core.api.process import termination, threads
from saebench_core.executors.inline import run_inline
from saebench_core.interfaces.context import Progress
from saebench_core.plan import Plan, Task
from saebench_core.registry import Cell
from saebench_core.results import CellRecord, Sweep
from saebench_core.tasks import Workbench, pick_device
from saebench_core.tasks.collect import collect_record
from saebench_core.tracking import SafeTracker

__all__ = ["Listener", "RunReport", "run_opened"]


class Listener:
    """Hears how a run goes; the default hears nothing."""

    def plan(self, plan: Plan, waiting: Sequence[Task]) -> None:
        """A run starts with this plan, of which these tasks have work to do."""

    def start(self, task: Task, left: int) -> None:
        """A task starts, of which so many products are to be made."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Long work has come so far."""

    def done(self, task: Task, error: str | None) -> None:
        """A task ended."""


@final
class _Heeding(Listener):
    """Passes on what it hears, and looks each time whether the process was asked to end."""

    def __init__(self, listener: Listener, heed: Callable[[], None]) -> None:
        self._listener, self._heed = listener, heed

    def start(self, task: Task, left: int) -> None:
        self._heed()
        self._listener.start(task, left)

    def progress(self, label: str, done: int, total: int) -> None:
        self._heed()
        self._listener.progress(label, done, total)

    def done(self, task: Task, error: str | None) -> None:
        self._listener.done(task, error)


@final
@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        records: all cells concerned.
        worked: how many tasks had work to do.
        exit_code: 0 if all cells are done, 1 if some failed.
    """

    records: list[CellRecord]
    worked: int
    exit_code: int


def run_opened(
    opened: Opened, *, tracking_uri: str | None = None, track: bool = True, listener: Listener | None = None
) -> RunReport:
    """Do what is left to do, log every cell, and return all records.

    A run that is killed goes on where it was when it is started again.

    Args:
        opened: an open registry.
        tracking_uri: of MLflow; by default a database in the workdir.
        track: whether to log to MLflow at all.
        listener: hears how it goes.

    Raises:
        InputError: if the device is not there.
        InsufficientSpaceError: if the disk has less room than the plan expects to need.
        KeyboardInterrupt: if the user interrupts.
    """
    listener = listener or Listener()
    waiting = opened.plan.waiting(opened.store)
    check_device(opened.environment.device)
    check_space(opened, waiting)
    listener.plan(opened.plan, waiting)
    sweep = opened.journal.write_sweep(opened.sweep())
    tracker = SafeTracker(tracking_uri, opened.workdir) if track else None
    with termination() as heed, threads(opened.registry.runtime.threads), opened.store.hold(sweep.sweep_id):
        try:
            worked = _work(opened, sweep, tracker, _Heeding(listener, heed))
        except BaseException:
            _end(tracker, sweep, "interrupted")
            raise
    records = opened.records()
    failed = any(record.result.status == "failed" for record in records)
    _end(tracker, sweep, "failed" if failed else "done")
    return RunReport(records, worked, 1 if failed else 0)


def _work(opened: Opened, sweep: Sweep, tracker: SafeTracker | None, listener: Listener) -> int:
    """Do the tasks; a cell goes to journal and tracker as soon as its last task is done."""
    progress: Progress = listener.progress
    device = pick_device(opened.registry.runtime.device)
    seconds = opened.registry.runtime.checkpoint_seconds
    bench = Workbench(opened.store, opened.catalog, opened.environment, device, progress, seconds)
    left = {cell.cell_id: _tasks_of(cell, opened) for cell in opened.plan.cells}
    cells = {cell.cell_id: cell for cell in opened.plan.cells}
    if tracker is not None:
        tracker.begin(sweep)

    def close(cell_id: str) -> None:
        del left[cell_id]
        record = collect_record(cells[cell_id], opened.plan, opened.store, opened.failures, opened.workdir)
        opened.journal.write_cell(sweep.sweep_id, record)
        if tracker is not None:
            tracker.cell(sweep, record)

    def done(task: Task, error: str | None) -> None:
        listener.done(task, error)
        for cell in task.cells:
            if cell.cell_id in left and all(other.done(opened.store) for other in left[cell.cell_id]):
                close(cell.cell_id)

    worked = run_inline(opened.plan, bench, opened.failures, listener.start, done)
    for cell_id in list(left):
        close(cell_id)
    return worked


def _tasks_of(cell: Cell, opened: Opened) -> list[Task]:
    metrics = opened.registry.metrics_of(cell)
    return [opened.plan.scores[cell.cell_id, entry.name] for entry in metrics]


def _end(tracker: SafeTracker | None, sweep: Sweep, status: str) -> None:
    if tracker is None:
        return
    tracker.end(sweep, "done" if status == "done" else "failed" if status == "failed" else "interrupted")
    tracker.close()
