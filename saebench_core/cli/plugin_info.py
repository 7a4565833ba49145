"""The command that tells all about one plugin: `saebench plugins info`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from saebench_core.cli.options import Json

__all__ = ["register"]


def register(plugins: typer.Typer) -> None:
    """Add the command to the group of plugins."""
    plugins.command("info")(plugins_info)


def plugins_info(
    name: Annotated[str, typer.Argument(help="The plugin's type, as in a registry.")],
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="backbone, architecture, constraint or metric, if several have the name."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell where a plugin comes from, its keys, what a constraint randomises and needs, and the scores of a metric."""
    from saebench_core.catalog import make_catalog
    from saebench_core.catalog.describing import describe

    document = describe(make_catalog().find(name, kind))
    if as_json:
        typer.echo(json.dumps({"schema": 1, "plugin": document}, indent=2))
        return
    for line in _lines(document):
        typer.echo(line)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"{document['kind']} {document['name']}: {document['summary']}"
    if document["source"]:
        yield f"source: {document['source']}"
    yield f"from: {document['distribution']} {document['version']} ({document['origin']})"
    if document["depends"]:
        yield f"numbers depend on: {', '.join(document['depends'])}"
    for notice in document["notices"]:
        yield f"NOTICE: {notice}"
    if document["constraint"] is not None:
        yield from _constraint(document["constraint"])
    if document["metric"] is not None:
        yield from _scores(document["name"], document["metric"])
    if document["unknown"] is not None:
        yield f"what it says of itself is not known without keys: {document['unknown']}"
    yield ""
    yield "keys of an entry, beside type:"
    yield from _fields(document["config"])
    for nested in document["nested"]:
        title = nested["key"] if nested["type"] is None else f"{nested['key']}: {{type: {nested['type']}}}"
        yield ""
        yield f"{title}  {nested['summary']}"
        yield from _fields(nested["config"])


def _constraint(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"holds random: {', '.join(told['randomises']) or 'nothing'}"
    yield f"starts from a twin: {told['needs'] or 'none'}"
    yield f"is trained: {'yes' if told['trains'] else 'no'}"


def _scores(name: str, told: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"scores (version {told['version']}; a star: shown by default):"
    for score, info in told["scores"].items():
        low = "(-inf" if info["low"] is None else f"[{info['low']:g}"
        high = "inf)" if info["high"] is None else f"{info['high']:g}]"
        better = "no direction" if info["direction"] == "none" else f"{info['direction']} is better"
        star = " *" if info["headline"] else ""
        yield f"  {name}/{score}{star}: {better}, {low}, {high}, {info['unit']}, reads {info['reads']}"
        yield f"      {info['formula']} ({info['source']})"


def _fields(fields: list[dict[str, Any]]) -> Iterator[str]:
    from saebench_core.catalog.fields import shown

    if not fields:
        yield "  none"
    for field in fields:
        default = "required" if field["required"] else f"default {shown(field['default'])}"
        yield f"  {field['key']}: {field['type']}; {default}"
        if field["description"]:
            yield f"      {field['description']}"
