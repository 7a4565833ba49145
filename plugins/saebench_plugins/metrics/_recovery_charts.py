"""Charts of feature recovery: every feature's best cosine, and recovery against frequency (paper figures 2, 3, 9)."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_core import Chart, Observed
from saebench_plugins.metrics._feature_charts import blocks, by_frequency, panel, sorted_values, varied

_BEST, _START = "best_cosine", "best_cosine_at_start"


def recovery_charts(found: Sequence[Observed], threshold: float) -> list[Chart]:
    """Return the charts of a sweep, one panel for each backbone, architecture and L0."""
    every = list(blocks(found))
    uneven = [block for block in every if varied(block)]
    level = {"threshold": threshold}
    charts = [
        Chart(
            "Best cosine of every true feature, sorted",
            "a feature is recovered above the dotted line",
            "share of features",
            "best cosine",
            tuple(panel(block, sorted_values(_BEST), level, sorted_values(_START)) for block in every),
        )
    ]
    if uneven:
        charts.append(
            Chart(
                "Recovery against firing probability",
                f"share of features with a best cosine above {threshold:g}, in groups of equal size by frequency",
                "firing probability",
                "share recovered",
                tuple(
                    panel(block, by_frequency(_BEST, threshold), {}, by_frequency(_START, threshold))
                    for block in uneven
                ),
                x_log=True,
            )
        )
        charts.append(
            Chart(
                "Best cosine against firing probability",
                "mean of groups of equal size by frequency; dotted: from where on a feature counts as recovered",
                "firing probability",
                "best cosine",
                tuple(panel(block, by_frequency(_BEST), level, by_frequency(_START)) for block in uneven),
                x_log=True,
            )
        )
    return charts if every else []
