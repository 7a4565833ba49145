"""Trains an SAE beside its random twins on activations that a notebook has as a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from saebench_core.api.entries import EntryLike, as_block, as_entry, as_list
from saebench_core.api.notebook import work_through
from saebench_core.api.opening import checked_workdir, plan_registry
from saebench_core.api.outcomes import Results
from saebench_core.api.tensors import Rows, SplitRows, by_split, cut, keep, stored_entry
from saebench_core.catalog import make_catalog
from saebench_core.errors import InputError
from saebench_core.registry import Document, Registry, validate
from saebench_core.store import Store

__all__ = ["train_twins"]

_LABEL: Final = "train_twins"
_STEPS: Final = 2000
_BATCH: Final = 1024
_LR: Final = 1e-3


def train_twins(
    activations: Rows | Mapping[str, Rows],
    architecture: EntryLike,
    constraints: Sequence[EntryLike],
    *,
    l0: float | Sequence[float] = 32,
    seeds: int | Sequence[int] = 0,
    training: Mapping[str, Any] | None = None,
    metrics: Sequence[EntryLike] = ("reconstruction",),
    runtime: Mapping[str, Any] | None = None,
    workdir: str | Path = ".saebench",
    name: str = "twins",
    progress: bool = True,
) -> Results:
    """Train an SAE and its random twins on the same rows in the same order, score them, and return all of them.

    It is a registry with one backbone: planned, stored, certified and scored as any other. The rows are written once
    below the workdir, by what they are; the same rows with the same settings are not trained on again.

    Args:
        activations: ``(rows, d_in)``, a tensor or an array of floating-point numbers: the last tenth of the rows is
            evaluated on, the tenth before it calibrates, the others are trained on. Or a mapping with a tensor for
            each of ``train``, ``calibration`` and ``evaluation``.
        architecture: entry as in a registry, such as ``{"type": "topk", "expansion": 4}``.
        constraints: entries, such as ``["trained", {"type": "frozen_decoder", "init": "cov"}]``.
        l0: target number of active latents, or several.
        seeds: of weights and batch order.
        training: the registry's ``training``; by default 2,000 steps of 1,024 rows (all, if there are fewer) with a
            learning rate of 1e-3.
        metrics: entries.
        runtime: the registry's ``runtime``, such as ``{"device": "cpu"}``.
        workdir: folder that everything is written below.
        name: of the sweep.
        progress: whether to show how it goes, on standard error.

    Returns:
        All cells; ``results["trained", 0].sae`` is the SAE of a constraint and a seed.

    Raises:
        InputError: if an argument cannot be used, with what was given and what is allowed.
        InsufficientSpaceError: if the disk has less room than the plan expects to need.
        KeyboardInterrupt: if the user interrupts; the same call goes on.
    """
    splits = by_split(_LABEL, activations, cut)
    place = checked_workdir(Path(workdir))
    data = {
        "name": name,
        "backbones": [{"name": "rows", "type": "activations", "path": "rows"}],
        "architectures": [as_entry(architecture)],
        "constraints": as_list(_LABEL, "constraints", constraints),
        "l0": l0 if isinstance(l0, Sequence) else [l0],
        "seeds": seeds if isinstance(seeds, Sequence) else [seeds],
        "training": _training(splits) if training is None else as_block(training),
        "runtime": as_block(runtime),
        "metrics": as_list(_LABEL, "metrics", metrics),
    }
    catalog = make_catalog()
    batch = validate(Document.of(_LABEL, data), catalog).training.batch_size  # before anything is written
    _check_rows(splits, batch)
    data["backbones"] = [stored_entry(keep(_LABEL, splits, Store(place / "store")), "rows")]
    registry = Registry.from_dict(data, catalog=catalog, label=_LABEL)
    return work_through(plan_registry(registry, place), progress=progress)


def _training(splits: SplitRows) -> dict[str, Any]:
    return {"steps": _STEPS, "batch_size": min(_BATCH, int(splits["train"].shape[0])), "lr": _LR}


def _check_rows(splits: SplitRows, batch_size: int) -> None:
    """Refuse what would fail at the first batch.

    Raises:
        InputError: if there are too few rows to train on.
    """
    rows = {split: int(part.shape[0]) for split, part in splits.items()}
    if rows["train"] < batch_size:
        told = ", ".join(f"{count:,} {split}" for split, count in rows.items())
        raise InputError(
            f"{_LABEL}: {rows['train']:,} rows to train on are less than one batch of {batch_size:,} ({told}); "
            "give more rows, or training with a smaller batch_size"
        )
