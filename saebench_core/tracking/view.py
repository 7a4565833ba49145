"""How a cell looks as an MLflow run: name, tags, params, metrics, note. No mlflow in here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from saebench_core.results import SCHEMA_VERSION, CellRecord, CellResult
from saebench_core.store import content_key
from saebench_core.tracking.names import metric_key

__all__ = [
    "COMMON_PARAMS",
    "Point",
    "cell_metrics",
    "cell_note",
    "cell_params",
    "cell_tags",
    "curve_metrics",
    "group_label",
    "is_random",
    "run_name",
]

SENTINEL: Final = "none"
CURVE_POINTS: Final = 300
"""Points kept of a curve: the MLflow server draws at most 2,500 a run, and the whole curve is an artifact."""

COMMON_PARAMS: Final = ("modality", "d_in", "d_sae", "expansion", "lr", "steps", "tokens", "batch_size")
"""Settings that every run shows, with a sentinel where a cell does not say them (it failed before it knew)."""

_CERTIFIED: Final = ("at_bound_share", "realised_l0", "alive_share")


class Point(NamedTuple):
    """One value of a metric; equal points logged twice are one point."""

    key: str
    value: float
    timestamp_ms: int
    step: int


def is_random(result: CellResult) -> bool:
    """Say whether something in the cell is held random."""
    return result.constraint.type not in ("trained", "pretrained")


def _text(value: str | float | None) -> str:
    if value is None:
        return SENTINEL
    if isinstance(value, float):
        return f"{value:.12g}"  # 20.0 and 20 are one setting
    return str(value)


def cell_params(record: CellRecord) -> dict[str, str]:
    """Return the params of a cell's run; the same keys for every cell of a registry."""
    result = record.result
    base: dict[str, str | float | None] = {
        "backbone": result.backbone.name,
        "backbone_type": result.backbone.type,
        "site": result.site,
        "architecture": result.architecture.name,
        "architecture_type": result.architecture.type,
        "constraint": result.constraint.name,
        "constraint_type": result.constraint.type,
        "init": result.init,
        "l0_target": result.l0_target,
        "seed": result.seed,
    }
    common = dict.fromkeys(COMMON_PARAMS, None)
    return {key: _text(value) for key, value in {**common, **record.params, **base}.items()}


def _parts(result: CellResult) -> list[str]:
    return [f"{result.backbone.name}/{result.site}", result.architecture.name, f"L0={_text(result.l0_target)}"]


def group_label(record: CellRecord) -> str:
    """Return what cells share that differ in the seed only: readable, with a hash of all settings."""
    settings = {key: value for key, value in cell_params(record).items() if key != "seed"}
    configs = [entry.config for entry in (record.result.backbone, record.result.architecture, record.result.constraint)]
    return (
        " | ".join([record.result.constraint.name, *_parts(record.result)])
        + f" #{content_key([settings, configs])[:8]}"
    )


def run_name(result: CellResult) -> str:
    """Return a readable name; what tells twins apart comes first, because tables and legends cut the rest.

    Identity is a tag, not the name.
    """
    return " | ".join([f"{result.constraint.name} s{result.seed}", *_parts(result)])


def cell_tags(record: CellRecord) -> dict[str, str]:
    """Return the tags that people filter and group by."""
    result = record.result
    tags = {
        "saebench.kind": "cell",
        "saebench.schema": str(SCHEMA_VERSION),
        "saebench.cell_id": result.cell_id,
        "saebench.group": group_label(record),
        "saebench.is_random": str(is_random(result)).lower(),
        "saebench.status": result.status,
        "saebench.flags": ",".join(result.flags),
    }
    if "modality" in record.params:
        tags["saebench.modality"] = str(record.params["modality"])
    if result.error:
        tags["saebench.error"] = result.error[:2000]
    return tags | {f"saebench.plugin.{kind}": version for kind, version in record.plugins.items()}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _certificate_numbers(certificate: Mapping[str, Any]) -> dict[str, float]:
    found = {key: certificate.get(key) for key in _CERTIFIED}
    cosine = certificate.get("decoder_cosine")
    if isinstance(cosine, Mapping):
        found |= {f"decoder_cosine_{key}": cosine.get(key) for key in ("min", "mean")}
    return {f"certificate/{key}": value for key, value in _finite(found).items()}


def cell_metrics(record: CellRecord) -> list[Point]:
    """Return a cell's numbers: scores with their floors and ceilings, certificate, times; few and flat.

    All carry the time at which the cell was finished, so that logging them again changes nothing.
    """
    numbers: dict[str, float] = {}
    for name, score in sorted(record.result.metrics.items()):
        key = metric_key(name)
        if key in numbers:  # two names that differ in refused characters only
            key = f"{key}.{content_key(name)[:6]}"
        found = {key: score.value, f"{key}.floor": score.floor, f"{key}.ceiling": score.ceiling}
        numbers |= _finite(found)
    numbers |= _certificate_numbers(record.result.certificate or {})
    numbers |= _finite({f"time/{kind}_s": seconds for kind, seconds in record.seconds.items()})
    return [Point(key, value, record.finished_ms, 0) for key, value in numbers.items()]


def thin(points: Sequence[Any], most: int = CURVE_POINTS) -> list[Any]:
    """Return at most that many points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (most - 1))] for index in range(most)]


def curve_metrics(points: Iterable[Mapping[str, Any]]) -> tuple[list[Point], list[str]]:
    """Return a training curve as metrics over rows seen, and the names that had non-finite values (left out)."""
    columns: dict[str, list[Point]] = {}
    refused: set[str] = set()
    for point in points:
        for name, value in point["values"].items():
            if value is None:
                continue
            if not math.isfinite(value):
                refused.add(name)  # MLflow would keep NaN, and turn infinity into 1.8e308
                continue
            key = f"train/{metric_key(name)}"
            columns.setdefault(key, []).append(Point(key, float(value), int(point["time_ms"]), int(point["rows"])))
    return [point for column in columns.values() for point in thin(column)], sorted(refused)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def cell_note(record: CellRecord) -> str:
    """Return the short Markdown that the run's page shows."""
    result = record.result
    lines = [f"**{_cell(run_name(result))}**", "", f"status: {result.status}"]
    if result.flags:
        lines.append(f"flags: {', '.join(result.flags)}")
    if result.error:
        lines += ["", "```", result.error[:2000].replace("```", "'''"), "```"]
    if result.metrics:
        lines += ["", "| score | value | floor | ceiling | |", "|---|---|---|---|---|"]
    for name, score in sorted(result.metrics.items()):
        numbers = ["" if number is None else f"{number:.4g}" for number in (score.value, score.floor, score.ceiling)]
        remark = score.reason or ("" if score.valid_null or not is_random(result) else "not a null for this score")
        lines.append(f"| {_cell(name)} | {' | '.join(numbers)} | {_cell(remark)} |")
    return "\n".join(lines)[:7500]  # tags end at 8000 characters
