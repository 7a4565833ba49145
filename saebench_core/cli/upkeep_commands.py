"""Commands about what lies in the workdir: du, gc."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saebench_core.cli.options import DEFAULT_WORKDIR, Device, Json, Set, Workdir, opened

if TYPE_CHECKING:
    from collections.abc import Iterable

    from saebench_core.upkeep import Place, Removal

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(du)
    app.command()(gc)


def du(workdir: Workdir = DEFAULT_WORKDIR, as_json: Json = False) -> None:
    """Say what the store holds, by kind of product, what is unfinished, and how much room is left on its disk."""
    from saebench_core.store import Store
    from saebench_core.upkeep import places

    folder = _there(workdir)
    found = list(places(Store(folder / "store")))
    complete = [place for place in found if place.state == "complete"]
    rest = _unfinished(found)
    kinds = _by_kind(complete)
    free = shutil.disk_usage(folder).free
    total = sum(place.bytes for place in found)
    if as_json:
        unfinished = {"count": len(rest), "bytes": sum(place.bytes for place in rest)}
        document = {"schema": 1, "kinds": kinds, "unfinished": unfinished, "total_bytes": total, "free_bytes": free}
        typer.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    _table(kinds, rest)
    typer.echo(f"{_size(total)} in products and checkpoints of {folder}, {_size(free)} free on its disk")


def gc(
    registry: Annotated[
        str | None,
        typer.Argument(metavar="[REGISTRY]", help="Keep what this one needs; by default all that were run here."),
    ] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this nothing is changed.")] = False,
    device: Device = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Say what in the store no registry needs any more, and delete it with --delete.

    What a running process works on is kept, whichever registry is named.
    """
    from saebench_core.catalog import make_catalog
    from saebench_core.errors import InputError
    from saebench_core.store import Store
    from saebench_core.upkeep import known_registries, needs_of, remove, unneeded

    folder = _there(workdir)
    if registry is None and (settings or device):
        raise InputError("--set and --device go with a registry; name it")
    named = [opened(registry, folder, settings, device=device)] if registry is not None else []
    count = known_registries(folder, make_catalog(), named)
    store = Store(folder / "store")
    outcome = remove(store, unneeded(store, needs_of(count)), act=delete)
    names = sorted({one.registry.name for one in count})
    if as_json:
        typer.echo(json.dumps(_document(outcome, names, delete), indent=2, sort_keys=True))
        return
    _table(_by_kind(place for place in outcome.removed if place.state == "complete"), _unfinished(outcome.removed))
    for place in outcome.held:
        typer.echo(f"held by a running process: {place.kind}/{place.key[:12]}")
    freed = f"{_size(sum(place.bytes for place in outcome.removed))} not needed by {', '.join(names)}"
    typer.echo(f"deleted {freed}" if delete else f"{freed}; nothing was changed, --delete deletes it")


def _document(outcome: Removal, names: list[str], deleted: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "deleted": deleted,
        "registries": names,
        "products": [_plain(place) for place in outcome.removed],
        "held": [_plain(place) for place in outcome.held],
        "bytes": sum(place.bytes for place in outcome.removed),
    }


def _there(workdir: Path) -> Path:
    from saebench_core.errors import InputError

    folder = workdir.absolute()
    if not folder.is_dir():
        raise InputError(f"--workdir {workdir}: no such folder")
    return folder


def _unfinished(found: Iterable[Place]) -> list[Place]:
    return [place for place in found if place.state != "complete"]


def _plain(place: Place) -> dict[str, Any]:
    return {"kind": place.kind, "key": place.key, "state": place.state, "bytes": place.bytes}


def _by_kind(found: Iterable[Place]) -> list[dict[str, Any]]:
    sums: dict[str, list[int]] = {}
    for place in found:
        sums.setdefault(place.kind, []).append(place.bytes)
    return [{"kind": kind, "products": len(sizes), "bytes": sum(sizes)} for kind, sizes in sorted(sums.items())]


def _table(kinds: list[dict[str, Any]], rest: list[Place]) -> None:
    rows = [(row["kind"], row["products"], row["bytes"]) for row in kinds]
    if rest:
        rows.append(("unfinished", len(rest), sum(place.bytes for place in rest)))
    for kind, number, size in rows:
        typer.echo(f"{kind:<12} {number:>7} {_size(size):>10}")


def _size(count: int) -> str:
    from saebench_core.api.progress import size

    return size(count)
