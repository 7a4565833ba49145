"""From plan and store to the records of cells: what ``results``, ``report`` and the trackers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from saebench_core.interfaces.constraint import Constraint, Init, Randomised
from saebench_core.interfaces.metric import Metric, Reads, ScoreInfo
from saebench_core.plan import Plan, Task
from saebench_core.registry import Cell, Entry, Registry
from saebench_core.results import CellRecord, CellResult, EntryRef, MetricValue
from saebench_core.store import Store
from saebench_core.tasks.perform import Failures
from saebench_core.tasks.references import at_measured_l0
from saebench_core.tasks.score import read_score

__all__ = ["collect_record", "collect_records", "valid_null"]

_READS: Mapping[Reads, frozenset[Randomised]] = {
    "encoder": frozenset({"encoder", "codes"}),
    "decoder": frozenset({"decoder"}),
    "both": frozenset({"encoder", "decoder", "pairing", "codes"}),
}


def valid_null(constraint: Constraint, init: Init, reads: Reads) -> bool:
    """Say whether a constraint randomises something that a score reads; what starts at the truth is not random."""
    if constraint.reference:
        return False
    told = {"encoder", "decoder"} if init == "truth" else set()
    return bool(constraint.randomises & _READS[reads] - told)


def collect_records(plan: Plan, store: Store, failures: Failures, workdir: Path) -> list[CellRecord]:
    """Return the records of all cells of a plan's registry that are concerned, excluded ones included."""
    planned = {cell.cell_id for cell in plan.cells}
    whole = len(plan.cells) == len(plan.registry.active)
    records = []
    for cell in plan.registry.cells:
        if cell.excluded and whole:
            records.append(
                CellRecord(
                    result=_result(cell, status="excluded"),
                    finished_ms=0,
                    params=_params(cell, plan.registry),
                    paired=not cell.measured,
                )
            )
        elif cell.cell_id in planned and not cell.excluded:
            records.append(collect_record(cell, plan, store, failures, workdir))
    return records


def collect_record(cell: Cell, plan: Plan, store: Store, failures: Failures, workdir: Path) -> CellRecord:
    """Return what one cell has so far."""
    task, product = plan.train[cell.cell_id]
    cell = at_measured_l0(cell, plan.measured, store)
    if not store.has(product.kind, product.key):
        error = _error(task, cell, store, failures)
        return _record(cell, plan.registry, _result(cell, status="failed" if error else "pending", error=error), [], {})
    folder = store.path(product.kind, product.key)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    base = folder.relative_to(workdir).as_posix()
    artifacts = {"sae": f"{base}/sae", "certificate": f"{base}/certificate.json"}
    if (folder / "curves.jsonl").is_file():  # a loaded SAE has none
        artifacts["curves"] = f"{base}/curves.jsonl"
        artifacts["drift"] = f"{base}/drift.json"
    done = [store.facts(product.kind, product.key)]
    seconds: dict[str, float] = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    metrics: dict[str, MetricValue] = {}
    errors: list[str] = []
    complete = True
    for entry in plan.registry.metrics_of(cell):
        scoring = plan.scores[cell.cell_id, entry.name]
        found = scoring.products[0]
        if not store.has(found.kind, found.key):
            complete = False
            if (error := _error(scoring, cell, store, failures)) is not None:
                errors.append(f"{entry.name}: {error}")
            continue
        done.append(store.facts(found.kind, found.key))
        seconds["score"] = round(seconds.get("score", 0.0) + float(done[-1]["seconds"]), 3)
        place = store.path(found.kind, found.key)
        metrics |= _values(cell, entry, read_score(place))
        if (place / "items.parquet").is_file():
            artifacts[f"items/{entry.name}"] = f"{place.relative_to(workdir).as_posix()}/items.parquet"
    result = _result(
        cell,
        status="done" if complete else "failed" if errors else "pending",
        error="; ".join(errors) or None,
        flags=tuple(facts["flags"]),
        metrics=metrics,
        certificate=facts["certificate"],
        artifacts=artifacts,
    )
    return _record(cell, plan.registry, result, done, seconds)


def _error(task: Task, cell: Cell, store: Store, failures: Failures) -> str | None:
    """Return the error that keeps a task from being done: its own, or that of one it needs."""
    if task.kind == "train":
        mine = [product for one, product in zip(task.cells, task.products, strict=True) if one.cell_id == cell.cell_id]
    else:
        mine = list(task.products)
    for product in mine or task.products:
        if (error := failures.of(product)) is not None:
            return error
    for other, product in task.beside:
        if (error := failures.of(product)) is not None:
            return f"seed {other.seed}: {error}"
    for needed in task.needs:
        if needed.kind == "train" and needed is not task and task.kind == "score":
            continue  # the SAE is there; only what the score needs beside it can be missing
        if not needed.done(store) and (error := _error(needed, cell, store, failures)) is not None:
            return error if needed.kind == "metric" else f"{needed.label}: {error}"  # a metric's name is there already
    return None


def _values(cell: Cell, entry: Entry[Any], stored: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricValue]:
    metric = cast(Metric, entry.instance)
    infos = metric.scores()
    return {f"{entry.name}/{name}": _value(infos[name], cell, metric.version, found) for name, found in stored.items()}


def _value(info: ScoreInfo, cell: Cell, version: int, found: Mapping[str, Any]) -> MetricValue:
    constraint = cast(Constraint, cell.constraint.instance)
    return MetricValue(
        status="not_applicable" if "reason" in found else "ok",
        reason=found.get("reason"),
        value=found.get("value"),
        floor=found.get("floor"),
        ceiling=found.get("ceiling"),
        n=found.get("n"),
        direction=info.direction,
        unit=info.unit,
        reads=info.reads,
        valid_null=valid_null(constraint, cell.constraint.config.init, info.reads),
        metric_version=version,
    )


def _reference(entry: Entry[Any]) -> EntryRef:
    return EntryRef(name=entry.name, type=entry.type, config=entry.config.settings())


def _result(cell: Cell, **found: Any) -> CellResult:
    return CellResult(
        cell_id=cell.cell_id,
        backbone=_reference(cell.backbone),
        site=cell.site,
        architecture=_reference(cell.architecture),
        constraint=_reference(cell.constraint),
        init=cell.constraint.config.init,
        l0_target=cell.l0 or None,
        seed=cell.seed,
        **found,
    )


def _params(cell: Cell, registry: Registry) -> dict[str, str | float | int]:
    settings = cell.training
    return {
        "modality": registry.descriptions[cell.backbone.name].modality,
        "backbone": cell.backbone.name,
        "site": cell.site,
        "architecture": cell.architecture.name,
        "constraint": cell.constraint.name,
        "init": cell.constraint.config.init,
        "l0_target": cell.l0 or "measured",
        "seed": cell.seed,
        "d_in": cell.d_in,
        "d_sae": cell.d_sae,
        "expansion": round(cell.d_sae / cell.d_in, 4),
        "lr": settings.lr,
        "batch_size": settings.batch_size,
        "steps": settings.total_steps,
        "tokens": settings.total_rows,
    }


def _record(
    cell: Cell, registry: Registry, result: CellResult, done: list[dict[str, Any]], seconds: Mapping[str, float]
) -> CellRecord:
    entries: dict[str, Entry[Any]] = {
        "backbone": cell.backbone,
        "architecture": cell.architecture,
        "constraint": cell.constraint,
        **{f"metric.{entry.type}": entry for entry in registry.metrics_of(cell)},
    }
    return CellRecord(
        result=result,
        paired=not cell.measured,
        finished_ms=max((int(facts["published_ms"]) for facts in done), default=0),
        seconds=seconds,
        params=_params(cell, registry),
        plugins={kind: f"{entry.plugin.distribution} {entry.plugin.version}" for kind, entry in entries.items()},
    )
