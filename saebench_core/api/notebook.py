"""Runs a registry from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from saebench_core.api.opening import Opened, plan_registry
from saebench_core.api.outcomes import Results
from saebench_core.api.progress import make_listener
from saebench_core.api.running import run_opened
from saebench_core.errors import InputError
from saebench_core.registry import Registry

__all__ = ["run", "work_through"]


def run(
    registry: Registry,
    *,
    workdir: str | Path = ".saebench",
    only: Sequence[str] = (),
    track: bool = False,
    tracking_uri: str | None = None,
    progress: bool = True,
) -> Results:
    """Do what is left to do of a registry and return its results; a run that was interrupted goes on where it was.

    Args:
        registry: from `Registry.from_file`, `Registry.from_preset` or `Registry.from_dict`.
        workdir: folder that everything is written below; what it has already is not computed again.
        only: ``AXIS=NAME`` as ``--only`` takes them: the cells concerned.
        track: whether to log to MLflow, by default not: ``saebench sync`` can do it at any time later.
        tracking_uri: of MLflow; given, it turns `track` on. By default a database in the workdir.
        progress: whether to show how it goes, on standard error: bars on a terminal, lines elsewhere.

    Returns:
        All cells concerned. One that failed is among them with its error, and the others are done all the same.

    Raises:
        InputError: if an argument cannot be used, or the device is not there.
        InsufficientSpaceError: if the disk has less room than the plan expects to need.
        KeyboardInterrupt: if the user interrupts.
    """
    if not isinstance(registry, Registry):
        raise InputError(
            f"run takes a Registry, got {type(registry).__name__}; "
            "Registry.from_file(path), .from_preset(name) and .from_dict(data) make one"
        )
    opened = plan_registry(registry, Path(workdir), only)
    return work_through(opened, track=track or tracking_uri is not None, tracking_uri=tracking_uri, progress=progress)


def work_through(
    opened: Opened, *, track: bool = False, tracking_uri: str | None = None, progress: bool = True
) -> Results:
    """Do what is left to do of an open registry; the arguments are those of `run`."""
    listener = make_listener(Console(stderr=True, soft_wrap=True)) if progress else None
    try:
        report = run_opened(opened, tracking_uri=tracking_uri, track=track, listener=listener)
    finally:
        if listener is not None:
            listener.close()
    return Results(opened, report.records, report.worked)
