"""How a run looks: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from saebench_core.api.running import Listener
from saebench_core.plan import Plan, Task

__all__ = ["BarListener", "LineListener", "make_listener"]

_QUIET_SECONDS: Final = 10.0


def make_listener(console: Console) -> BarListener | LineListener:
    """Return bars for a terminal, lines for everything else."""
    return BarListener(console) if console.is_terminal else LineListener(console)


@final
class LineListener(Listener):
    """Prints a line when a task of some length starts or fails, and every ten seconds within it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = self._worked = 0
        self._last = 0.0
        self._first: tuple[str, int, float] = ("", 0, 0.0)
        self._scores = 0

    def plan(self, plan: Plan, waiting: Sequence[Task]) -> None:
        """Say how much there is to do."""
        self._total = len(waiting)
        expected = plan.total(waiting)
        self._line(
            f"{len(plan.cells)} cells, {len(plan.tasks)} tasks, {self._total} of them to do, "
            f"about {duration(expected.seconds)}, {size(expected.disk_bytes)} on disk"
        )

    def start(self, task: Task, left: int) -> None:
        """Name the task, unless it is one of many short ones."""
        self._worked += 1
        self._last, self._first = time.monotonic(), ("", 0, 0.0)
        if task.kind == "score":
            return
        self._line(f"[{self._worked}/{self._total}] {label_of(task, left)}")

    def progress(self, label: str, done: int, total: int) -> None:
        """Print a line now and then, with the time left at the pace of what this run did of the task."""
        now = time.monotonic()
        if label != self._first[0] or done < self._first[1]:
            self._first = (label, done, now)
        if now - self._last >= _QUIET_SECONDS:
            self._last = now
            _, before, since = self._first
            left = f", about {duration((total - done) * (now - since) / (done - before))} left" if done > before else ""
            self._line(f"    {label}: {done:,} of {total:,}{left}")

    def done(self, task: Task, error: str | None) -> None:
        """Tell failures, count scores."""
        self._scores += task.kind == "score" and error is None
        if error is not None:
            self._line(f"FAILED {task.label}: {error}")

    def close(self) -> None:
        """Say how many scores were computed."""
        if self._scores:
            self._line(f"{self._scores} score{'s' if self._scores > 1 else ''} computed")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@final
class BarListener(Listener):
    """One bar for all tasks, one for the work under way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: TaskID | None = None
        self._work: TaskID | None = None
        self._label = ""

    def plan(self, plan: Plan, waiting: Sequence[Task]) -> None:
        """Start the bars."""
        if not waiting:
            return
        expected = plan.total(waiting)
        text = f"{len(plan.cells)} cells, {len(waiting)} tasks to do, about {duration(expected.seconds)}"
        self.console.print(text, markup=False, highlight=False)
        self._bars.start()
        self._tasks = self._bars.add_task("tasks", total=len(waiting))

    def start(self, task: Task, left: int) -> None:
        """Show the task on the second bar."""
        if self._work is not None:
            self._bars.remove_task(self._work)
        self._work, self._label = self._bars.add_task(label_of(task, left), total=None), task.label

    def progress(self, label: str, done: int, total: int) -> None:
        """Move the second bar."""
        if self._work is not None:
            self._bars.update(self._work, description=label, completed=done, total=total)

    def done(self, task: Task, error: str | None) -> None:
        """Move the first bar; tell failures above it."""
        if self._tasks is not None:
            self._bars.advance(self._tasks)
        if error is not None:
            self._bars.console.print(f"FAILED {task.label}: {error}", markup=False, style="red")

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def label_of(task: Task, left: int) -> str:
    """Return a task's label, and how many of its products are to be made where some are there."""
    return task.label if left == len(task.products) else f"{task.label}, {left} of them to do"


def duration(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Return a size as people say it: ``3.2 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
