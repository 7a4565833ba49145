"""Feature firing: whether a latent fires in the rows in which the feature it points at does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
    Codes,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    SparseAutoencoder,
    Split,
    Subject,
    hookimpl,
)
from saebench_plugins.metrics._cosines import cosine_parts
from saebench_plugins.metrics._known_features import (
    evaluated,
    fired_features,
    fired_latents,
    times_fired,
    truth_of,
    unknown,
)

_SOURCE = "SynthSAEBench (arXiv 2602.14687), section on metrics"
_OWN = "saebench_core"
_SMALL_NORM = 1e-6


class FeatureFiringConfig(MetricConfig):
    """Configuration of `FeatureFiring`."""

    type: Literal["feature_firing"] = "feature_firing"
    rows: PositiveInt = Field(50_000, description="Evaluation rows.")


class FeatureFiring(Metric):
    """Latents as classifiers: each tells whether the feature with the largest ``|cos(f, d_j)|`` is active.

    A latent fires where its code is above rounding, 1e-5 of the row's norm.
    """

    def __init__(self, config: FeatureFiringConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        of = "of a latent against argmax_f |cos(f, d_j)|, mean over latents, 0 where undefined"
        shares = {
            "precision": f"rows in which both fire / rows in which the latent fires, {of}",
            "recall": f"rows in which both fire / rows in which the feature fires, {of}",
            "f1": f"2 precision recall / (precision + recall) {of}",
        }
        support = "share of all active codes whose latent points at a feature that is active in the row"
        chance = "the same if latents fired as often as they do, whatever the row: mean over active codes of p(feature)"
        shrinkage = f"mean over rows with norm above {_SMALL_NORM:g} of ||x_hat|| / ||x||"
        return {
            **{
                name: ScoreInfo("higher", "share", 0.0, 1.0, "both", formula, _SOURCE, headline=name == "f1")
                for name, formula in shares.items()
            },
            "support_precision": ScoreInfo("higher", "share", 0.0, 1.0, "both", support, _OWN),
            "shrinkage": ScoreInfo("none", "ratio", 0.0, None, "both", shrinkage, _SOURCE),
            "silent": ScoreInfo("lower", "share", 0.0, 1.0, "encoder", "share of latents that never fire", _OWN),
            "support_precision_by_chance": ScoreInfo("none", "share", 0.0, 1.0, "both", chance, _OWN),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        return unknown(backbone)

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return features and how often each fires; the ceiling of `silent` is a perfect dictionary's expectation.

        A feature of probability p is silent in n rows with probability ``(1 - p)^n``.
        """
        truth = truth_of(context, "feature_firing")
        features, probabilities = truth.features(), truth.probabilities().double()
        expected = float(torch.exp(self.config.rows * torch.log1p(-probabilities)).mean())
        counts = times_fired(truth, self.config.rows)[0]
        return Prepared(
            tensors={"features": features, "counts": counts},
            floors={"precision": 0.0, "recall": 0.0, "f1": 0.0, "support_precision": 0.0, "silent": 1.0},
            ceilings={"precision": 1.0, "recall": 1.0, "f1": 1.0, "support_precision": 1.0, "silent": expected},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and each latent's feature with its counts."""
        sae, truth = subject.sae, truth_of(context, "feature_firing")
        features = prepared.tensors["features"].to(sae.device)
        closest = closest_features(features, sae.w_dec)
        tally = _Tally(sae, closest.feature, features.shape[0])
        for x, codes in evaluated(context, truth, self.config.rows):
            tally.add(x, codes)
        positives = prepared.tensors["counts"].to(sae.device)[closest.feature]
        return _scored(tally, positives, closest, self.config.rows)


class Closest(NamedTuple):
    """The feature that each latent points at.

    Attributes:
        feature: its number.
        cosine: absolute cosine with it.
    """

    feature: Int[Tensor, " d_sae"]
    cosine: Float[Tensor, " d_sae"]


def closest_features(features: Float[Tensor, "n_features d_in"], directions: Float[Tensor, "d_sae d_in"]) -> Closest:
    """Return each direction's feature of largest absolute cosine."""
    parts = [part.abs_().max(dim=1) for part in cosine_parts(directions, features)]
    return Closest(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


class _Tally:
    """Running counts over batches."""

    def __init__(self, sae: SparseAutoencoder, feature: Int[Tensor, " d_sae"], n_features: int) -> None:
        self.sae, self.feature, self.n_features = sae, feature, n_features
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.both = torch.zeros_like(self.fires)
        self.ratio, self.measured = 0.0, 0

    def add(self, x: Tensor, truth: Codes) -> None:
        """Add activations ``(rows, d_in)`` with their true coefficients."""
        codes = self.sae.encode(x)
        rows, cols = fired_latents(codes, x)
        self.fires += torch.bincount(cols, minlength=self.sae.d_sae)
        true_rows, true_cols = fired_features(truth, rows.device)
        hit = torch.isin(rows * self.n_features + self.feature[cols], true_rows * self.n_features + true_cols)
        self.both += torch.bincount(cols[hit], minlength=self.sae.d_sae)
        norms, made = x.double().norm(dim=1), self.sae.decode(codes).double().norm(dim=1)
        there = norms > _SMALL_NORM
        self.ratio += float((made[there] / norms[there]).sum())
        self.measured += int(there.sum())


def _scored(tally: _Tally, positives: Int[Tensor, " d_sae"], closest: Closest, rows: int) -> Scored:
    fires, both = tally.fires.double(), tally.both.double()
    precision = both / fires.clamp(min=1)
    recall = both / positives.double().clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-300)
    count, active = fires.numel(), int(fires.sum())
    never = NotApplicable("no latent fires in the evaluation rows")
    scores: dict[str, Score | NotApplicable] = {
        "precision": Score(float(precision.mean()), count),
        "recall": Score(float(recall.mean()), count),
        "f1": Score(float(f1.mean()), count),
        "support_precision": Score(float(both.sum()) / active, active) if active else never,
        "support_precision_by_chance": Score(float(fires @ positives.double()) / (active * rows), active)
        if active
        else never,
        "shrinkage": Score(tally.ratio / tally.measured, tally.measured)
        if tally.measured
        else NotApplicable("every evaluation row is zero"),
        "silent": Score(float((fires == 0).double().mean()), count),
    }
    items = {
        "latent": list(range(count)),
        "feature": closest.feature.tolist(),
        "absolute_cosine": closest.cosine.tolist(),
        "fires": tally.fires.tolist(),
        "both": tally.both.tolist(),
        "feature_fires": positives.tolist(),
    }
    return Scored(scores, items)


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``feature_firing``."""
    return [
        MetricSpec(
            config=FeatureFiringConfig,
            build=FeatureFiring,
            summary="Precision, recall and F1 of latents against the features they point at; silent latents",
            source=_SOURCE,
        )
    ]
