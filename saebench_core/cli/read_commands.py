"""Commands that read what a registry has so far: status, results, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saebench_core.cli.options import (
    DEFAULT_REGISTRY,
    DEFAULT_WORKDIR,
    Device,
    Json,
    Only,
    RegistryArgument,
    Set,
    Workdir,
    opened,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(status)
    app.command()(results)
    app.command()(report)


def status(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    workdir: Workdir = DEFAULT_WORKDIR,
    device: Device = None,
    only: Only = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Say how many cells are done, pending or failed, and why they failed."""
    from saebench_core.cli.show import print_status

    work = opened(registry, workdir, settings, only, device)
    records = work.records()
    if as_json:
        cells = [
            {"cell_id": record.result.cell_id, "status": record.result.status, "error": record.result.error}
            for record in records
        ]
        typer.echo(json.dumps({"schema": 1, "name": work.registry.name, "cells": cells}, indent=2, sort_keys=True))
        return
    print_status(work, records)


def results(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    workdir: Workdir = DEFAULT_WORKDIR,
    device: Device = None,
    only: Only = None,
    settings: Set = None,
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="Show every score, not only the main ones.")] = False,
) -> None:
    """Print the trained SAEs beside their twins, from what the workdir has."""
    from saebench_core.results import results_json

    work = opened(registry, workdir, settings, only, device)
    records = work.records()
    if as_json:
        typer.echo(results_json([record.result for record in records]), nl=False)
        return
    from saebench_core.cli.show import print_comparison

    print_comparison(work, records, every, bool(settings))


def report(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    workdir: Workdir = DEFAULT_WORKDIR,
    output: Annotated[
        Path | None, typer.Option("--output", help="Name of the file below the workdir; default: reports/NAME.html.")
    ] = None,
    device: Device = None,
    only: Only = None,
    settings: Set = None,
) -> None:
    """Write one HTML file with tables, figures, certificates and how to repeat the run. It opens from disk."""
    from saebench_core.api import charts_of, galleries_of
    from saebench_core.cli.show import descriptions
    from saebench_core.errors import InputError
    from saebench_core.report import write_html

    work = opened(registry, workdir, settings, only, device)
    path = (work.workdir / (output or Path("reports") / f"{work.slug}.html")).resolve()
    if not path.is_relative_to(work.workdir.resolve()):
        raise InputError(
            f"--output {output}: lies outside the workdir {work.workdir}; give a path below it, or another --workdir"
        )
    records = work.records()
    charts, problems = charts_of(work, records)
    galleries, more = galleries_of(work, records)
    for problem in (*problems, *more):
        typer.echo(f"warning: {problem}", err=True)
    command = f"saebench run {registry}" + "".join(f" --set {override}" for override in settings or [])
    write_html(
        path,
        work.sweep(),
        records,
        descriptions=descriptions(work),
        headline=work.registry.headline,
        notice=work.registry.notice,
        commands=["pip install -e .", command, f"saebench report {registry}"],
        charts=charts,
        galleries=galleries,
    )
    typer.echo(str(path))
