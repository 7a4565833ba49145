"""The notebook's and the command line's door: open a registry, plan it, run it, read its results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, final

from saebench_core.activations import Manifest
from saebench_core.catalog import Catalog, PluginChoice, make_catalog
from saebench_core.errors import InputError, InsufficientSpaceError, SaebenchError, nearest
from saebench_core.executors.inline import run_inline
from saebench_core.interfaces.context import Progress, Split
from saebench_core.plan import Environment, Plan, Task, make_plan
from saebench_core.presets import PREFIX, preset_text
from saebench_core.registry import Cell, Document, Registry, load_registry, read_registry
from saebench_core.results import CellRecord, Journal, Sweep
from saebench_core.store import Store
from saebench_core.tasks import Workbench, collect_records, pick_device
from saebench_core.tasks.collect import collect_record
from saebench_core.tasks.export import export_splits
from saebench_core.tasks.perform import Failures
from saebench_core.tasks.workbench import pick_dtype
from saebench_core.tracking import SafeTracker

__all__ = [
    "Interruption",
    "Listener",
    "Opened",
    "RunReport",
    "export_activations",
    "open_registry",
    "reopen",
    "run",
]

_PACKAGES: Final = ("saebench-core", "torch", "transformers", "open_clip_torch", "scikit-learn", "numpy", "mlflow")
_SPACE_MARGIN: Final = 1.1
_OVERRIDE: Final = "# --set "


class Interruption(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); what is published stays."""


class Listener:
    """Hears how a run goes; the default hears nothing."""

    def plan(self, plan: Plan, waiting: Sequence[Task]) -> None:
        """A run starts with this plan, of which these tasks have work to do."""

    def start(self, task: Task) -> None:
        """A task starts."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Long work has come so far."""

    def done(self, task: Task, error: str | None) -> None:
        """A task ended."""


@final
@dataclass(frozen=True)
class Opened:
    """A registry with all that is needed to plan, run and read it.

    Attributes:
        registry: validated.
        catalog: installed plugins.
        plan: tasks of the chosen cells.
        workdir: everything is written below it.
    """

    registry: Registry
    catalog: Catalog
    plan: Plan
    workdir: Path
    environment: Environment

    @property
    def store(self) -> Store:
        """Products of the workdir."""
        return Store(self.workdir / "store")

    @property
    def failures(self) -> Failures:
        """Kept errors of the workdir."""
        return Failures(self.workdir)

    @property
    def journal(self) -> Journal:
        """Sweeps of the workdir."""
        return Journal(self.workdir)

    def records(self) -> list[CellRecord]:
        """Return what every cell has so far."""
        return collect_records(self.plan, self.store, self.failures, self.workdir)

    def sweep(self) -> Sweep:
        """Return the record of this sweep; one that was started before keeps its start time."""
        text = self.registry.text.rstrip("\n") + "\n"
        sweep = Sweep(
            sweep_id=self.registry.sweep_id,
            name=self.registry.name,
            started_ms=time.time_ns() // 1_000_000,
            registry=text + "".join(f"{_OVERRIDE}{override}\n" for override in self.registry.overrides),
            cells=tuple(cell.cell_id for cell in self.registry.active),
            environment=_environment(self.environment),
        )
        kept = next((kept for kept in self.journal.sweeps() if kept.sweep_id == sweep.sweep_id), sweep)
        return sweep.model_copy(update={"started_ms": kept.started_ms})


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


def open_registry(
    source: str,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    device: str | None = None,
    choice: PluginChoice | None = None,
) -> Opened:
    """Read, check and plan a registry.

    Args:
        source: path of a file, or ``preset:NAME``.
        workdir: folder that everything is written below; made at the first write.
        overrides: ``key=value``, applied before checking.
        only: ``axis=name``: the cells concerned.
        device: in place of the registry's ``runtime.device``.
        choice: which plugins are loaded.

    Raises:
        InputError: one line for each problem.
    """
    workdir = workdir.absolute()
    if not (place := _existing(workdir)).is_dir():
        raise InputError(f"--workdir {workdir}: {place} is no folder")
    catalog = make_catalog(choice)
    if device is not None:
        overrides = (*overrides, f"runtime.device={device}")
    if source.startswith(PREFIX):
        document = Document(source, preset_text(source.removeprefix(PREFIX)), overrides)
        registry = load_registry(document, catalog, tuple(overrides))
    else:
        registry = read_registry(Path(source), catalog, overrides)
    return _planned(registry, catalog, workdir, only)


def reopen(sweep: Sweep, workdir: Path, catalog: Catalog) -> Opened:
    """Plan a sweep of the journal again, as the registry and the plugins are now.

    Args:
        sweep: from the journal; its text ends with the overrides that were in force.
        workdir: folder of the journal.
        catalog: installed plugins.

    Raises:
        InputError: if the registry is no longer valid here.
    """
    lines = sweep.registry.splitlines()
    overrides: list[str] = []
    while lines and lines[-1].startswith(_OVERRIDE):
        overrides.insert(0, lines.pop().removeprefix(_OVERRIDE))
    document = Document(f"sweep {sweep.name} ({sweep.sweep_id})", "\n".join(lines) + "\n", overrides)
    return _planned(load_registry(document, catalog, tuple(overrides)), catalog, workdir.absolute(), ())


def _planned(registry: Registry, catalog: Catalog, workdir: Path, only: Sequence[str]) -> Opened:
    chosen = pick_device(registry.runtime.device)
    environment = Environment.current(chosen.type, pick_dtype(registry.runtime.backbone_dtype, chosen))
    cells: tuple[Cell, ...] | None = registry.select(only) if only else None
    plan = make_plan(registry, catalog, environment, cells)
    return Opened(registry, catalog, plan, workdir, environment)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def run(
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
    with _termination(), _threads(opened.registry.runtime.threads), opened.store.hold(sweep.sweep_id):
        try:
            worked = _work(opened, sweep, tracker, listener)
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


def export_activations(opened: Opened, backbone: str, folder: Path, site: str | None = None) -> dict[Split, int]:
    """Write the activations that a registry's cells would be trained and evaluated on into a folder of the user's.

    Args:
        opened: an open registry.
        backbone: name of one of its backbones.
        folder: gets the folders ``train``, ``calibration`` and ``evaluation``, each with manifest and shards.
        site: place in the backbone; may be left out where cells have one only.

    Returns:
        The rows of each split.

    Raises:
        InputError: if the backbone or the site is none of the registry's, or something is in the way.
    """
    cells = {cell.site: cell for cell in opened.registry.cells if cell.backbone.name == backbone}
    names = sorted({cell.backbone.name for cell in opened.registry.cells})
    if not cells:
        raise InputError(f"no backbone {backbone!r}; there are: {', '.join(names)}{nearest(backbone, names)}")
    if site not in cells and (site is not None or len(cells) > 1):
        raise InputError(
            f"give a --site of {backbone}: {', '.join(sorted(cells))}" + (f", not {site!r}" if site else "")
        )
    cell = cells[site] if site is not None else next(iter(cells.values()))
    training, device = cell.training, pick_device(opened.registry.runtime.device)
    rows: dict[Split, int] = {
        "train": training.total_rows,
        "calibration": training.calibration_rows,
        "evaluation": training.evaluation_rows,
    }
    bench = Workbench(opened.store, opened.catalog, opened.environment, device, Listener().progress)
    with _threads(opened.registry.runtime.threads):
        export_splits(bench, cell.backbone, opened.plan.identities[backbone], cell.site, rows, folder)
    return {split: Manifest.read(folder / split).rows for split in rows}


def _tasks_of(cell: Cell, opened: Opened) -> list[Task]:
    metrics = opened.registry.metrics_of(cell)
    return [opened.plan.scores[cell.cell_id, entry.name] for entry in metrics]


def _end(tracker: SafeTracker | None, sweep: Sweep, status: str) -> None:
    if tracker is None:
        return
    tracker.end(sweep, "done" if status == "done" else "failed" if status == "failed" else "interrupted")
    tracker.close()


def check_device(name: str) -> None:
    """Refuse to start on a device that this machine does not have.

    Raises:
        InputError: with what to do.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise InputError(f"runtime.device: {name} is not available on this machine; use --device auto or cpu")


def check_space(opened: Opened, waiting: Sequence[Task]) -> None:
    """Refuse to start where the disk cannot hold what the plan expects.

    Raises:
        InsufficientSpaceError: with both numbers.
    """
    needed = int(opened.plan.total(waiting).disk_bytes * _SPACE_MARGIN)
    free = shutil.disk_usage(_existing(opened.workdir)).free
    if needed > free:
        raise InsufficientSpaceError(
            f"the plan needs {needed / 1e9:.1f} GB below {opened.workdir}, {free / 1e9:.1f} GB are free; "
            "choose another --workdir, fewer tokens, or fewer cells (--only)"
        )


@contextmanager
def _termination() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that half-built products are removed and the sweep is marked."""

    def stop(number: int, frame: object) -> None:
        raise Interruption

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: somebody else decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment(environment: Environment) -> dict[str, str]:
    found = {"device": environment.device, "backbone_dtype": environment.backbone_dtype}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _commit() -> str | None:
    """Return the commit of the current folder's checkout, marked where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return None
    settings = {
        "cwd": Path.cwd(),
        "capture_output": True,
        "text": True,
        "timeout": 5,
        "env": {**os.environ, "LC_ALL": "C"},
    }
    try:
        head = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], check=True, **settings)  # type: ignore[call-overload]  # noqa: S603
        dirty = subprocess.run([git, "status", "--porcelain", "-uno"], check=True, **settings)  # type: ignore[call-overload]  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return str(head.stdout).strip() + ("+changes" if str(dirty.stdout).strip() else "")


def explain(error: BaseException) -> list[str]:
    """Return the lines that a user reads of an error."""
    if isinstance(error, InputError):
        return list(error.problems)
    return str(error).splitlines() if isinstance(error, SaebenchError) else [f"{type(error).__name__}: {error}"]
