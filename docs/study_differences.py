"""How far a trained SAE is above its twins, from stored results: paired by seed, with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scipy.stats import t as students
from study_tables import Row, chosen_cells, head_of, in_order

CONFIDENCE: Final = 0.95


def differences(data: Mapping[str, Any], asked: Mapping[str, str]) -> str:
    """Return a Markdown table of ``trained - twin``: the mean over seeds with a 95 % interval of Student's t.

    Seeds in which one of the two collapsed are left out; where fewer than two are left, there is no interval.

    Args:
        data: stored results.
        asked: ``trained`` (a constraint), ``constraint`` (its twins), ``scores``, and what chooses cells.

    Raises:
        KeyError: for a value that no cell has.
        ValueError: if there are several cells of a constraint and seed.
    """
    chosen = chosen_cells(data["cells"], {**asked, "constraint": f"{asked['trained']},{asked['constraint']}"})
    scores = asked["scores"].split(",")
    lines = [
        f"| {asked['trained']} - ... | {' | '.join(head_of(score) for score in scores)} |",
        f"|---|{'---|' * len(scores)}",
    ]
    own = _by_seed(chosen, asked["trained"])
    for twin in in_order(chosen, "constraint"):
        if twin != asked["trained"]:
            theirs = _by_seed(chosen, twin)
            lines.append(f"| {twin} | {' | '.join(_difference(own, theirs, score) for score in scores)} |")
    return "\n".join(lines)


def best_twins(data: Mapping[str, Any], asked: Mapping[str, str]) -> str:
    """Return a row of a table of scores: how far, in percent of the trained SAE's mean, the best twin is from it.

    The best twin is the one with the largest mean, for each score anew, as in the paper's tables. No twin is what is
    trained too, and no null what is not trained at all: the row is of those that ``delta`` names.

    Args:
        data: stored results.
        asked: ``delta`` (``TRAINED:TWIN,TWIN``), ``scores``, and what chooses cells.

    Raises:
        KeyError: for a constraint that no cell has.
    """
    trained, _, twins = asked["delta"].partition(":")
    chosen = chosen_cells(data["cells"], {**asked, "constraint": f"{trained},{twins}"})
    told = [_best(chosen, trained, twins.split(","), score) for score in asked["scores"].split(",")]
    return f"| *best twin* | {' | '.join(told)} |"


def _best(cells: Sequence[Row], trained: str, twins: Sequence[str], score: str) -> str:
    means: dict[str, float] = {}
    for name in (trained, *twins):
        values = [row["scores"][score] for row in _by_seed(cells, name).values() if score in row["scores"]]
        if values:
            means[name] = statistics.fmean(values)
    if trained not in means or len(means) == 1:
        return ""
    best = max((name for name in means if name != trained), key=lambda name: means[name])
    return f"{best} {100 * (means[best] - means[trained]) / means[trained]:+.1f} %"


def _by_seed(cells: Sequence[Row], constraint: str) -> dict[int, Row]:
    mine = [row for row in cells if row["constraint"] == constraint]
    found = {row["seed"]: row for row in mine}
    if len(found) < len(mine):
        raise ValueError(f"{constraint}: several cells of one seed; choose among them")
    return {seed: row for seed, row in found.items() if "collapsed" not in row["flags"]}


def _difference(own: Mapping[int, Row], theirs: Mapping[int, Row], score: str) -> str:
    found = [
        own[seed]["scores"][score] - theirs[seed]["scores"][score]
        for seed in sorted(own.keys() & theirs.keys())
        if score in own[seed]["scores"] and score in theirs[seed]["scores"]
    ]
    if not found:
        return ""
    mean = statistics.fmean(found)
    if len(found) == 1:
        return f"{mean:+.3f}"
    half = students.ppf((1 + CONFIDENCE) / 2, len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
