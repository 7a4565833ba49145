"""A chart of how the scores of latents are spread (paper figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from saebench_core import Chart, Observed
from saebench_plugins.metrics._feature_charts import Line, blocks, panel

__all__ = ["accuracy_charts"]

_PLACES: Final = tuple(round(0.4 + 0.02 * place, 2) for place in range(31))


def accuracy_charts(found: Sequence[Observed], judge: str) -> list[Chart]:
    """Return the share of latents that reach each accuracy, one panel for each backbone, architecture and L0.

    Args:
        found: items of cells, with a column ``accuracy``.
        judge: who told; two judges of a sweep have a chart each.
    """
    panels = tuple(panel(block, _reached, {}) for block in blocks(found))
    caption = "guessing has 0.5; latents that were not asked about have no place here, so read the yield beside it"
    if not panels:
        return []
    return [Chart(f"Latents by accuracy, judge {judge}", caption, "accuracy", "share that reach it", panels)]


def _reached(seen: Observed) -> Line:
    accuracy = np.asarray(seen.items["accuracy"], dtype=float)
    return Line(_PLACES, tuple(float((accuracy >= place - 1e-9).mean()) for place in _PLACES))
