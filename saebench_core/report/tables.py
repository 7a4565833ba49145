"""From records to tables: each trained SAE beside its twins, with spread over seeds, floors and flags.

Pure functions. A mean says how many seeds it is over; collapsed cells are named and left out of it; a score whose
metric changed its version is averaged over the newest version only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, final

from saebench_core.results import CellRecord, CellResult, MetricValue

__all__ = ["Block", "Comparison", "Entry", "ScoreRow", "Verdicts", "comparisons", "is_trained", "score_names"]

Direction = Literal["higher", "lower", "none"]

_TRAINED: Final = ("trained", "pretrained")


class Block(NamedTuple):
    """What a comparison holds fixed."""

    backbone: str
    site: str
    architecture: str
    l0_target: float | None


Verdicts = Mapping[tuple[Block, str], str]
"""A verdict (above, equivalent, inconclusive, below) for a block and a score, where somebody has one."""


@final
@dataclass(frozen=True)
class Entry:
    """One constraint's values of one score.

    Attributes:
        constraint: name of the constraint's entry.
        init: its init.
        trained: whether nothing is held random.
        values: seed to value, without the collapsed cells.
        collapsed: seeds whose SAE collapsed; not averaged.
        failed: seeds whose cell failed.
        outdated: seeds scored by an older version of the metric; not averaged.
        reason: why the score does not apply, if it does not.
        valid_null: whether the constraint is a null for this score.
        flags: flags of the cells behind the values, with how many cells carry each.
    """

    constraint: str
    init: str
    trained: bool
    values: Mapping[int, float]
    collapsed: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    outdated: tuple[int, ...] = ()
    reason: str | None = None
    valid_null: bool = True
    flags: Mapping[str, int] | None = None

    @property
    def n(self) -> int:
        """Seeds behind the mean."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, of a sample; None for fewer than two."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@final
@dataclass(frozen=True)
class ScoreRow:
    """One score over all constraints of a block.

    Attributes:
        score: ``metric/score``.
        floor: score of a no-op or chance; None where there is none, or where cells disagree about it.
        ceiling: score of the best reference.
        entries: in the order of the comparison's constraints.
        best_twin: constraint of the best twin that is a null for this score.
        learned: share of the gain above the floor that the best twin does not reach.
        why_not: why `learned` is undefined, where it is.
        verdict: of the statistics, if given.
    """

    score: str
    direction: Direction
    unit: str
    reads: str
    versions: tuple[int, ...]
    floor: float | None
    ceiling: float | None
    entries: tuple[Entry, ...]
    best_twin: str | None = None
    learned: float | None = None
    why_not: str = ""
    verdict: str | None = None


@final
@dataclass(frozen=True)
class Comparison:
    """One block: a backbone's site, an architecture and an L0, with every constraint trained there.

    Attributes:
        paired: whether the others are twins; a loaded SAE has references instead, which share no hashes.
    """

    block: Block
    constraints: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[ScoreRow, ...]
    paired: bool = True


def is_trained(result: CellResult) -> bool:
    """Say whether nothing of a cell is held random, and nothing was known to it beforehand."""
    return result.constraint.type in _TRAINED and result.init != "truth"


def block_of(result: CellResult) -> Block:
    """Return the block that a cell belongs to."""
    return Block(result.backbone.name, result.site, result.architecture.name, result.l0_target)


def score_names(records: Iterable[CellRecord]) -> list[str]:
    """Return the names of all scores, in the order in which they first come up."""
    return list(dict.fromkeys(name for record in records for name in record.result.metrics))


def group_by_block(records: Iterable[CellRecord]) -> dict[Block, list[CellResult]]:
    """Return the done and failed cells of each block, blocks in the records' order."""
    groups: dict[Block, list[CellResult]] = {}
    for record in records:
        if record.result.status in ("done", "failed"):
            groups.setdefault(block_of(record.result), []).append(record.result)
    return groups


def comparisons(
    records: Sequence[CellRecord], scores: Sequence[str] | None = None, verdicts: Verdicts | None = None
) -> list[Comparison]:
    """Return the trained SAE beside its twins for every backbone, site, architecture and L0.

    Args:
        records: cells of a sweep.
        scores: names of the scores to show, in this order; None for all.
        verdicts: what the statistics say, where known.
    """
    names = list(scores) if scores is not None else score_names(records)
    found = []
    unpaired = {block_of(record.result) for record in records if not record.paired}
    for block, cells in group_by_block(records).items():
        paired = block not in unpaired
        order = sorted(
            dict.fromkeys(cell.constraint.name for cell in cells), key=lambda name: not _trained_name(name, cells)
        )
        rows = [_row(name, order, cells, paired) for name in names]
        told = [_with_verdict(row, (verdicts or {}).get((block, row.score))) for row in rows if row is not None]
        seeds = tuple(sorted({cell.seed for cell in cells}))
        found.append(Comparison(block, tuple(order), seeds, tuple(told), paired))
    return found


def _trained_name(name: str, cells: Iterable[CellResult]) -> bool:
    return any(is_trained(cell) for cell in cells if cell.constraint.name == name)


def _with_verdict(row: ScoreRow, verdict: str | None) -> ScoreRow:
    return ScoreRow(**{**row.__dict__, "verdict": verdict})


def _row(score: str, constraints: Sequence[str], cells: Sequence[CellResult], paired: bool) -> ScoreRow | None:
    metrics = [cell.metrics[score] for cell in cells if score in cell.metrics]
    if not metrics:
        return None
    versions = tuple(sorted({metric.metric_version for metric in metrics}))
    current = [metric for metric in metrics if metric.metric_version == versions[-1]]
    entries = tuple(
        _entry(score, versions[-1], [cell for cell in cells if cell.constraint.name == name]) for name in constraints
    )
    floor = _agreed(metric.floor for metric in current if metric.status == "ok")
    ceiling = _agreed(metric.ceiling for metric in current if metric.status == "ok")
    best, learned, why_not = _learned(entries, floor, current[0].direction, paired)
    first = current[0]
    return ScoreRow(
        score, first.direction, first.unit, first.reads, versions, floor, ceiling, entries, best, learned, why_not
    )


def _agreed(values: Iterable[float | None]) -> float | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None  # one number for all cells, or none to be trusted


def _entry(score: str, version: int, cells: Sequence[CellResult]) -> Entry:
    values: dict[int, float] = {}
    skipped: dict[str, list[int]] = {"collapsed": [], "failed": [], "outdated": []}
    flags: dict[str, int] = {}
    reason: str | None = None
    valid_null = True
    for cell in sorted(cells, key=lambda cell: cell.seed):
        metric = cell.metrics.get(score)
        if metric is None:  # another metric that failed takes nothing from the scores that are there
            if cell.status == "failed":
                skipped["failed"].append(cell.seed)
            continue
        for flag in cell.flags:
            flags[flag] = flags.get(flag, 0) + 1
        reason, valid_null = metric.reason or reason, valid_null and metric.valid_null
        _place(cell, metric, version, values, skipped)
    first, lists = cells[0], {key: tuple(seeds) for key, seeds in skipped.items()}
    trained = is_trained(first)
    return Entry(
        first.constraint.name,
        first.init,
        trained,
        values,
        **lists,
        reason=reason,
        valid_null=trained or valid_null,
        flags=flags,
    )


def _place(
    cell: CellResult, metric: MetricValue, version: int, values: dict[int, float], skipped: dict[str, list[int]]
) -> None:
    if metric.value is None:
        return
    if metric.metric_version != version:
        skipped["outdated"].append(cell.seed)
    elif "collapsed" in cell.flags:
        skipped["collapsed"].append(cell.seed)
    else:
        values[cell.seed] = metric.value


def _learned(
    entries: Sequence[Entry], floor: float | None, direction: Direction, paired: bool
) -> tuple[str | None, float | None, str]:
    """Return the best twin, ``(trained - best twin) / (trained - floor)``, and why the latter is undefined.

    Of several trained entries (such as one for each init) the best stands for all. Twins are compared over the seeds
    that both have; references of a loaded SAE over all of theirs.
    """
    if direction == "none":
        return None, None, "no direction is better"
    sign = 1.0 if direction == "higher" else -1.0
    full = [entry for entry in entries if entry.trained and entry.values]
    trained = max(full, key=lambda entry: sign * statistics.fmean(entry.values.values()), default=None)
    twins = [entry for entry in entries if not entry.trained and entry.valid_null and entry.values]
    if not any(entry.values for entry in entries):
        return None, None, "no values"
    if trained is None or not twins:
        return None, None, "no trained SAE" if trained is None else "no twin that is a null for this score"
    best = max(twins, key=lambda entry: sign * statistics.fmean(entry.values.values()))
    shared = sorted(trained.values.keys() & best.values.keys())  # twins are pairs: the same seed, data and draw
    mine, others = (shared, shared) if paired else (list(trained.values), list(best.values))
    if floor is None:
        return best.constraint, None, "no floor"
    if not mine:
        return best.constraint, None, "no seed in common with the best twin"
    top = statistics.fmean(trained.values[seed] for seed in mine)
    below = statistics.fmean(best.values[seed] for seed in others)
    gain = sign * (top - floor)
    if gain <= 0 or math.isclose(top, floor, rel_tol=1e-9, abs_tol=1e-12):
        return best.constraint, None, "the trained SAE is not above the floor"
    return best.constraint, sign * (top - below) / gain, ""
