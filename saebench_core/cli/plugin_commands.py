"""Commands about plugins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer
from packaging.utils import canonicalize_name

from saebench_core.cli import plugin_info, scaffold_commands
from saebench_core.cli.options import Json
from saebench_core.errors import InputError, nearest

if TYPE_CHECKING:
    from saebench_core.catalog import Catalog, LoadFailure, Notice, Plugin
    from saebench_core.conformance import Finding
    from saebench_core.interfaces.entry import Kind

__all__ = ["register"]

_LOADING: Final = "mend the module, so that it can be imported and its hooks called (docs/plugins.md: What is checked)"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    plugins = typer.Typer(
        help="What is installed: backbones, architectures, constraints, metrics.", no_args_is_help=True
    )
    plugins.command("list")(plugins_list)
    plugins.command("check")(plugins_check)
    plugin_info.register(plugins)
    scaffold_commands.register(plugins)
    app.add_typer(plugins, name="plugins")


def plugins_list(as_json: Json = False) -> None:
    """List all plugins with distribution and version, what their authors should change, and what failed to load."""
    from saebench_core.catalog import make_catalog

    catalog = make_catalog()
    if as_json:
        typer.echo(json.dumps(_list_as_json(catalog), indent=2))
        return
    for plugin in catalog:
        typer.echo(
            f"{plugin.kind:<13} {plugin.name:<22} {plugin.spec.summary}  [{plugin.distribution} {plugin.version}]"
        )
    for notice in catalog.notices:
        typer.echo(f"NOTICE        {notice.plugin}: {notice.text}", err=True)
    for failure in catalog.failures:
        typer.echo(f"FAILED        {failure.plugin}: {failure.error}", err=True)


def _list_as_json(catalog: Catalog) -> dict[str, Any]:
    plugins = [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "summary": plugin.spec.summary,
            "distribution": plugin.distribution,
            "version": plugin.version,
        }
        for plugin in catalog
    ]
    failures = [_origin(failure) | {"error": failure.error} for failure in catalog.failures]
    notices = [_origin(notice) | {"notice": notice.text} for notice in catalog.notices]
    return {"schema": 1, "plugins": plugins, "failures": failures, "notices": notices}


def _origin(told: LoadFailure | Notice) -> dict[str, str]:
    return {"plugin": told.plugin, "distribution": told.distribution, "version": told.version}


def plugins_check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|DIST]...", help="Plugins or distributions; by default all that are installed."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Only plugins of this kind: backbone, architecture, constraint, metric."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the plugin's entry, e.g. model=path. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check plugins against their contracts: one line a check, and what to do about each failure.

    The exit code is 0 if all pass, 1 if some fail, 2 if a name is unknown or a key is missing.
    """
    from saebench_core.catalog import make_catalog

    catalog = make_catalog()
    plugins, failures = _chosen(catalog, names or [], kind)
    if settings and len(plugins) != 1:
        raise InputError(f"--set is for one plugin at a time; {len(plugins)} are chosen; name one, and its --kind")
    found: list[tuple[Plugin, list[Finding]]] = []
    for plugin in plugins:
        told = []
        for finding in _findings(plugin, catalog, settings or [], asked_for=plugin.name in (names or [])):
            told.append(finding)
            if not as_json:
                _print(f"{plugin.kind} {plugin.name}", finding.check, finding)
        found.append((plugin, told))
    if as_json:
        typer.echo(json.dumps(_as_json(found, failures), indent=2))
    else:
        for failure in failures:
            _print_outcome(failure.plugin, "loading", "FAILED", [failure.error, f"to do: {_LOADING}"])
    failed = sum(finding.status == "failed" for _, told in found for finding in told) + len(failures)
    if not as_json:
        count = sum(len(told) for _, told in found) + len(failures)
        typer.echo(f"plugins: {len(plugins)}, checks: {count}, failed: {failed}")
    raise typer.Exit(1 if failed else 0)


def _chosen(catalog: Catalog, names: Sequence[str], kind: str | None) -> tuple[list[Plugin], list[LoadFailure]]:
    """Return what names stand for: plugins of that type, or all of a distribution, with the load failures.

    Raises:
        InputError: for a name that is neither, and for a kind that is none.
    """
    from saebench_core.catalog.listing import checked_kind

    only = None if kind is None else checked_kind(kind)
    plugins = [
        (plugin, {plugin.name, canonicalize_name(plugin.distribution)})
        for plugin in catalog
        if only in (None, plugin.kind)
    ]
    failures = [(failure, _called(failure, only)) for failure in catalog.failures]
    wanted = {*names, *map(canonicalize_name, names)}
    known = {text for _, texts in (*plugins, *failures) for text in texts}
    for name in names:
        if name not in known and canonicalize_name(name) not in known:
            near = nearest(name, sorted(known))
            raise InputError(f"no plugin or distribution is called {name!r}{near}{catalog.failed(name)}")
    return (
        [plugin for plugin, texts in plugins if not names or wanted & texts],
        [failure for failure, texts in failures if not names or wanted & texts],
    )


def _called(failure: LoadFailure, only: Kind | None) -> set[str]:
    """Return what a load failure is found by: its plugin and distributions, and the name that several offer."""
    from saebench_core.interfaces.entry import Kind

    kind, _, name = failure.plugin.partition(":")
    offered = {name} if kind in get_args(Kind) and only in (None, kind) else set()
    return {failure.plugin, *map(canonicalize_name, (failure.distribution, *failure.others)), *offered}


def _findings(plugin: Plugin, catalog: Catalog, settings: Sequence[str], asked_for: bool) -> Iterator[Finding]:
    """Run the checks of a plugin; one that needs keys which nobody has given is left out, unless it was asked for."""
    from saebench_core.conformance import Finding
    from saebench_core.conformance.kit import findings, subject_of
    from saebench_core.registry import Document

    given = Document("--set", f"type: {plugin.name}\n", settings).data
    subject = subject_of(plugin, {key: value for key, value in given.items() if key != "type"}, catalog)
    try:
        subject.config  # noqa: B018 - read here so that what is missing is told before anything runs
    except InputError as error:
        if asked_for or settings:
            raise InputError(f"{error}; give keys with --set KEY=VALUE") from None
        yield Finding("check_configuration_round_trip", "skipped", reason=f"{error}; name it, and give --set KEY=VALUE")
        return
    yield from findings(subject)


def _print(plugin: str, check: str, finding: Finding) -> None:
    lines = [finding.message, f"to do: {finding.remedy}"] if finding.status == "failed" else []
    outcome = finding.status.upper() if finding.status == "failed" else finding.status
    _print_outcome(plugin, check, f"{outcome}: {finding.reason}" if finding.reason else outcome, lines)


def _print_outcome(plugin: str, check: str, outcome: str, lines: Iterable[str]) -> None:
    typer.echo(f"{plugin:<32} {check:<42} {outcome}")
    for line in lines:
        typer.echo(f"    {line}")


def _as_json(found: Sequence[tuple[Plugin, list[Finding]]], failures: Sequence[LoadFailure]) -> dict[str, Any]:
    plugins = [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "checks": [vars(finding) for finding in told],
        }
        for plugin, told in found
    ]
    broken = [{"plugin": failure.plugin, "error": failure.error, "remedy": _LOADING} for failure in failures]
    return {"schema": 1, "plugins": plugins, "failures": broken}
