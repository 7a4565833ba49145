"""Commands for people who rate latents: a sheet that does not say whose they are, and what was said."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from saebench_core.cli.options import (
    DEFAULT_REGISTRY,
    DEFAULT_WORKDIR,
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
    ratings = typer.Typer(help="Latents rated by people who do not know whose they are.", no_args_is_help=True)
    ratings.command("sheet")(sheet)
    ratings.command("read")(read)
    app.add_typer(ratings, name="ratings")


def sheet(
    registry: RegistryArgument = DEFAULT_REGISTRY,
    latents: Annotated[int, typer.Option(min=1, max=1000, help="Random latents of each SAE, of its first seed.")] = 10,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Entry whose latents are shown; default: the first that has any.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of their order.")] = 0,
    workdir: Workdir = DEFAULT_WORKDIR,
    only: Only = None,
    settings: Set = None,
) -> None:
    """Write an HTML sheet with latents of trained SAEs and twins, mixed, and its key beside it.

    Give raters the sheet alone. They save their ratings as a file, which `saebench ratings read` takes.
    """
    from saebench_core.api import write_sheet

    path, problems = write_sheet(opened(registry, workdir, settings, only), latents, seed, metric)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    typer.echo(str(path))


def read(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Ratings that people saved.")],
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: Json = False,
) -> None:
    """Say how people rated the latents of trained SAEs and of twins; each is held to the first trained SAE."""
    from saebench_core.api import read_ratings

    found = read_ratings(workdir, files)
    if as_json:
        rows = [asdict(row) for row in found.rows]
        typer.echo(json.dumps({"schema": 1, **found._asdict(), "rows": rows}, indent=2, sort_keys=True))
        return
    from saebench_core.cli.show import print_ratings

    print_ratings(found)
