"""How right a judge is of one latent's windows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from saebench_plugins.metrics._interp_judges import Mark

__all__ = ["answered", "auroc"]


def answered(marks: Sequence[Mark], active: Sequence[bool]) -> dict[str, float]:
    """Return accuracy, balanced accuracy and F1 of the windows called active, and the share that something was said of.

    Where nothing was said, or it could not be read, that is wrong.
    """
    right = [mark.active == truth for mark, truth in zip(marks, active, strict=True)]
    hits = [good for good, truth in zip(right, active, strict=True) if truth]
    quiet = [good for good, truth in zip(right, active, strict=True) if not truth]
    return {
        "accuracy": fmean(right),
        "answered": fmean(mark.active is not None for mark in marks),
        "balanced_accuracy": (fmean(hits) + fmean(quiet)) / 2,
        "f1": 2 * sum(hits) / (sum(hits) + len(hits) + len(quiet) - sum(quiet)),
    }


def auroc(marks: Sequence[Mark], active: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve of the marks' scores; None where one has none."""
    from sklearn.metrics import roc_auc_score

    scores = [mark.score for mark in marks]
    return None if None in scores else float(roc_auc_score(list(active), scores))
