"""Commands about activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench_core.cli.options import DEFAULT_REGISTRY, DEFAULT_WORKDIR, Device, Set, Workdir, opened

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    activations = typer.Typer(help="Activations of backbones.", no_args_is_help=True)
    activations.command("export")(export)
    activations.callback()(lambda: None)  # a group, though it has one command
    app.add_typer(activations, name="activations")


def export(
    backbone: Annotated[str, typer.Argument(help="Name of a backbone of the registry.")],
    folder: Annotated[Path, typer.Argument(help="Where to write train, calibration and evaluation.")],
    registry: Annotated[str, typer.Option("--registry", help="A registry file, or preset:NAME.")] = DEFAULT_REGISTRY,
    site: Annotated[str | None, typer.Option("--site", help="Place in the backbone, if it has several.")] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    device: Device = None,
    settings: Set = None,
) -> None:
    """Write a backbone's activations in the layout that the backbone `activations` reads, to copy or to share."""
    from saebench_core.api import export_activations

    work = opened(registry, workdir, settings, None, device)
    rows = export_activations(work, backbone, folder, site)
    typer.echo(f"wrote {folder}: " + ", ".join(f"{count:,} rows of {split}" for split, count in rows.items()))
