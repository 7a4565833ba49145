"""Commands that write starting points and views: init, presets, schema, sync, ui."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from saebench_core.cli.options import DEFAULT_REGISTRY, DEFAULT_WORKDIR, Json, TrackingUri, Workdir

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(schema)
    app.command()(sync)
    app.command()(ui)
    presets = typer.Typer(help="Registries that come with the package.", no_args_is_help=True)
    presets.command("list")(presets_list)
    presets.command("show")(presets_show)
    app.add_typer(presets, name="presets")


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(DEFAULT_REGISTRY),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented registry that runs with no download, and the JSON Schema for editors beside it."""
    from saebench_core.errors import InputError
    from saebench_core.presets import preset_text
    from saebench_core.store import write_atomically

    if path.exists() and not force:
        raise InputError(f"{path}: is there already; choose another name, or --force to replace it")
    write_atomically(path, preset_text("start"))
    write_atomically(path.parent / "registry.schema.json", _schema_text())
    typer.echo(
        f"wrote {path} and {path.parent / 'registry.schema.json'}; next: saebench plan {path}, saebench run {path}"
    )


def _schema_text() -> str:
    from saebench_core.catalog import make_catalog
    from saebench_core.registry import registry_schema

    return json.dumps(registry_schema(make_catalog()), indent=2, sort_keys=True) + "\n"


def schema() -> None:
    """Print the JSON Schema of registries, made from the installed plugins, for editors."""
    typer.echo(_schema_text(), nl=False)


def presets_list(as_json: Json = False) -> None:
    """List the presets."""
    from saebench_core.presets import preset_names, preset_summary

    if as_json:
        rows = [{"name": name, "summary": preset_summary(name)} for name in preset_names()]
        typer.echo(json.dumps({"schema": 1, "presets": rows}, indent=2))
        return
    width = max(map(len, preset_names()))
    for name in preset_names():
        typer.echo(f"preset:{name:<{width}}  {preset_summary(name)}")


def presets_show(name: Annotated[str, typer.Argument(help="Name, with or without preset:")]) -> None:
    """Print a preset's registry."""
    from saebench_core.presets import PREFIX, preset_text

    typer.echo(preset_text(name.removeprefix(PREFIX)), nl=False)


def sync(workdir: Workdir = DEFAULT_WORKDIR, tracking_uri: TrackingUri = None) -> None:
    """Rebuild MLflow from the workdir. Running it twice changes nothing."""
    from saebench_core.errors import SaebenchError
    from saebench_core.results import Journal
    from saebench_core.tracking import sync as push

    try:
        count = push(Journal(workdir.absolute()), tracking_uri, workdir.absolute())
    except OSError as error:
        raise SaebenchError(f"the tracker cannot be reached: {error}") from error
    typer.echo(f"{count.sweeps} sweeps, {count.cells} cells, {count.written} written")


def ui(
    workdir: Workdir = DEFAULT_WORKDIR,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless --allow-remote.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines see the pages, which ask for no password.")
    ] = False,
) -> None:
    """Show the runs in MLflow's pages, on this machine only."""
    from saebench_core.results import Journal
    from saebench_core.tracking import ui_command

    sweeps = Journal(workdir.absolute()).sweeps()
    latest = sweeps[-1] if sweeps else None
    command = ui_command(tracking_uri, workdir.absolute(), host, port, sweep=latest, allow_remote=allow_remote)
    typer.echo(command.deep_link)
    if command.argv:
        raise typer.Exit(subprocess.run(command.argv, env={**os.environ, **command.env}, check=False).returncode)  # noqa: S603
