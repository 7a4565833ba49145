"""The ``saebench`` command: options of all commands, errors and exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, final

import typer
from typer.core import TyperGroup

from saebench_core._version import __version__
from saebench_core.cli import (
    activation_commands,
    plugin_commands,
    rating_commands,
    read_commands,
    run_commands,
    upkeep_commands,
    write_commands,
)
from saebench_core.errors import InputError, SaebenchError

__all__ = ["app", "main"]


@final
class _Group(TyperGroup):
    """Ends as the shell expects; Typer would make 130 of every interruption, and 1 of a closed pipe."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            typer.echo("interrupted; run the same command again to go on", err=True)
            raise SystemExit(143 if type(interruption).__name__ == "Interruption" else 130) from None
        except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None


app: Final = typer.Typer(
    cls=_Group,
    name="saebench",
    help="Train and score every sparse autoencoder beside its random twins, and say what learning earned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 all cells done, 1 some failed, 2 bad input, 130 interrupted, 143 terminated.",
)
for module in (
    run_commands,
    read_commands,
    write_commands,
    rating_commands,
    upkeep_commands,
    activation_commands,
    plugin_commands,
):
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saebench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    no_plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--no-plugin", metavar="NAME", help="Leave out a distribution, or DISTRIBUTION:ENTRY-POINT. Repeatable."
        ),
    ] = None,
    plugin_file: Annotated[
        list[Path] | None,
        typer.Option("--plugin-file", metavar="FILE", help="Load plugins from a Python file. Repeatable."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train and score every sparse autoencoder beside its random twins, and say what learning earned."""
    if no_plugin:
        from saebench_core.cli.options import check_no_plugin

        check_no_plugin(no_plugin, plugin_file or [])
        known = os.environ.get("SAEBENCH_BLOCK_PLUGINS", "")
        os.environ["SAEBENCH_BLOCK_PLUGINS"] = ",".join(filter(None, [known, *no_plugin]))
    if plugin_file:
        from saebench_core.cli.options import checked_files

        known = os.environ.get("SAEBENCH_PLUGIN_FILES", "")
        os.environ["SAEBENCH_PLUGIN_FILES"] = os.pathsep.join(filter(None, [known, *checked_files(plugin_file)]))


def main() -> None:
    """Run the command line; bad input is told in plain lines, never as a traceback."""
    # Threads that wait by spinning slow each other down several times over as soon as a core is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages: gradients are allocated anew every step
    try:
        app(standalone_mode=True)
    except SaebenchError as error:
        lines = error.problems if isinstance(error, InputError) else str(error).splitlines()
        for line in lines:
            typer.echo(line, err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # such as a full or read-only disk
        if error.filename is None:
            raise
        typer.echo(f"{error.filename}: {error.strerror}", err=True)
        sys.exit(1)
