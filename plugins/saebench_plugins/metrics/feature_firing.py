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
    GroundTruth,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    PluginError,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    SparseAutoencoder,
    Split,
    Subject,
    hookimpl,
)

_SOURCE = "SynthSAEBench (arXiv 2602.14687), section on metrics"
_OWN = "saebench_core"
_BATCH = 4096
_LATENTS = 1024
_SMALL_NORM = 1e-6
_SILENT = 1e-5
"""A code below this share of the row's norm does not fire: a latent that should be at zero is off it by rounding."""


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
        shrinkage = f"mean over rows with norm above {_SMALL_NORM:g} of ||x_hat|| / ||x||"
        return {
            **{
                name: ScoreInfo("higher", "share", 0.0, 1.0, "both", formula, _SOURCE, headline=name == "f1")
                for name, formula in shares.items()
            },
            "support_precision": ScoreInfo("higher", "share", 0.0, 1.0, "both", support, _OWN),
            "shrinkage": ScoreInfo("none", "ratio", 0.0, None, "both", shrinkage, _SOURCE),
            "silent": ScoreInfo("lower", "share", 0.0, 1.0, "encoder", "share of latents that never fire", _OWN),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        if isinstance(backbone, GroundTruth):
            return None
        return NotApplicable("the backbone's true features are not known")

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return features and how often each fires; the ceiling of `silent` is a perfect dictionary's expectation.

        A feature of probability p is silent in n rows with probability ``(1 - p)^n``.
        """
        features = _truth(context).features()
        probabilities = _truth(context).probabilities().double()
        counts = torch.zeros(features.shape[0], dtype=torch.int64)
        for start in range(0, self.config.rows, _BATCH):
            codes = _codes(context, start, min(_BATCH, self.config.rows - start))
            counts += torch.bincount(codes.selection.cols[codes.values != 0].cpu(), minlength=features.shape[0])
        expected = float(torch.exp(self.config.rows * torch.log1p(-probabilities)).mean())
        return Prepared(
            tensors={"features": features, "counts": counts},
            floors={"precision": 0.0, "recall": 0.0, "f1": 0.0, "support_precision": 0.0, "silent": 1.0},
            ceilings={"precision": 1.0, "recall": 1.0, "f1": 1.0, "support_precision": 1.0, "silent": expected},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and each latent's feature with its counts."""
        sae, reader = subject.sae, context.activations("evaluation", self.config.rows)
        features = prepared.tensors["features"].to(sae.device)
        closest = closest_features(features, sae.w_dec)
        tally = _Tally(sae, closest.feature, features.shape[0])
        start = 0
        for x in reader.batches(_BATCH):
            tally.add(x, _codes(context, start, x.shape[0]))
            start += x.shape[0]
        positives = prepared.tensors["counts"].to(sae.device)[closest.feature]
        return _scored(tally, positives, closest)


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
    wanted = torch.nn.functional.normalize(features, dim=1)
    unit = torch.nn.functional.normalize(directions, dim=1)
    parts = [(part @ wanted.T).abs().max(dim=1) for part in torch.split(unit, _LATENTS)]
    return Closest(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


class _Tally:
    """Running counts over batches."""

    def __init__(self, sae: SparseAutoencoder, feature: Int[Tensor, " d_sae"], n_features: int) -> None:
        self.sae, self.feature, self.n_features = sae, feature, n_features
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.both = torch.zeros_like(self.fires)
        self.ratio, self.rows, self.measured = 0.0, 0, 0

    def add(self, x: Tensor, truth: Codes) -> None:
        """Add activations ``(rows, d_in)`` with their true coefficients."""
        codes = self.sae.encode(x)
        norms, made = x.double().norm(dim=1), self.sae.decode(codes).double().norm(dim=1)
        active = codes.values.abs() > _SILENT * norms[codes.selection.rows]
        rows, cols = codes.selection.rows[active], codes.selection.cols[active]
        self.fires += torch.bincount(cols, minlength=self.sae.d_sae)
        known = (truth.selection.rows * self.n_features + truth.selection.cols)[truth.values != 0].to(rows.device)
        hit = torch.isin(rows * self.n_features + self.feature[cols], known)
        self.both += torch.bincount(cols[hit], minlength=self.sae.d_sae)
        there = norms > _SMALL_NORM
        self.ratio += float((made[there] / norms[there]).sum())
        self.measured += int(there.sum())
        self.rows += x.shape[0]


def _scored(tally: _Tally, positives: Int[Tensor, " d_sae"], closest: Closest) -> Scored:
    fires, both = tally.fires.double(), tally.both.double()
    precision = both / fires.clamp(min=1)
    recall = both / positives.double().clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-300)
    count, active = fires.numel(), int(fires.sum())
    scores: dict[str, Score | NotApplicable] = {
        "precision": Score(float(precision.mean()), count),
        "recall": Score(float(recall.mean()), count),
        "f1": Score(float(f1.mean()), count),
        "support_precision": Score(float(both.sum()) / active, active)
        if active
        else NotApplicable("no latent fires in the evaluation rows"),
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


def _truth(context: MetricContext) -> GroundTruth:
    if not isinstance(context.backbone, GroundTruth):
        raise PluginError("feature_firing was prepared for a backbone without known features")
    return context.backbone


def _codes(context: MetricContext, start: int, rows: int) -> Codes:
    return _truth(context).codes("evaluation", start, rows)


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
