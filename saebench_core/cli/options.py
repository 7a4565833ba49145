"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from saebench_core.api import Opened

__all__ = [
    "Device",
    "Json",
    "Only",
    "RegistryArgument",
    "Set",
    "TrackingUri",
    "Workdir",
    "check_no_plugin",
    "checked_files",
    "opened",
]

RegistryArgument = Annotated[
    str, typer.Argument(metavar="REGISTRY", help="A registry file, or preset:NAME (see `saebench presets list`).")
]
Workdir = Annotated[Path, typer.Option("--workdir", help="Everything is written below this folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value, e.g. training.steps=100 or backbones.toy.d_in=32. Repeatable.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="AXIS=NAME",
        help="Only these cells, e.g. backbone=toy, constraint='trained|untrained'. Repeatable, or comma-separated.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or mps, in place of the registry's runtime.device.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow tracking URI; default: a database in the workdir.")
]

DEFAULT_REGISTRY = "registry.yaml"
DEFAULT_WORKDIR = Path(".saebench")


def opened(
    registry: str,
    workdir: Path,
    settings: list[str] | None,
    only: list[str] | None = None,
    device: str | None = None,
    gpu: str | None = None,
) -> Opened:
    """Open a registry with the options of a command."""
    from saebench_core.api import open_registry

    chosen = [part for option in only or [] for part in re.split(r",(?![^\[]*\])", option)]  # names may be x[a=1,b=2]
    return open_registry(registry, workdir, overrides=settings or [], only=chosen, device=device, gpu=gpu)


def check_no_plugin(names: Sequence[str], files: Sequence[Path]) -> None:
    """Refuse a value of ``--no-plugin`` that leaves nothing out.

    Raises:
        InputError: if nothing installed is called so.
    """
    from saebench_core.catalog import PluginChoice
    from saebench_core.catalog.origins import check_blocks
    from saebench_core.hookspecs import PROJECT

    check_blocks(PROJECT, names, PluginChoice.from_environment(files=files).files)


def checked_files(paths: Sequence[Path]) -> list[str]:
    """Return the values of ``--plugin-file``.

    Raises:
        InputError: if one is no Python file.
    """
    from saebench_core.catalog.files import check_file
    from saebench_core.errors import InputError

    for path in paths:
        if os.pathsep in str(path):
            raise InputError(
                f"--plugin-file {path}: {os.pathsep!r} separates paths, so a name cannot hold it; rename it"
            )
        try:
            check_file(path)
        except InputError as error:
            raise InputError(f"--plugin-file {error}") from None
    return [str(path) for path in paths]
