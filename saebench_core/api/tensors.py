"""Activations that a notebook has as tensors: checked, cut into splits, and written once in the layout of the store."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import numpy
import torch
from torch import Tensor

from saebench_core.activations import MANIFEST, SHARD_ROWS, write_rows
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.context import Split
from saebench_core.store import Store, content_key

__all__ = ["ROWS", "Rows", "SplitRows", "by_split", "cut", "keep", "stored_entry"]

Rows = Tensor | numpy.ndarray
"""Activations ``(rows, d_in)`` of any floating-point type, as a tensor or an array."""

SplitRows = Mapping[Split, Rows]

ROWS: Final = "rows"
"""Kind of the products that tensors are kept as."""

_SPLITS: Final[tuple[Split, ...]] = get_args(Split)
_HELD_OUT: Final = 10
"""One row of so many goes to the calibration split, and one to the evaluation split."""


def by_split(caller: str, given: Rows | Mapping[str, Rows], whole: Callable[[Rows], SplitRows]) -> SplitRows:
    """Return the rows of each split, their shapes and types checked.

    Args:
        caller: what errors begin with.
        given: one tensor, or one for each split.
        whole: makes splits of one tensor.

    Raises:
        InputError: if it is no tensor of rows, or the splits do not fit together.
    """
    if not isinstance(given, Mapping):
        _check(f"{caller}: activations", given)
        return whole(given)
    for name in given:
        if name not in _SPLITS:
            raise InputError(f"{caller}: no split is called {name!r}{nearest(str(name), _SPLITS)}; {_wanted()}")
    missing = [split for split in _SPLITS if split not in given]
    if missing:
        raise InputError(f"{caller}: activations of the split {missing[0]!r} are missing; {_wanted()}")
    splits: dict[Split, Rows] = {split: given[split] for split in _SPLITS}
    for split, rows in splits.items():
        _check(f"{caller}: activations[{split!r}]", rows)
    widths = {split: int(rows.shape[1]) for split, rows in splits.items()}
    if len(set(widths.values())) > 1:
        raise InputError(f"{caller}: the splits of the activations differ in d_in: {widths}")
    return splits


def _wanted() -> str:
    return f"give one tensor, or a mapping with {', '.join(_SPLITS)}"


def _check(what: str, rows: object) -> None:
    if not isinstance(rows, Tensor | numpy.ndarray):
        kind = f"{type(rows).__module__}.{type(rows).__qualname__}".removeprefix("builtins.")
        raise InputError(f"{what}: expected a torch.Tensor or a numpy.ndarray (rows, d_in), got {kind}")
    shape = tuple(rows.shape)
    if len(shape) != 2:
        hint = "; reshape(-1, d_in) makes rows of all positions" if len(shape) > 2 else ""
        raise InputError(f"{what}: expected the shape (rows, d_in), got {shape}{hint}")
    if not shape[0] or not shape[1]:
        raise InputError(f"{what}: expected at least one row and one column, got the shape {shape}")
    if not (rows.is_floating_point() if isinstance(rows, Tensor) else numpy.issubdtype(rows.dtype, numpy.floating)):
        raise InputError(f"{what}: expected floating-point numbers, got {rows.dtype}")


def cut(rows: Rows) -> SplitRows:
    """Cut rows in their order: the last tenth is evaluated on, the tenth before it calibrates, the rest is trained on.

    Raises:
        InputError: if there are too few rows for that.
    """
    count = int(rows.shape[0])
    held = count // _HELD_OUT
    if held < 2:
        raise InputError(f"activations: {count} rows are too few: of {2 * _HELD_OUT}, two are evaluated on")
    first, second = count - 2 * held, count - held
    return {"train": rows[:first], "calibration": rows[first:second], "evaluation": rows[second:]}


def keep(caller: str, splits: SplitRows, store: Store) -> Path:
    """Return the folder in which the rows lie, written at the first call with these numbers.

    Args:
        caller: what errors begin with.
        splits: from `by_split`; splits that are one tensor are stored once.
        store: where to write.

    Raises:
        InputError: if a number is not finite in float32.
    """
    digests: dict[int, str] = {}
    for split, rows in splits.items():
        if id(rows) not in digests:
            digests[id(rows)] = _sha256(f"{caller}: activations of the split {split}", rows)
    identity: dict[str, Any] = {"rows": {split: digests[id(rows)] for split, rows in splits.items()}}

    def build(folder: Path) -> None:
        written: dict[int, Path] = {}
        for split, rows in splits.items():
            (folder / split).mkdir()
            if id(rows) in written:
                _share(written[id(rows)], folder / split)
                continue
            write_rows(_blocks(rows), folder / split, lambda _: None)
            written[id(rows)] = folder / split

    return store.make(ROWS, content_key(identity), identity, build)


def _share(source: Path, target: Path) -> None:
    """Give a split the files of another; they never change, so one copy on the disk serves both."""
    for path in sorted(source.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, target / path.name)


def _blocks(rows: Rows) -> Iterator[Tensor]:
    """Yield the rows as fp32 on the CPU, some at a time."""
    for start in range(0, int(rows.shape[0]), SHARD_ROWS):
        part = rows[start : start + SHARD_ROWS]
        if isinstance(part, Tensor):
            yield part.detach().to("cpu", torch.float32).contiguous()
        else:
            with numpy.errstate(over="ignore"):  # what is too large is found as infinite
                yield torch.from_numpy(numpy.array(part, dtype=numpy.float32, order="C"))


def _sha256(what: str, rows: Rows) -> str:
    """Return the hash of shape and fp32 values.

    Raises:
        InputError: if a number is not finite.
    """
    digest = hashlib.sha256(f"{tuple(rows.shape)}".encode())
    broken, first, seen = 0, 0, 0
    for block in _blocks(rows):
        bad = (~torch.isfinite(block).all(dim=1)).nonzero().flatten()
        if bad.numel() and not broken:
            first = seen + int(bad[0])
        broken += bad.numel()
        seen += block.shape[0]
        digest.update(block.numpy().data)
    if broken:
        raise InputError(
            f"{what}: {broken:,} of {seen:,} rows hold numbers that are not finite in float32, "
            f"the first is row {first:,}; leave them out"
        )
    return digest.hexdigest()


def stored_entry(folder: Path, name: str) -> dict[str, Any]:
    """Return the registry's entry for rows that `keep` has written; where they lie is no part of cell ids."""
    manifests = b"".join((folder / split / MANIFEST).read_bytes() for split in _SPLITS)
    return {
        "name": name,
        "type": "activations",
        "path": str(folder),
        "sha256": hashlib.sha256(manifests).hexdigest(),
    }
