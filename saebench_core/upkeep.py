"""What lies in a store, how large it is, and what of it no registry needs any more."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

from saebench_core.api import GIVEN, ROWS, Opened, reopen
from saebench_core.catalog import Catalog, Plugin
from saebench_core.errors import InputError
from saebench_core.plan import core_digest
from saebench_core.results import Journal
from saebench_core.store import DONE, Store, canonical_json
from saebench_core.training.checkpoints import FOLDER as CHECKPOINTS

__all__ = ["Needs", "Place", "Removal", "known_registries", "needs_of", "places", "remove", "unneeded"]

State = Literal["complete", "draft", "remains", "checkpoint"]
HANDED: Final = frozenset({ROWS, GIVEN})
"""Kinds that notebooks hand over; a registry needs those that its text names by their keys."""
KINDS: Final = frozenset({"activations", "statistics", "metric", "derived", "sae", "score"}) | HANDED
"""Kinds that registries are known to need or not to need; any other is left alone, as is what came from outside."""
_KEY: Final = re.compile(r"\b[0-9a-f]{64}\b")


@final
@dataclass(frozen=True)
class Place:
    """A folder in the store, or the checkpoint of an SAE beside it.

    Attributes:
        kind: of the product.
        key: of the product.
        path: the folder.
        bytes: size of its files.
        state: ``complete``; ``draft``: being built, or left by a process that died; ``remains``: of a removal that was
            interrupted; ``checkpoint``: of a training that is not finished.
    """

    kind: str
    key: str
    path: Path
    bytes: int
    state: State


def places(store: Store) -> Iterator[Place]:
    """Yield every product, draft and remainder of a store, and the checkpoints beside it."""
    for path in sorted(store.root.glob("[!.]*/*/*/")):
        kind, name = path.parent.parent.name, path.name
        if name.startswith("."):
            if name.endswith(".tmp"):
                yield Place(kind, name.split(".")[1], path, _size(path), "draft")
        else:
            yield Place(kind, name, path, _size(path), "complete" if (path / DONE).is_file() else "remains")
    for path in sorted((store.root.parent / CHECKPOINTS).glob("*/")):
        yield Place("sae", path.name, path, _size(path), "checkpoint")


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that go away meanwhile count as nothing."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(above) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


@final
@dataclass(frozen=True)
class Needs:
    """What registries need of a store.

    Attributes:
        products: kind and key of the products in their plans.
        backbones: backbones of their plans, as JSON; their statistics are needed.
        plugins: names, identities and environments, as JSON; what these plugins made for themselves is needed.
        named: keys that stand in their texts.
    """

    products: frozenset[tuple[str, str]]
    backbones: frozenset[str]
    plugins: frozenset[str]
    named: frozenset[str]

    def cover(self, place: Place) -> bool:
        """Say whether a product is needed; where a plan does not name it, its identity decides."""
        if (place.kind, place.key) in self.products or place.kind not in KINDS:
            return True
        if place.kind in HANDED:
            return place.key in self.named
        if place.kind not in {"statistics", "derived"}:
            return False
        try:
            identity: dict[str, Any] = json.loads((place.path / "key.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if identity.get("core") != core_digest("activations"):
            return False
        if place.kind == "statistics":
            return canonical_json(identity.get("backbone")) in self.backbones
        return canonical_json({key: identity.get(key) for key in ("name", "plugin", "device", "torch")}) in self.plugins


def needs_of(registries: Iterable[Opened]) -> Needs:
    """Return what open registries need; a plugin's own products are needed as long as the plugin is used."""
    products: set[tuple[str, str]] = set()
    backbones: set[str] = set()
    plugins: set[str] = set()
    named: set[str] = set()
    for opened in registries:
        named.update(_KEY.findall(opened.registry.text))
        products |= {(product.kind, product.key) for task in opened.plan.tasks for product in task.products}
        backbones |= {canonical_json(identity) for identity in opened.plan.identities.values()}
        environment = {"device": opened.environment.device, "torch": opened.environment.torch}
        for plugin in _plugins(opened):
            plugins.add(canonical_json({"name": plugin.name, "plugin": plugin.identity(), **environment}))
    return Needs(frozenset(products), frozenset(backbones), frozenset(plugins), frozenset(named))


def _plugins(opened: Opened) -> list[Plugin]:
    """Return the plugins of a registry that may make products for themselves."""
    used: dict[tuple[str, str], Plugin] = {}
    for cell in opened.registry.active:
        for plugin in (cell.backbone.plugin, cell.architecture.plugin):
            used[plugin.kind, plugin.name] = plugin
    for entry in opened.registry.metrics:
        used[entry.plugin.kind, entry.plugin.name] = entry.plugin
    return list(used.values())


def known_registries(workdir: Path, catalog: Catalog, named: Sequence[Opened] = ()) -> list[Opened]:
    """Return the registries that count: those named, or all of the journal; and those that a process works on now.

    Args:
        workdir: folder of journal and store.
        catalog: installed plugins.
        named: registries that the user named.

    Raises:
        InputError: if there are none, or one can no longer be planned, so that its products are not known.
    """
    sweeps = Journal(workdir).sweeps()
    if named:
        held = Store(workdir / "store").held()
        sweeps = [sweep for sweep in sweeps if sweep.sweep_id in held]
    elif not sweeps:
        raise InputError(f"{workdir}: no registry was run here; name one, so that it is known what is needed")
    problems: list[str] = []
    found = list(named)
    for sweep in sweeps:
        try:
            found.append(reopen(sweep, workdir, catalog))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems, "what these registries need is not known; name the registry that counts")
    return found


def unneeded(store: Store, needs: Needs) -> list[Place]:
    """Return what is not needed: products, checkpoints, drafts of processes that died, and remains."""

    def needed(place: Place) -> bool:
        if place.state == "checkpoint":  # of an SAE that is published it is a leftover
            return needs.cover(place) and not store.has(place.kind, place.key)
        return place.state == "complete" and needs.cover(place)

    return [place for place in places(store) if not needed(place)]


@final
@dataclass(frozen=True)
class Removal:
    """What became of places: removed, or held by a process that builds there."""

    removed: tuple[Place, ...]
    held: tuple[Place, ...]


def remove(store: Store, found: Iterable[Place], act: bool = True) -> Removal:
    """Remove places whose lock is free.

    Args:
        store: where they are.
        found: what `unneeded` returned.
        act: False only says what would be removed.
    """
    removed: list[Place] = []
    held: list[Place] = []
    for place in found:
        with store.locked(place.kind, place.key) as free:
            if place.state == "remains" and store.has(place.kind, place.key):  # built anew since it was looked at
                continue
            (removed if free else held).append(place)
            if not free or not act:
                continue
            if place.state in ("draft", "checkpoint"):
                shutil.rmtree(place.path, ignore_errors=True)
            else:
                store.remove(place.kind, place.key)
    return Removal(tuple(removed), tuple(held))
