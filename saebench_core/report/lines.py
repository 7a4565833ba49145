"""Charts of a score over what varies in a sweep: L0, a number in which entries differ, architectures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report.tables import Block, Comparison, Entry, ScoreRow
from saebench_core.report.words import entry_text, l0_text
from saebench_core.results import CellRecord

__all__ = ["Spot", "score_charts"]


_TRAINING = ("steps", "batch_size", "lr", "tokens")


class Spot(NamedTuple):
    """A score's row at a place."""

    x: float
    row: ScoreRow


def score_charts(found: Sequence[Comparison], records: Sequence[CellRecord], score: str) -> list[Chart]:
    """Return the charts of a score: one for each number that varies, one of architectures where there are several."""
    rows = [
        (comparison.block, row)
        for comparison in found
        for row in comparison.rows
        if row.score == score and any(entry.values for entry in row.entries)
    ]
    over = [_over_l0(rows, score)]
    if any(row.direction != "none" for _, row in rows):
        over += [*_over_numbers(rows, records, score), _over_architectures(rows, score)]
    return [chart for chart in over if chart is not None]


def _over_l0(rows: Sequence[tuple[Block, ScoreRow]], score: str) -> Chart | None:
    groups: dict[tuple[str, str, str], list[Spot]] = {}
    for block, row in rows:
        if block.l0_target is not None and block.l0_target > 0:
            groups.setdefault(block[:3], []).append(Spot(block.l0_target, row))
    titled = {f"{b} / {s} · {a}": spots for (b, s, a), spots in groups.items()}
    return _chart(titled, score, "L0", log=True)


def _over_numbers(rows: Sequence[tuple[Block, ScoreRow]], records: Sequence[CellRecord], score: str) -> list[Chart]:
    charts = []
    for kind, rest in (("backbone", "architecture"), ("architecture", "backbone")):
        entries = {getattr(record.result, kind).name: _numbers(record, kind) for record in records}
        key = varying(entries)
        if key is None:
            continue
        counts = Counter((getattr(block, kind), getattr(block, rest), block.site) for block, _ in rows)
        titled: dict[str, list[Spot]] = {}
        for block, row in rows:
            several = counts[getattr(block, kind), getattr(block, rest), block.site] > 1  # L0s of one world
            parts = [getattr(block, rest), block.site, *([l0_text(block.l0_target)] if several else [])]
            title = " · ".join(parts)
            titled.setdefault(title, []).append(Spot(float(entries[getattr(block, kind)][key]), row))
        chart = _chart(titled, score, key, log=_wide(titled))
        if chart is not None:
            charts.append(chart)
    return charts


def varying(entries: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return the number in which entries differ: the first one by which they have an order, or None.

    Of several that differ, such as the number of features and the probability that keeps their sum, the first stands
    for all only if the others rise or fall with it.
    """
    if len(entries) < 2:
        return None
    shared = set.intersection(*(set(entry) for entry in entries.values()))
    keys = [key for key in next(iter(entries.values())) if key in shared]
    differing = [key for key in keys if len({entry[key] for entry in entries.values()}) > 1]
    if not differing or len({entry[differing[0]] for entry in entries.values()}) < len(entries):
        return None
    ordered = sorted(entries.values(), key=lambda entry: entry[differing[0]])
    for key in differing[1:]:
        steps = [after[key] - before[key] for before, after in pairwise(ordered)]
        if not (all(step >= 0 for step in steps) or all(step <= 0 for step in steps)):
            return None
    return differing[0]


def _numbers(record: CellRecord, kind: str) -> dict[str, float]:
    """Return what may be an axis: the numbers of an entry, and of a backbone's training; not seeds."""
    found = _flat(getattr(record.result, kind).config)
    if kind == "backbone":
        found |= {key: float(value) for key in _TRAINING if isinstance(value := record.params.get(key), int | float)}
    return {key: value for key, value in found.items() if key != "seed"}


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a configuration by dotted key, in its order; a list of one number is that number."""
    found: dict[str, float] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
            found |= _flat({key: value[0]}, prefix)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def _wide(titled: Mapping[str, Sequence[Spot]]) -> bool:
    places = [spot.x for spots in titled.values() for spot in spots]
    return min(places) > 0 and max(places) >= 8 * min(places)


def _over_architectures(rows: Sequence[tuple[Block, ScoreRow]], score: str) -> Chart | None:
    names = tuple(dict.fromkeys(block.architecture for block, _ in rows))
    titled: dict[str, list[Spot]] = {}
    for block, row in rows:
        title = f"{block.backbone} / {block.site} · {l0_text(block.l0_target)}"
        titled.setdefault(title, []).append(Spot(names.index(block.architecture), row))
    return _chart(titled, score, "architecture", names=names)


def _chart(
    titled: Mapping[str, Sequence[Spot]], score: str, label: str, *, log: bool = False, names: tuple[str, ...] = ()
) -> Chart | None:
    """Return a chart of the groups that have more than one place."""
    several = {title: spots for title, spots in titled.items() if len({spot.x for spot in spots}) > 1}
    if not several:
        return None

    def where(x: float) -> str:
        return names[int(x)] if names else f"{label} {x:g}"

    panels = tuple(_panel(title, sorted(spots, key=lambda spot: spot.x), where) for title, spots in several.items())
    flagged = any(any(series.hollow) for panel in panels for series in panel.series)
    spread = any(entry.n > 1 for spots in several.values() for spot in spots for entry in spot.row.entries)
    caption = "mean and standard deviation over seeds" if spread else "one seed"
    caption += "; hollow marks carry a flag" if flagged else ""
    return Chart(f"{score} by {label}", caption, label, score, panels, x_log=log, x_names=names)


def _panel(title: str, spots: Sequence[Spot], where: Callable[[float], str]) -> ChartPanel:
    names = dict.fromkeys(entry.constraint for spot in spots for entry in spot.row.entries)
    series = tuple(_series(name, spots, where) for name in names)
    limits = {name: {getattr(spot.row, name) for spot in spots} for name in ("floor", "ceiling")}
    shared = {name: found.pop() for name, found in limits.items() if len(found) == 1}  # others are wrong somewhere
    levels = {name: value for name, value in shared.items() if value is not None}
    return ChartPanel(title, tuple(one for one in series if one.x), levels)


def _series(name: str, spots: Sequence[Spot], where: Callable[[float], str]) -> Series:
    found = [
        (spot.x, entry) for spot in spots for entry in spot.row.entries if entry.constraint == name and entry.values
    ]
    return Series(
        name,
        tuple(x for x, _ in found),
        tuple(entry.mean or 0.0 for _, entry in found),
        any(entry.trained for _, entry in found),
        tuple(entry.sd or 0.0 for _, entry in found),
        tuple(f"{name}, {where(x)}: {entry_text(entry)} (n={entry.n}){_flagged(entry)}" for x, entry in found),
        tuple(bool(entry.flags) for _, entry in found),
    )


def _flagged(entry: Entry) -> str:
    return f"; {', '.join(entry.flags)}" if entry.flags else ""
