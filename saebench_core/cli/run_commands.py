"""Commands that check, plan and run a registry."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saebench_core.cli.options import (
    DEFAULT_REGISTRY,
    DEFAULT_WORKDIR,
    Device,
    Json,
    Only,
    RegistryArgument,
    Set,
    TrackingUri,
    Workdir,
    opened,
)

if TYPE_CHECKING:
    from saebench_core.api import Opened

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(plan)
    app.command()(validate)


def run(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    workdir: Workdir = DEFAULT_WORKDIR,
    tracking_uri: TrackingUri = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Do not log to MLflow.")] = False,
    executor: Annotated[str, typer.Option("--executor", help="Where tasks run: inline.")] = "inline",
    device: Device = None,
    only: Only = None,
    settings: Set = None,
) -> None:
    """Do what is left of a registry, then print the trained SAEs beside their twins.

    A run that was killed goes on where it was; what is there already is not done again.
    """
    from rich.console import Console

    from saebench_core import api
    from saebench_core.api.progress import make_listener
    from saebench_core.cli.show import print_comparison
    from saebench_core.errors import InputError, nearest

    if executor != "inline":
        raise InputError(f"--executor {executor}: no such executor{nearest(executor, ['inline'])}; there is: inline")
    work = opened(registry, workdir, settings, only, device)
    listener = make_listener(Console(stderr=True, soft_wrap=True))
    try:
        report = api.run_opened(work, tracking_uri=tracking_uri, track=not no_tracking, listener=listener)
    finally:
        listener.close()
    print_comparison(work, report.records)
    sys.exit(report.exit_code)


def plan(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    workdir: Workdir = DEFAULT_WORKDIR,
    device: Device = None,
    only: Only = None,
    settings: Set = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Estimate for a GPU that need not be here: A100-80GB, H100-80GB, L4 and others, or FP32:BF16:GB "
            "(rates in TFLOP/s, memory).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print cells and tasks, and the time, memory and disk they are expected to take. Nothing is computed."""
    work = opened(registry, workdir, settings, only, device, gpu)
    summary = _summary(work)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, sort_keys=True))
        return
    from saebench_core.cli.show import print_plan

    print_plan(work, summary)


def _summary(work: Opened) -> dict[str, Any]:
    store, whole = work.store, work.plan
    tasks = [
        {
            "kind": task.kind,
            "label": task.label,
            "cells": len(task.cells),
            "done": task.done(store),
            "seconds": round(task.estimate.seconds, 1),
            "memory_bytes": task.estimate.memory_bytes,
            "disk_bytes": task.estimate.disk_bytes,
            "left": task.left(store),
        }
        for task in whole.tasks
    ]
    waiting = whole.total(whole.waiting(store))
    gpu = work.machine.gpu
    planned = {"gpu": {"name": gpu.name, "memory_bytes": gpu.memory_bytes}} if gpu else {}
    return {
        "schema": 1,
        "name": work.registry.name,
        "environment": {"device": work.environment.device, "backbone_dtype": work.environment.backbone_dtype},
        **planned,
        "cells": [
            {
                "cell_id": cell.cell_id,
                "label": cell.label,
                "excluded": cell.excluded,
                "d_in": cell.d_in,
                "d_sae": cell.d_sae,
            }
            for cell in (*whole.cells, *(cell for cell in work.registry.cells if cell.excluded))
        ],
        "tasks": tasks,
        "to_do": {
            "tasks": sum(not task["done"] for task in tasks),
            "seconds": round(waiting.seconds, 1),
            "memory_bytes": waiting.memory_bytes,
            "disk_bytes": waiting.disk_bytes,
            "questions": waiting.questions,
        },
    }


def validate(registry: RegistryArgument = DEFAULT_REGISTRY, settings: Set = None, as_json: Json = False) -> None:
    """Check a registry and stop: unknown keys, impossible values, entries that nothing uses."""
    work = opened(registry, DEFAULT_WORKDIR, settings)
    cells, excluded = len(work.registry.active), len(work.registry.cells) - len(work.registry.active)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "name": work.registry.name, "cells": cells, "excluded": excluded}))
        return
    typer.echo(f"{registry}: {cells} cells" + (f", {excluded} excluded" if excluded else ""))
