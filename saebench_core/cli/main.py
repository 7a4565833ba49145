"""The ``saebench`` command: options of all commands, errors and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from saebench_core._version import __version__
from saebench_core.cli import plugin_commands, read_commands, run_commands, write_commands
from saebench_core.errors import InputError, SaebenchError

__all__ = ["app", "main"]

app: Final = typer.Typer(
    name="saebench",
    help="Train and score every sparse autoencoder beside its random twins, and say what learning earned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 all cells done, 1 some failed, 2 bad input, 130 interrupted.",
)
for module in (run_commands, read_commands, write_commands, plugin_commands):
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train and score every sparse autoencoder beside its random twins, and say what learning earned."""
    if no_plugin:
        known = os.environ.get("SAEBENCH_BLOCK_PLUGINS", "")
        os.environ["SAEBENCH_BLOCK_PLUGINS"] = ",".join(filter(None, [known, *no_plugin]))


def main() -> None:
    """Run the command line; bad input is told in plain lines, never as a traceback."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt as interruption:
        stopped = type(interruption).__name__ == "Interruption"
        typer.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(143 if stopped else 130)
    except SaebenchError as error:
        lines = error.problems if isinstance(error, InputError) else str(error).splitlines()
        for line in lines:
            typer.echo(line, err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
