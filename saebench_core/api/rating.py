"""People's ratings of latents that they did not know the origin of: the sheet, its key, and what they said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench_core.api.charts import latents_to_rate
from saebench_core.api.opening import Opened
from saebench_core.errors import InputError
from saebench_core.report import blinded, key_of, render_sheet, sheet_digest
from saebench_core.store import write_atomically

__all__ = ["Rated", "RatedConstraint", "Ratings", "read_ratings", "write_sheet"]

CLEAR: Final = 4
"""The rating from which on places have one thing in common."""

_RESAMPLES: Final = 10_000
_FEWEST: Final = 3


class Ratings(BaseModel):
    """What one person saved of a sheet.

    Attributes:
        sheet: which sheet.
        rater: who, if said.
        ratings: number on the sheet to rating.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Literal[1] = Field(alias="schema")
    sheet: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    rater: str = ""
    ratings: dict[int, Annotated[int, Field(ge=1, le=5)]]


class _Item(BaseModel):
    group: str
    constraint: str
    column: int
    trained: bool
    latent: str
    score: float | None


class _Key(BaseModel):
    sheet: str
    items: list[_Item]


@dataclass(frozen=True)
class RatedConstraint:
    """Ratings of one SAE's latents.

    Attributes:
        group: backbone, site, architecture and L0.
        constraint: whose latents they are.
        trained: whether nothing was held random.
        latents: how many were rated.
        mean: mean rating, of every latent over its raters first.
        clear: share of latents rated 4 or more.
        gap: mean of the group's first trained SAE minus this one; None for itself.
        interval: 95 % bootstrap interval of that, over latents; None where either has fewer than three.
    """

    group: str
    constraint: str
    trained: bool
    latents: int
    mean: float
    clear: float
    gap: float | None
    interval: tuple[float, float] | None


class Rated(NamedTuple):
    """What people said of a sheet.

    Attributes:
        sheet: which one.
        raters: how many.
        rows: ratings by constraint.
        apart: mean absolute difference of two people's ratings of the same latent; None with one person.
        rank_correlations: Spearman's, of mean ratings with the metric's scores, by group where it has a meaning.
    """

    sheet: str
    raters: int
    rows: tuple[RatedConstraint, ...]
    apart: float | None
    rank_correlations: dict[str, float]


def write_sheet(opened: Opened, count: int, seed: int, metric: str | None = None) -> tuple[Path, list[str]]:
    """Write a sheet with so many latents of each SAE and its key into the workdir's ``reports``.

    Returns:
        The sheet's path, and why a metric could not give its latents.

    Raises:
        InputError: if there is no latent to rate.
    """
    galleries, problems = latents_to_rate(opened, opened.records(), count, metric)
    items = blinded(galleries, seed)
    if not items:
        more = "".join(f"; {problem}" for problem in problems)
        raise InputError(
            f"{opened.registry.name}: no cell has latents to rate; run a registry with a metric that keeps them, such "
            f"as autointerp{more}"
        )
    path = opened.workdir / "reports" / f"{opened.slug}-rating-{sheet_digest(items)}.html"
    write_atomically(path.with_suffix(".key.json"), json.dumps(key_of(items), indent=1))  # a sheet is never without
    write_atomically(path, render_sheet(items))
    return path, problems


def read_ratings(workdir: Path, files: Sequence[Path]) -> Rated:
    """Return what people said, from the files that they saved of one sheet.

    Raises:
        InputError: if a file is no rating, they are of several sheets, one is there twice, or the key is not in the
            workdir.
    """
    read = [_read(path) for path in files]
    sheets = sorted({ratings.sheet for ratings in read})
    if len(sheets) != 1:
        raise InputError(f"the files are ratings of {len(sheets)} sheets ({', '.join(sheets)}); give those of one")
    for (path, one), (other, two) in combinations(zip(files, read, strict=True), 2):
        named = one.rater and two.rater
        if one.rater == two.rater if named else one.ratings == two.ratings:
            raise InputError(f"{path} and {other} are ratings of the same person; give one of them")
    key = _key(workdir, sheets[0])
    by_item: dict[int, list[int]] = {}
    for path, ratings in zip(files, read, strict=True):
        for number, value in ratings.ratings.items():
            if not 1 <= number <= len(key.items):
                raise InputError(f"{path}: rates number {number}, but the sheet has 1 to {len(key.items)}")
            by_item.setdefault(number, []).append(value)
    if not by_item:
        raise InputError(f"{', '.join(map(str, files))}: nothing is rated")
    pairs = [abs(one - other) for values in by_item.values() for one, other in combinations(values, 2)]
    means = {number: fmean(values) for number, values in sorted(by_item.items())}
    apart = fmean(pairs) if pairs else None
    return Rated(sheets[0], len(read), _rows(key, means), apart, _rank_correlations(key, means))


def _read(path: Path) -> Ratings:
    try:
        return Ratings.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: no ratings as a sheet saves them: {place}: {first['msg']}") from None


def _key(workdir: Path, sheet: str) -> _Key:
    found = sorted((workdir / "reports").glob(f"*-rating-{sheet}.key.json"))
    if not found:
        raise InputError(
            f"{workdir / 'reports'}: has no key of sheet {sheet}; give the workdir in which the sheet was written"
        )
    try:
        return _Key.model_validate_json(found[0].read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise InputError(f"{found[0]}: is no key of a sheet any more; write the sheet anew") from None


def _rows(key: _Key, means: Mapping[int, float]) -> tuple[RatedConstraint, ...]:
    found: dict[tuple[str, bool, int, str], list[float]] = {}
    for number, mean in means.items():
        item = key.items[number - 1]
        found.setdefault((item.group, not item.trained, item.column, item.constraint), []).append(mean)
    references = {place[0]: place for place in sorted(found, reverse=True) if not place[1]}
    rows = []
    for place, values in sorted(found.items()):
        group, twin, _, constraint = place
        reference = references.get(group)
        gap, interval = (None, None) if reference in {None, place} else _gap(found[references[group]], values)
        clear = fmean(value >= CLEAR for value in values)
        rows.append(RatedConstraint(group, constraint, not twin, len(values), fmean(values), clear, gap, interval))
    return tuple(rows)


def _gap(trained: Sequence[float], twin: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the difference of means and its interval, latents of both drawn anew."""
    import numpy as np

    gap = fmean(trained) - fmean(twin)
    if min(len(trained), len(twin)) < _FEWEST:
        return gap, None
    draw = np.random.default_rng(0)
    drawn = [draw.choice(values, (_RESAMPLES, len(values))).mean(1) for values in (trained, twin)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return gap, (float(low), float(high))


def _rank_correlations(key: _Key, means: Mapping[int, float]) -> dict[str, float]:
    from scipy.stats import spearmanr

    groups: dict[str, list[tuple[float, float]]] = {}
    for number, mean in means.items():
        item = key.items[number - 1]
        if item.score is not None:
            groups.setdefault(item.group, []).append((mean, item.score))
    return {
        group: float(spearmanr(*zip(*pairs, strict=True)).statistic)
        for group, pairs in groups.items()
        if len(pairs) >= _FEWEST and all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
    }
