"""Commands about plugins."""

from __future__ import annotations

import json

import typer

from saebench_core.cli.options import Json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    plugins = typer.Typer(
        help="What is installed: backbones, architectures, constraints, metrics.", no_args_is_help=True
    )
    plugins.command("list")(plugins_list)
    app.add_typer(plugins, name="plugins")


def plugins_list(as_json: Json = False) -> None:
    """List all plugins with distribution and version, and those that failed to load."""
    from saebench_core.catalog import make_catalog

    catalog = make_catalog()
    if as_json:
        rows = [
            {
                "kind": plugin.kind,
                "name": plugin.name,
                "summary": plugin.spec.summary,
                "distribution": plugin.distribution,
                "version": plugin.version,
            }
            for plugin in catalog
        ]
        failures = [
            {
                "plugin": failure.plugin,
                "distribution": failure.distribution,
                "version": failure.version,
                "error": failure.error,
            }
            for failure in catalog.failures
        ]
        notices = [
            {
                "plugin": notice.plugin,
                "distribution": notice.distribution,
                "version": notice.version,
                "notice": notice.text,
            }
            for notice in catalog.notices
        ]
        document = {"schema": 1, "plugins": rows, "failures": failures, "notices": notices}
        typer.echo(json.dumps(document, indent=2))
        return
    for plugin in catalog:
        typer.echo(
            f"{plugin.kind:<13} {plugin.name:<22} {plugin.spec.summary}  [{plugin.distribution} {plugin.version}]"
        )
    for failure in catalog.failures:
        typer.echo(f"FAILED        {failure.plugin}: {failure.error}", err=True)
    for notice in catalog.notices:
        typer.echo(f"NOTICE        {notice.plugin}: {notice.text}", err=True)
