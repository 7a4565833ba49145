"""Twins beside a trained SAE that explains as much, whose scores are read between its L0s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

from study_tables import MARKS, Row, chosen_cells, head_of, in_order

from saebench_core.report.words import number

ONE_OF_EACH: Final = ("backbone", "architecture", "seed")


def matched(found: Mapping[str, Mapping[str, Any]], asked: Mapping[str, str]) -> str:
    """Return a Markdown table of twins' scores, each followed by that of a trained SAE that explains as much.

    L0 and scores of the trained one are read off the straight lines between its L0s, over ``by``. Where a twin has less
    or more of ``by`` than all of these, nothing is told of the trained one.

    Args:
        found: stored results by the name of a preset; a cell that stands in several counts once.
        asked: ``by`` (the score that is to be equal), ``scores``, ``trained`` (a constraint), ``constraint`` (its
            twins), ``l0`` of the twins, and what else chooses cells.

    Raises:
        KeyError: for a value that no cell has, and for a twin without ``by``.
        ValueError: if there are cells of several backbones, architectures or seeds, or several of one twin.
    """
    cells = list({cell["id"]: cell for data in found.values() for cell in data["cells"]}.values())
    places = {key: value for key, value in asked.items() if key != "l0"}
    curve = chosen_cells(cells, {**places, "constraint": asked["trained"]})
    twins = chosen_cells(cells, asked)
    for axis in ONE_OF_EACH:
        if len(values := {str(row[axis]) for row in (*curve, *twins)}) > 1:
            raise ValueError(f"{axis}: cells of {', '.join(sorted(values))}; choose one")
    by, scores = asked["by"], asked["scores"].split(",")
    heads = ["constraint", head_of(by), "L0", "trained: L0"]
    heads += [head for score in scores for head in (head_of(score), "trained")]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in in_order(twins, "constraint"):
        mine = [row for row in twins if row["constraint"] == name]
        if len(mine) > 1:
            raise ValueError(f"{name}: {len(mine)} cells; choose among them by l0")
        lines.append(f"| {name} | {' | '.join(_told(mine[0], curve, by, scores))} |")
    return "\n".join(lines)


def _told(twin: Row, curve: Sequence[Row], by: str, scores: Sequence[str]) -> list[str]:
    reached = twin["scores"][by]
    marks = "".join(f" {mark}" for flag, mark in MARKS.items() if flag in twin["flags"])
    told = [f"{number(reached)}{marks}", f"{_l0(twin):.1f}", _number(_read(curve, by, reached, _l0), ".1f")]
    for score in scores:
        value = partial(_score, score)
        told += [_number(value(twin)), _number(_read(curve, by, reached, value))]
    return told


def _l0(row: Row) -> float:
    return float(row["scores"].get("reconstruction/l0", row["l0"]))


def _score(score: str, row: Row) -> float | None:
    found: float | None = row["scores"].get(score)
    return found


def _number(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form) if form else number(value)


def _read(curve: Sequence[Row], by: str, reached: float, value: Callable[[Row], float | None]) -> float | None:
    """Return what a trained SAE has where it reaches a score, on the line between the two next to it."""
    known = sorted(
        (row["scores"][by], found) for row in curve if by in row["scores"] and (found := value(row)) is not None
    )
    for (low, first), (high, second) in pairwise(known):
        if low <= reached <= high:
            share = (reached - low) / (high - low) if high > low else 0.0
            return first + share * (second - first)
    return None
