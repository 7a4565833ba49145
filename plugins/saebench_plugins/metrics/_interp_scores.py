"""What `autointerp` calls its scores, and their means over latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final, Literal, NamedTuple

from saebench_core import NotApplicable, Score, ScoreInfo
from saebench_plugins.metrics._interp_config import AutointerpConfig

__all__ = ["COUNTS", "Drawn", "infos", "means"]

_SOURCE: Final = "paper section 4.4; Bills et al. 2023; Paulo et al. 2024"
_GOOD: Final = 0.7
_FEWEST_ANSWERS: Final = 0.5
"""Share of the windows that a language model must say something of, or no score is made of it."""
COUNTS: Final[Mapping[str, str]] = {
    "requests": "answers of the judge, asked now or stored",
    "retries": "tries that failed before an answer came",
    "repaired": "answers that could not be read and were asked for once more",
    "refused": "windows of which the judge, or a filter before it, would not say anything",
    "unparsed": "windows whose answer could not be read",
    "undescribed": "latents without a description: refused, or empty",
    "cut": "answers that ended for want of room",
    "tokens_read": "tokens that the judge read",
    "tokens_written": "tokens that the judge wrote",
}
"""What is counted of a language model, and what that is."""


class Drawn(NamedTuple):
    """The latents that were asked about, among all.

    Attributes:
        testable: share of all latents that fire and can be tested.
        alive: share of all latents that fire often enough to be asked about.
        d_sae: number of all latents.
    """

    testable: float
    alive: float
    d_sae: int


def infos(config: AutointerpConfig, prefix: str) -> dict[str, ScoreInfo]:
    """Name the scores; those of a judge begin with ``prefix``."""
    asks = config.judge.type == "llm"
    of = "share of tested windows of which it is said rightly whether the latent fires, mean over latents"
    found = {
        "accuracy": _info("higher", of if asks else f"{of}; a proxy, no language model", headline=True),
        "above_0.7": _info("higher", "share of latents with a balanced accuracy above 0.7"),
        "yield": _info(
            "higher",
            "share of all latents that fire and can be tested, times the share of them above 0.7",
            headline=True,
        ),
        "accuracy_shuffled": _info("none", f"{of}, by the description of another latent", headline=True),
    }
    if not asks:
        found["auroc"] = _info("higher", "area under the ROC curve of the windows' scores, mean over latents")
    if config.protocol.type != "paper":  # where half is active and half is not it is the accuracy
        found["balanced_accuracy"] = _info("higher", "(true positive rate + true negative rate) / 2, mean")
        found["f1"] = _info("higher", "2 true positives / (2 true positives + false ones of both kinds), mean")
    names = {f"{prefix}{name}": info for name, info in found.items()}
    names["alive"] = _info("none", "share of latents that fire often enough to be asked about")
    if asks:
        names["answered"] = _info("none", "share of tested windows of which something is said, mean", headline=True)
        for name, what in COUNTS.items():
            names[name] = ScoreInfo("none", "1", 0.0, None, "encoder", what, _SOURCE)
    return names


def _info(direction: Literal["higher", "none"], formula: str, headline: bool = False) -> ScoreInfo:
    return ScoreInfo(direction, "share", 0.0, 1.0, "encoder", formula, _SOURCE, headline=headline)


def means(
    config: AutointerpConfig, prefix: str, rows: Sequence[Mapping[str, Any]], drawn: Drawn
) -> dict[str, Score | NotApplicable]:
    """Return the scores of latents' rows; no more than counts where a language model mostly said nothing."""
    n, good = len(rows), fmean(row["balanced_accuracy"] > _GOOD for row in rows)
    counted: dict[str, Score | NotApplicable] = {"alive": Score(drawn.alive, drawn.d_sae)}
    asks = config.judge.type == "llm"
    if asks:
        answered = fmean(row["answered"] for row in rows)
        counted["answered"] = Score(answered, n)
        counted |= {name: Score(sum(row[name] for row in rows), n) for name in COUNTS}
        if answered < _FEWEST_ANSWERS:
            reason = f"the judge said something of {answered:.0%} of the windows only; what it was asked is counted"
            return {**dict.fromkeys(infos(config, prefix), NotApplicable(reason)), **counted}
    shuffled = [row["shuffled"] for row in rows if row["shuffled"] is not None]
    own: dict[str, Score | NotApplicable] = {
        "accuracy": Score(fmean(row["accuracy"] for row in rows), n),
        "above_0.7": Score(good, n),
        "yield": Score(drawn.testable * good, drawn.d_sae),
        "accuracy_shuffled": Score(fmean(shuffled), len(shuffled))
        if shuffled
        else NotApplicable("no description of another latent was tested"),
    }
    others = [] if asks else ["auroc"]
    others += [] if config.protocol.type == "paper" else ["balanced_accuracy", "f1"]
    own |= {name: Score(fmean(row[name] for row in rows), n) for name in others}
    return {f"{prefix}{name}": value for name, value in own.items()} | counted
