"""Results of the studies: what a workdir has, beside what is stored already."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from study_latents import kept
from study_tables import LIMITS

from saebench_core.api import charts_of, galleries_of, open_registry
from saebench_core.conformance.context import KitContext
from saebench_core.interfaces.backbone import Backbone, GroundTruth
from saebench_core.report import comparisons
from saebench_core.report.lines import score_charts

DIGITS: Final = 6
ROUNDING: Final = 0.03
"""By how much a floor or ceiling may differ that was measured on another machine, where products round otherwise."""
WORLD_ROWS: Final = 4096
KEPT_VERSIONS: Final = ("saebench-core", "torch", "scikit-learn")
Data = dict[str, Any]
Limits = Mapping[str, Mapping[str, float | None]]


def collect(registry: str, workdir: Path) -> Data:
    """Return the results of a registry that a page can ask for: scores of every cell, and charts."""
    opened = open_registry(registry, workdir)
    records = [record for record in opened.records() if record.result.status != "excluded"]
    done = [record for record in records if record.result.status == "done"]
    environment = opened.sweep().environment
    return {
        "registry": registry,
        "versions": {name: [environment[name]] for name in KEPT_VERSIONS if name in environment},
        "cells": [_row(record) for record in done],
        "order": {record.result.cell_id: _names(record.result) for record in records},
        "failed": [record.result.cell_id for record in records if record.result.status == "failed"],
        "worlds": worlds(opened),
        "limits": _agreed((record.result.backbone.name, _limits_of(record.result)) for record in done),
        "charts": {chart.title: _rounded(asdict(chart)) for chart in _charts(opened, done)},
        "galleries": _galleries(opened, done),
    }


def worlds(opened: Any) -> dict[str, str]:
    """Return, by backbone that knows its features, a hash of what fires in its first evaluation rows."""
    found = {}
    for entry in {cell.backbone.name: cell.backbone for cell in opened.plan.cells}.values():
        backbone: Backbone = entry.plugin.spec.build(entry.config)
        if isinstance(backbone, GroundTruth):
            backbone.prepare(KitContext(Path("unused")))
            selection = backbone.codes("evaluation", 0, WORLD_ROWS).selection
            fired = selection.rows.numpy().tobytes() + selection.cols.numpy().tobytes()
            found[entry.name] = sha256(fired).hexdigest()[:16]
    return found


def _charts(opened: Any, done: Sequence[Any]) -> list[Any]:
    charts, problems = charts_of(opened, done)
    for problem in problems:
        sys.stderr.write(f"warning: {problem}\n")
    found = comparisons(done)
    return [*charts, *(chart for score in opened.registry.headline for chart in score_charts(found, done, score))]


def _galleries(opened: Any, done: Sequence[Any]) -> Data:
    """Return galleries by title; where two metrics have one of the same cells, the first one's."""
    galleries, problems = galleries_of(opened, done)
    for problem in problems:
        sys.stderr.write(f"warning: {problem}\n")
    found: Data = {}
    for gallery in galleries:
        found.setdefault(gallery.title, _rounded(kept(gallery)))
    return found


def _names(result: Any) -> Data:
    return {part: getattr(result, part).name for part in ("backbone", "architecture", "constraint")}


def _row(record: Any) -> Data:
    result = record.result
    return {
        "id": result.cell_id,
        **_names(result),
        "l0": result.l0_target,
        "seed": result.seed,
        "flags": list(result.flags),
        "steps": record.params.get("steps"),
        "seconds": round(sum(record.seconds.values()), 1),
        "scores": {
            name: _rounded(value.value) for name, value in sorted(result.metrics.items()) if value.value is not None
        },
    }


def _limits_of(result: Any) -> Limits:
    return {
        limit: {score: _rounded(getattr(value, limit)) for score, value in result.metrics.items()} for limit in LIMITS
    }


def _agreed(sources: Iterable[tuple[str, Limits]], slack: float = 0.0) -> dict[str, Limits]:
    """Return, by backbone, the floors and ceilings in which all sources that have the score agree, up to ``slack``.

    Of those that differ by less the first one's counts.
    """
    told: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for backbone, limits in sources:
        mine = told.setdefault(backbone, {limit: {} for limit in LIMITS})
        for limit, values in limits.items():
            for score, value in values.items():
                mine[limit].setdefault(score, []).append(value)
    return {
        backbone: {
            limit: {score: values[0] for score, values in by_score.items() if _close(values, slack)}
            for limit, by_score in mine.items()
        }
        for backbone, mine in told.items()
    }


def _close(values: Sequence[float | None], slack: float) -> bool:
    known = [value for value in values if value is not None]
    return len(known) == len(values) and max(known) - min(known) <= slack


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def merged(found: Data, before: Data | None, others: Iterable[Data] = ()) -> Data:
    """Return what was found, with the cells of the same registry that only earlier pieces have.

    A study may be run in pieces, on several machines, and a cell may stand in several registries under other names. It
    counts as the same if its id, a hash of its configuration, is; its time counts where it was run for. Charts that
    were made of more cells than are there now stay as they were, but for series of constraints that are all there.
    Where times were kept for a whole preset only, each of its cells has an equal share; nothing but their sum is told.
    Cells of a world that is drawn otherwise now are left out.

    Args:
        found: what `collect` gives.
        before: what is stored of the registry.
        others: what is stored of other registries.
    """
    rows: dict[str, Data] = {row["id"]: row for row in found["cells"]}
    versions = [found["versions"] if rows else {}]
    limits = [(row["backbone"], _limits_for(row, found["limits"])) for row in found["cells"]]
    charts: Data = {}
    for piece in ([before] if before else []) + list(others):
        own = piece is before
        kept = [row for row in piece["cells"] if row["id"] not in rows and _stands(row, piece, found)]
        for row in kept:
            named = {**row, **found["order"][row["id"]]}
            rows[row["id"]] = named if own else {**named, "seconds": 0.0}
            limits.append((named["backbone"], _limits_for(row, piece["limits"])))
        versions.append(piece["versions"] if kept else {})
        if own and kept:
            older = {row["constraint"] for row in kept}
            charts |= {
                title: _renewed(chart, found["charts"].get(title), older) for title, chart in piece["charts"].items()
            }
    ordered = [rows[name] for name in found["order"] if name in rows]
    failed = [name for name in found["failed"] if name not in rows]
    return {
        "registry": found["registry"],
        "versions": _versions(*versions),
        "cells": ordered,
        "failed": len(failed),
        "left": len(found["order"]) - len(ordered) - len(failed),
        "worlds": found["worlds"],
        "limits": _agreed(limits, ROUNDING),
        "charts": {**found["charts"], **charts},
        "galleries": {**(before or {}).get("galleries", {}), **found["galleries"]},
    }


def _renewed(before: Any, now: Any, older: Set[str]) -> Any:
    """Return a chart with its series as they are now, but for those of constraints of which older cells are kept."""
    if now is None or before["x_names"] != now["x_names"]:
        return before
    found = {_place(panel): {series["label"]: series for series in panel["series"]} for panel in now["panels"]}
    titles = {_place(panel): panel["title"] for panel in now["panels"]}

    def renewed(panel: Any) -> Any:
        place = _place(panel)
        own = {label: series for label, series in found.get(place, {}).items() if label not in older}
        series = [own.get(one["label"], one) for one in panel["series"]]
        return {**panel, "title": titles[place] if "trained" in own else panel["title"], "series": series}

    places = {_place(panel) for panel in before["panels"]}
    new = [panel for panel in now["panels"] if _place(panel) not in places]
    return {**before, "panels": [renewed(panel) for panel in before["panels"]] + new}


def _place(panel: Any) -> str:
    """Return a panel's title without what it says of the trained SAE."""
    return str(panel["title"]).partition(" · trained explains")[0]


def _stands(row: Data, piece: Data, found: Data) -> bool:
    """Say whether a stored cell is one of the registry's, in the world that its backbone draws now."""
    if row["id"] not in found["order"]:
        return False
    now = found["worlds"].get(found["order"][row["id"]]["backbone"])
    return bool(piece["worlds"].get(row["backbone"]) == now)


def _versions(*pieces: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return every version that a piece was run with."""
    names = {name for piece in pieces for name in piece}
    return {name: sorted({version for piece in pieces for version in piece.get(name, [])}) for name in names}


def _limits_for(row: Data, limits: Mapping[str, Limits]) -> Limits:
    """Return what is known of the limits of a cell's scores: None where the cells of its backbone had no common one."""
    return {limit: {score: limits[row["backbone"]][limit].get(score) for score in row["scores"]} for limit in LIMITS}


def pruned(found: Data, charts: Set[str], galleries: Set[str] = frozenset()) -> Data:
    """Return what was found, with those charts and galleries alone.

    Raises:
        KeyError: for one that there is not.
    """
    chosen: Data = {}
    for kind, wanted in (("charts", charts), ("galleries", galleries)):
        if missing := wanted - set(found[kind]):
            raise KeyError(f"{kind}: {sorted(missing)}; there are: {sorted(found[kind])}")
        chosen[kind] = {title: one for title, one in found[kind].items() if title in wanted}
    return {**found, **chosen}


def stored(place: Path) -> Data:
    """Return what is stored of a preset."""
    found: Data = json.loads(place.read_text(encoding="utf-8"))
    return found


def store(place: Path, data: Data) -> None:
    """Store what was found of a preset."""
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    place.write_text(f"{text}\n", encoding="utf-8")
