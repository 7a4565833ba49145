"""Feature detection: whether some latent tells when a feature is active, wherever its direction points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
    Chart,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Observed,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    Split,
    Subject,
    hookimpl,
)
from saebench_plugins.metrics._feature_charts import blocks, by_frequency, panel, sorted_values, varied
from saebench_plugins.metrics._known_features import (
    evaluated,
    fired_features,
    fired_latents,
    frequency_groups,
    times_fired,
    truth_of,
    unknown,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SOURCE = "saebench_core"
_FEATURES = 512
"""Features whose rows are counted together with every latent's at a time."""
_GROUPS = 10


class FeatureDetectionConfig(MetricConfig):
    """Configuration of `FeatureDetection`."""

    type: Literal["feature_detection"] = "feature_detection"
    rows: PositiveInt = Field(50_000, description="Evaluation rows.")


class FeatureDetection(Metric):
    """Each feature's best latent as a classifier: the one of largest F1 in half of the rows, told by the other half.

    Directions are not asked, so no random one stands in the way; `feature_firing` asks the latents that point at a
    feature. Of latents with equal F1 the most precise is taken; of several that are alike in both, their mean is told.
    Features that do not fire in both halves, the even rows and the odd ones, are left out. The floor is a latent that
    always fires. That there are many latents to choose from raises no score by chance: other rows choose.
    """

    def __init__(self, config: FeatureDetectionConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        of = (
            "in the odd rows, of each feature's best latent, the one of largest F1 in the even rows; "
            "mean over features that fire in both"
        )
        formulas = {
            "precision": f"rows in which both fire / rows in which the latent fires, {of}",
            "recall": f"rows in which both fire / rows in which the feature fires, {of}",
            "f1": f"2 both / (rows in which the latent fires + rows in which the feature fires), {of}",
        }
        return {
            name: ScoreInfo("higher", "share", 0.0, 1.0, "encoder", formula, _SOURCE, headline=name == "f1")
            for name, formula in formulas.items()
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        return unknown(backbone)

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return how often each feature fires in each half; the floors are those of a latent that always does."""
        truth, rows = truth_of(context, "feature_detection"), self.config.rows
        counts = times_fired(truth, rows, 2)
        told = counts[1, _counted(counts)].double()
        half = rows // 2
        floors = {"precision": told / max(1, half), "f1": 2 * told / (half + told)}
        return Prepared(
            tensors={"counts": counts, "probabilities": truth.probabilities()},
            floors={name: float(values.mean()) for name, values in floors.items() if values.numel()},
            ceilings={"precision": 1.0, "recall": 1.0, "f1": 1.0},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and each feature's best latent."""
        counts, probabilities = prepared.tensors["counts"], prepared.tensors["probabilities"].cpu()
        told = _counted(counts)
        if not told.numel():
            return Scored(dict.fromkeys(self.scores(), NotApplicable("no feature fires in both halves of the rows")))
        features, latents = _fired(subject, context, self.config.rows, probabilities.numel())
        found = list(best_latents(features, latents, told.tolist()))
        items: dict[str, list[Any]] = {
            "feature": told.tolist(),
            "probability": probabilities[told].tolist(),
            "frequency_group": frequency_groups(probabilities, _GROUPS)[told].tolist(),
            "feature_fires": counts[1, told].tolist(),
            **{name: [getattr(best, name) for best in found] for name in Best._fields},
        }
        return Scored({name: Score(float(np.mean(items[name])), len(found)) for name in self.scores()}, items)

    def figures(self, found: Sequence[Observed]) -> Sequence[Chart]:
        """Return every feature's F1, sorted and against frequency, twins overlaid."""
        every = list(blocks(found))
        uneven = [block for block in every if varied(block)]
        ranked = Chart(
            "F1 of every true feature's best latent, sorted",
            "of the latent that tells best when the feature is active, wherever it points",
            "share of features that fire",
            "F1",
            tuple(panel(block, sorted_values("f1"), {}) for block in every),
        )
        frequent = Chart(
            "F1 of best latents against firing probability",
            "mean over those of a group of equal size by frequency that fire",
            "firing probability",
            "F1",
            tuple(panel(block, by_frequency("f1"), {}) for block in uneven),
            x_log=True,
        )
        return [chart for chart in (ranked, frequent) if chart.panels]


class Best(NamedTuple):
    """A feature's best latent by the even rows, and what the odd ones say of it.

    Attributes:
        latent: its number, the lowest of those that are alike; -1 where no latent fires with the feature.
        alike: number of latents with its F1 and precision in the even rows; the rest is their mean.
        precision: rows in which both fire / rows in which the latent fires, 0 if it never does.
        recall: rows in which both fire / rows in which the feature fires.
        f1: 2 both / (rows in which the latent fires + rows in which the feature fires).
    """

    latent: int = -1
    alike: int = 0
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0


class _Half(NamedTuple):
    """Rows of one half: how often each feature and latent fires, and how often together."""

    positives: np.ndarray
    fires: np.ndarray
    both: csr_array

    def together(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the latents that fire with a feature, and in how many rows."""
        own = slice(self.both.indptr[number], self.both.indptr[number + 1])
        return self.both.indices[own], self.both.data[own]


def best_latents(features: csr_array, latents: csr_array, asked: Sequence[int]) -> Iterator[Best]:
    """Yield the best latent of some features.

    Args:
        features: where features fire, ``(n_features, rows)``.
        latents: where latents fire, ``(rows, d_sae)``.
        asked: numbers of features that fire in even and in odd rows.
    """
    told, halves = features[asked], [latents[parity::2] for parity in (0, 1)]
    fires = [half.sum(axis=0, dtype=np.int64) for half in halves]
    for start in range(0, len(asked), _FEATURES):
        part = told[start : start + _FEATURES]
        parts = [part[:, parity::2] for parity in (0, 1)]
        even, odd = (
            _Half(mine.sum(axis=1, dtype=np.int64), count, mine.astype(np.int32) @ theirs)
            for mine, theirs, count in zip(parts, halves, fires, strict=True)
        )
        for number in range(part.shape[0]):
            yield _told(odd, number, _alike(even, number))


def _alike(half: _Half, number: int) -> np.ndarray:
    """Return the latents of largest F1, and among them of largest precision; equal quotients are equal floats."""
    latents, both = half.together(number)
    if not latents.size:
        return latents
    fires = half.fires[latents]
    f1, precision = 2 * both / (fires + half.positives[number]), both / fires
    top = f1 == f1.max()
    alike: np.ndarray = np.sort(latents[top & (precision == precision[top].max())])
    return alike


def _told(half: _Half, number: int, latents: np.ndarray) -> Best:
    if not latents.size:
        return Best()
    every = np.zeros(half.both.shape[1], dtype=np.int64)
    with_it, rows = half.together(number)
    every[with_it] = rows
    both, fires, positives = every[latents], half.fires[latents], half.positives[number]
    columns = (both / np.maximum(fires, 1), both / positives, 2 * both / (fires + positives))
    means = (math.fsum(column) / latents.size for column in columns)  # whatever the order of latents
    return Best(int(latents[0]), latents.size, *means)


def _counted(counts: Int[Tensor, "two n_features"]) -> Int[Tensor, " some"]:
    """Return the features that fire in both halves."""
    return torch.nonzero((counts > 0).all(dim=0)).view(-1)


def _fired(subject: Subject, context: MetricContext, rows: int, n_features: int) -> tuple[csr_array, csr_array]:
    """Return where features fire ``(n_features, rows)``, and where latents do ``(rows, d_sae)``."""
    truth, start = truth_of(context, "feature_detection"), 0
    features, latents = [], []
    for x, codes in evaluated(context, truth, rows):
        true_rows, true_cols = fired_features(codes, torch.device("cpu"))
        own_rows, own_cols = fired_latents(subject.sae.encode(x), x)
        features.append((true_cols.int(), (true_rows + start).int()))
        latents.append(((own_rows + start).int().cpu(), own_cols.int().cpu()))
        start += x.shape[0]
    return _table(features, (n_features, start)), _table(latents, (start, subject.sae.d_sae))


def _table(entries: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, int]) -> csr_array:
    """Return a matrix with a one at each entry; sums and products of it need a wider type."""
    from scipy.sparse import coo_array

    rows, cols = (torch.cat(part).numpy() for part in zip(*entries, strict=True))
    return coo_array((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=shape).tocsr()


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``feature_detection``."""
    return [
        MetricSpec(
            config=FeatureDetectionConfig,
            build=FeatureDetection,
            summary="Precision, recall and F1 of the latent that tells best when a true feature is active",
            source=_SOURCE,
        )
    ]
