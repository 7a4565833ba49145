"""Opens a registry: read, checked and planned, with the places that it is run in and read from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from saebench_core.api.environment import surroundings
from saebench_core.api.machine import measured
from saebench_core.catalog import Catalog, PluginChoice, make_catalog
from saebench_core.errors import InputError
from saebench_core.plan import NOMINAL, Environment, Machine, Plan, make_plan, planned_gpu
from saebench_core.presets import PREFIX
from saebench_core.registry import Cell, Document, Registry, load_registry
from saebench_core.results import CellRecord, Journal, Sweep
from saebench_core.store import Store
from saebench_core.tasks import collect_records, pick_device
from saebench_core.tasks.perform import Failures
from saebench_core.tasks.workbench import pick_dtype

__all__ = ["Opened", "checked_workdir", "existing", "open_registry", "plan_registry", "reopen"]

_OVERRIDE: Final = "# --set "


@final
@dataclass(frozen=True)
class Opened:
    """A registry with all that is needed to plan, run and read it.

    Attributes:
        registry: validated.
        catalog: installed plugins.
        plan: tasks of the chosen cells.
        workdir: everything is written below it.
        environment: what of this machine enters product keys.
        machine: what the plan's estimates go by.
    """

    registry: Registry
    catalog: Catalog
    plan: Plan
    workdir: Path
    environment: Environment
    machine: Machine = NOMINAL

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

    @property
    def slug(self) -> str:
        """The registry's name as a part of file names."""
        return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in self.registry.name)

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
            environment=surroundings(self.environment),
        )
        kept = next((kept for kept in self.journal.sweeps() if kept.sweep_id == sweep.sweep_id), sweep)
        return sweep.model_copy(update={"started_ms": kept.started_ms})


def open_registry(
    source: str,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    device: str | None = None,
    choice: PluginChoice | None = None,
    gpu: str | None = None,
) -> Opened:
    """Read, check and plan a registry.

    Args:
        source: path of a file, or ``preset:NAME``.
        workdir: folder that everything is written below; made at the first write.
        overrides: ``key=value``, applied before checking.
        only: ``axis=name``: the cells concerned.
        device: in place of the registry's ``runtime.device``.
        choice: which plugins are loaded.
        gpu: GPU that the plan's estimates are for, in place of this machine.

    Raises:
        InputError: one line for each problem.
    """
    if device is not None:
        overrides = (*overrides, f"runtime.device={device}")
    make = Registry.from_preset if source.startswith(PREFIX) else Registry.from_file
    checked_workdir(workdir)
    return plan_registry(make(source, overrides=overrides, catalog=make_catalog(choice)), workdir, only, gpu)


def plan_registry(registry: Registry, workdir: Path, only: Sequence[str] = (), gpu: str | None = None) -> Opened:
    """Plan a registry in a workdir.

    Args:
        registry: validated.
        workdir: folder that everything is written below; made at the first write.
        only: ``axis=name``: the cells concerned.
        gpu: GPU that estimates are for, in place of this machine; one of `saebench_core.plan.GPUS`, or
            ``FP32:BF16:GB``.

    Raises:
        InputError: if the workdir can be no folder, no cell matches, or the GPU is not known.
    """
    workdir = checked_workdir(workdir)
    if not isinstance(only, Sequence):
        raise InputError(f"only: expected texts such as 'seed=0', got {only!r}")
    chosen = pick_device(registry.runtime.device)
    environment = Environment.current(chosen.type, pick_dtype(registry.runtime.backbone_dtype, chosen))
    cells: tuple[Cell, ...] | None = registry.select([only] if isinstance(only, str) else only) if only else None
    runtime = registry.runtime
    machine = planned_gpu(gpu, runtime.backbone_dtype) if gpu is not None else measured(chosen.type, runtime.threads)
    plan = make_plan(registry, registry.catalog, environment, cells, machine)
    return Opened(registry, registry.catalog, plan, workdir, environment, machine)


def checked_workdir(workdir: Path) -> Path:
    """Return the workdir as an absolute path.

    Raises:
        InputError: if it can be no folder.
    """
    workdir = workdir.absolute()
    if not (place := existing(workdir)).is_dir():
        raise InputError(f"workdir {workdir}: {place} is no folder")
    return workdir


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
    return plan_registry(load_registry(document, catalog, tuple(overrides)), workdir)


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
