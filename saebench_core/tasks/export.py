"""Writes the activations of a backbone where the user asks, in the layout that the `activations` backbone reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saebench_core.activations import MANIFEST, StoredReader, collect
from saebench_core.errors import InputError
from saebench_core.interfaces.backbone import BackboneConfig
from saebench_core.interfaces.context import Split
from saebench_core.plan import activations_product
from saebench_core.registry import Entry
from saebench_core.tasks.workbench import Workbench

__all__ = ["export_splits"]


def export_splits(
    bench: Workbench,
    entry: Entry[BackboneConfig],
    identity: Mapping[str, Any],
    site: str,
    rows: Mapping[Split, int],
    folder: Path,
) -> None:
    """Write splits below a folder; what is stored already is copied, the rest is computed and stored nowhere else.

    The manifest is written last, so that a folder without one is not complete.

    Args:
        bench: tools.
        entry: backbone.
        identity: the backbone's part of product keys.
        site: place that is read.
        rows: how many rows of each split; fewer where it has fewer.
        folder: where to write.

    Raises:
        InputError: if there is something in the way.
    """
    for split in rows:
        if (folder / split).exists():
            raise InputError(f"{folder / split}: is there already; choose another folder, or remove it")
    for split, count in rows.items():
        product = activations_product(identity, site, split, count)
        if bench.store.has(product.kind, product.key):
            reader = StoredReader(bench.store.path(product.kind, product.key), bench.device)
        else:
            found = bench.live(entry, identity, site, split, count)
            if not isinstance(found, StoredReader):
                (folder / split).mkdir(parents=True)
                collect(found.backbone, site, split, found.rows, folder / split, bench.progress)
                continue
            reader = found
        _copy(reader, folder / split)


def _copy(reader: StoredReader, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (*(shard.file for shard in reader.manifest.shards), MANIFEST):
        shutil.copyfile(reader.path / name, folder / name)
