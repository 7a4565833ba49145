"""Feature detection: whether some latent tells when a feature is active, wherever its direction points."""

from __future__ import annotations

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
    """Each feature's best latent as a classifier: the one of largest F1, of equals the most precise.

    Directions are not asked, so no random one stands in the way; `feature_firing` asks the latents that point at a
    feature. Features that are active in no row are left out. The floor is a latent that always fires. The best of many
    latents is above it by chance, the more the rarer a feature is: read it beside an untrained twin.
    """

    def __init__(self, config: FeatureDetectionConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        of = "of each feature's best latent, the one of largest F1, mean over features that fire"
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
        """Return how often each feature fires; the floors are those of a latent that always does."""
        truth, rows = truth_of(context, "feature_detection"), self.config.rows
        counts = times_fired(truth, rows)
        fired = counts[counts > 0].double()
        floors = {"precision": fired / rows, "f1": 2 * fired / (rows + fired)}
        return Prepared(
            tensors={"counts": counts, "probabilities": truth.probabilities()},
            floors={name: float(values.mean()) for name, values in floors.items() if values.numel()},
            ceilings={"precision": 1.0, "recall": 1.0, "f1": 1.0},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and each feature's best latent."""
        counts, probabilities = prepared.tensors["counts"], prepared.tensors["probabilities"].cpu()
        fired = torch.nonzero(counts).view(-1)
        if not fired.numel():
            return Scored(dict.fromkeys(self.scores(), NotApplicable("no feature fires in the evaluation rows")))
        features, latents = _fired(subject, context, self.config.rows, counts.numel())
        found = list(best_latents(features, latents, counts))
        found = [found[feature] for feature in fired.tolist()]
        items: dict[str, list[Any]] = {
            "feature": fired.tolist(),
            "probability": probabilities[fired].tolist(),
            "frequency_group": frequency_groups(probabilities, _GROUPS)[fired].tolist(),
            "feature_fires": counts[fired].tolist(),
            **{name: [getattr(best, name) for best in found] for name in Best._fields},
        }
        return Scored({name: Score(float(np.mean(items[name])), len(found)) for name in self.scores()}, items)

    def figures(self, found: Sequence[Observed]) -> Sequence[Chart]:
        """Return every feature's F1, sorted and against frequency, twins overlaid."""
        every = list(blocks(found))
        uneven = [block for block in every if varied(block)]
        return [
            Chart(
                "F1 of every true feature's best latent, sorted",
                "of the latent that tells best when the feature is active, wherever it points",
                "share of features that fire",
                "F1",
                tuple(panel(block, sorted_values("f1"), {}) for block in every),
            ),
            Chart(
                "F1 of best latents against firing probability",
                "mean of groups of equal size by frequency",
                "firing probability",
                "F1",
                tuple(panel(block, by_frequency("f1"), {}) for block in uneven),
                x_log=True,
            ),
        ][: bool(every) + bool(uneven)]


class Best(NamedTuple):
    """A feature's best latent, or none where no latent ever fires with it.

    Attributes:
        latent: its number, the lowest of equals; -1 for none.
        fires: rows in which it fires.
        both: rows in which the feature is active, too.
        precision: ``both / fires``.
        recall: ``both / rows in which the feature is active``.
        f1: ``2 both / (fires + rows in which the feature is active)``.
    """

    latent: int = -1
    fires: int = 0
    both: int = 0
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0


def best_latents(features: csr_array, latents: csr_array, counts: Int[Tensor, " n_features"]) -> Iterator[Best]:
    """Yield every feature's best latent.

    Args:
        features: where features fire, ``(n_features, rows)``.
        latents: where latents fire, ``(rows, d_sae)``.
        counts: rows in which each feature is active, as they are in ``features``.
    """
    fires = np.bincount(latents.indices, minlength=latents.shape[1])
    for start in range(0, features.shape[0], _FEATURES):
        both = features[start : start + _FEATURES] @ latents
        for number, count in enumerate(counts[start : start + _FEATURES].tolist()):
            own = slice(both.indptr[number], both.indptr[number + 1])
            yield _best(both.indices[own], fires[both.indices[own]], both.data[own], count)


def _best(latents: np.ndarray, fires: np.ndarray, both: np.ndarray, count: int) -> Best:
    """Return the best of the latents that fire with a feature; quotients of equal value are equal floats."""
    if not latents.size:
        return Best()
    f1, precision = 2 * both / (fires + count), both / fires
    top = np.flatnonzero(f1 == f1.max())
    which = top[np.lexsort((latents[top], -precision[top]))[0]]
    hits = int(both[which])
    return Best(int(latents[which]), int(fires[which]), hits, float(precision[which]), hits / count, float(f1[which]))


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
    """Return a matrix with a one at each entry."""
    from scipy.sparse import coo_array

    rows, cols = (torch.cat(part).numpy() for part in zip(*entries, strict=True))
    return coo_array((np.ones(len(rows), dtype=np.int32), (rows, cols)), shape=shape).tocsr()


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
