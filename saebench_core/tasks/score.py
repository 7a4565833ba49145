"""The metric task (inputs, floor, ceiling) and the score task (one SAE, one metric)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from saebench_core.errors import PluginError
from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.metric import Metric, NotApplicable, Prepared, Score, Scored, Subject
from saebench_core.plan import Product, Task
from saebench_core.registry import Cell
from saebench_core.tasks.train import load_statistics, start_of
from saebench_core.tasks.workbench import PluginContext, ScoringContext, Workbench

__all__ = ["prepare_metric", "read_score", "score"]


def _context(task: Task, bench: Workbench, identity: Mapping[str, Any]) -> ScoringContext:
    if task.metric is None:
        raise ValueError(f"{task.label} has no metric")
    base = PluginContext(bench, task.backbone.config.seed, task.metric.plugin)
    return ScoringContext(base, task.backbone, identity, task.site)


def _metric(task: Task) -> Metric:
    return cast(Metric, task.metric.instance) if task.metric else cast(Metric, None)


def prepare_metric(task: Task, bench: Workbench, identity: Mapping[str, Any]) -> None:
    """Compute a metric's inputs for a backbone and site and publish them."""
    metric, product = _metric(task), task.products[0]

    def build(folder: Path) -> None:
        refusal = metric.applicable(cast(Backbone, task.backbone.instance))
        if refusal is not None:
            _write_json(folder / "prepared.json", {"not_applicable": refusal.reason})
            return
        prepared = metric.prepare(_context(task, bench, identity))
        unknown = (set(prepared.floors) | set(prepared.ceilings)) - set(metric.scores())
        if unknown:
            raise PluginError(f"{task.label}: floors or ceilings for scores that are not declared: {sorted(unknown)}")
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in prepared.tensors.items()}
        save_file(tensors, folder / "tensors.safetensors")
        content = {"facts": dict(prepared.facts), "floors": dict(prepared.floors), "ceilings": dict(prepared.ceilings)}
        _write_json(folder / "prepared.json", content)

    bench.make(product, build)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _load_prepared(folder: Path, device: torch.device) -> Prepared | NotApplicable:
    content = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    if "not_applicable" in content:
        return NotApplicable(content["not_applicable"])
    tensors = load_file(folder / "tensors.safetensors", device=str(device))
    return Prepared(tensors, content["facts"], content["floors"], content["ceilings"])


def score(task: Task, bench: Workbench, identity: Mapping[str, Any], sae: Product, prepared: Product) -> None:
    """Score one cell's SAE and publish values and per-item table."""
    metric, cell = _metric(task), task.cells[0]

    def build(folder: Path) -> None:
        device = torch.device("cpu") if metric.large_inputs else bench.device
        inputs = _load_prepared(bench.store.path(prepared.kind, prepared.key), device)
        if isinstance(inputs, NotApplicable):
            _write_json(folder / "scores.json", {name: {"reason": inputs.reason} for name in metric.scores()})
            return

        others = {other.seed: partial(_subject, other, product, bench, identity) for other, product in task.beside}
        subject = replace(_subject(cell, sae, bench, identity), others=others)
        found = metric.score(subject, inputs, _context(task, bench, identity))
        _check(found, metric, task.label)
        _write_json(folder / "scores.json", {name: _plain(value, name, inputs) for name, value in found.scores.items()})
        _write_items(found, folder)

    bench.make(task.products[0], build)


def _subject(cell: Cell, sae: Product, bench: Workbench, identity: Mapping[str, Any]) -> Subject:
    """Return a cell's SAE as metrics see it."""

    def start_decoder() -> torch.Tensor:
        return start_of(cell, load_statistics(bench, cell, identity)).w_dec.to(bench.device)

    return Subject(bench.load_sae(bench.store.path(sae.kind, sae.key) / "sae"), start_decoder)


def _check(found: Scored, metric: Metric, label: str) -> None:
    declared = metric.scores()
    if set(found.scores) != set(declared):
        raise PluginError(f"{label}: returned the scores {sorted(found.scores)}, declared are {sorted(declared)}")
    for name, value in found.scores.items():
        info = declared[name]
        if isinstance(value, Score):
            low = info.low is not None and value.value < info.low - 1e-6
            high = info.high is not None and value.value > info.high + 1e-6
            if low or high:
                raise PluginError(f"{label}: {name} = {value.value} is outside its range [{info.low}, {info.high}]")
    lengths = {len(column) for column in found.items.values()}
    if len(lengths) > 1:
        raise PluginError(f"{label}: the columns of the per-item table have different lengths: {sorted(lengths)}")


def _plain(value: Score | NotApplicable, name: str, prepared: Prepared) -> dict[str, Any]:
    references = {"floor": prepared.floors.get(name), "ceiling": prepared.ceilings.get(name)}
    if isinstance(value, NotApplicable):
        return {"reason": value.reason, **references}
    return {"value": value.value, "n": value.n, **references}


def _write_items(found: Scored, folder: Path) -> None:
    if not found.items:
        return
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: list(column) for name, column in found.items.items()})
    pyarrow.parquet.write_table(table, folder / "items.parquet")


def read_score(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the stored scores of a score product."""
    return dict(json.loads((folder / "scores.json").read_text(encoding="utf-8")))
