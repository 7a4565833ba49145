"""The command that starts a plugin: `saebench plugins new`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(plugins: typer.Typer) -> None:
    """Add the command to the group of plugins."""
    plugins.command("new")(plugins_new)


def plugins_new(
    name: Annotated[str, typer.Argument(help="Name of the distribution, such as my-sae; its type is then my_sae.")],
    kind: Annotated[str, typer.Option("--kind", help="architecture, constraint, metric or backbone.")],
    directory: Annotated[Path, typer.Option("--directory", help="Where to make the new folder.")] = Path(),
) -> None:
    """Write a complete distribution with a working example, tests and a registry, ready to be installed and changed."""
    from saebench_core.catalog import make_catalog
    from saebench_core.scaffold import write_distribution

    taken = {plugin.name for plugin in make_catalog() if plugin.kind == kind}
    written = write_distribution(name, kind, directory, taken)
    typer.echo(f"wrote {written.folder}:")
    for file in written.files:
        typer.echo(f"  {file}")
    typer.echo("next:")
    for command in (
        f"cd {shlex.quote(str(written.folder))}",
        "pip install -e '.[test]'",
        "pytest",
        f"saebench plugins info {written.names.package}",
        "saebench run",
    ):
        typer.echo(f"  {command}")
