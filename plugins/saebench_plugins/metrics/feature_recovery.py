"""Feature recovery: how many of the true features have a decoder direction close to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
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
    Subject,
    hookimpl,
    named_generator,
)

_SOURCE = "Sanity Checks for SAEs, eq. 6"
_CHUNK = 1024


class FeatureRecoveryConfig(MetricConfig):
    """Configuration of `FeatureRecovery`."""

    type: Literal["feature_recovery"] = "feature_recovery"
    threshold: float = Field(
        0.8, ge=0.0, lt=1.0, description="A feature is recovered if its best cosine is above this."
    )
    quantiles: PositiveInt = Field(10, description="Frequency groups in the per-item table.")


class FeatureRecovery(Metric):
    """``R(f) = max_j cos(f, d_j)``, signed; floor: as many isotropic random directions as there are features."""

    def __init__(self, config: FeatureRecoveryConfig) -> None:
        self.config = config

    @property
    def fraction(self) -> str:
        """Name of the score that counts recovered features."""
        return f"fraction_{self.config.threshold:g}"

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        above = f"share of features with max_j cos(f, d_j) > {self.config.threshold:g}"
        mean = "mean over features of max_j cos(f, d_j)"
        start = ", of the decoder as it was drawn before training"
        return {
            self.fraction: ScoreInfo("higher", "share", 0.0, 1.0, "decoder", above, _SOURCE, headline=True),
            "mean": ScoreInfo("higher", "cosine", -1.0, 1.0, "decoder", mean, _SOURCE, headline=True),
            f"{self.fraction}_at_start": ScoreInfo("none", "share", 0.0, 1.0, "decoder", above + start, _SOURCE),
            "mean_at_start": ScoreInfo("none", "cosine", -1.0, 1.0, "decoder", mean + start, _SOURCE),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        if isinstance(backbone, GroundTruth):
            return None
        return NotApplicable("the backbone's true features are not known")

    def prepare(self, context: MetricContext) -> Prepared:
        """Return features and frequencies; the floor is the same count of isotropic random directions."""
        if not isinstance(context.backbone, GroundTruth):
            raise PluginError("feature_recovery was prepared for a backbone without known features")
        features = context.backbone.features()
        generator = named_generator("feature_recovery", "floor", *features.shape)
        random = torch.randn(features.shape, generator=generator, device="cpu").to(features.device)
        chance = best_cosines(features, random)
        floors = {self.fraction: self._share(chance), "mean": float(chance.double().mean())}
        return Prepared(
            tensors={"features": features, "probabilities": context.backbone.probabilities()},
            floors=floors,
            ceilings={self.fraction: 1.0, "mean": 1.0},
        )

    def _share(self, best: Tensor) -> float:
        return float((best > self.config.threshold).double().mean())

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return recovery of the decoder, of its start, and each feature's best cosine with its frequency group."""
        features = prepared.tensors["features"].to(subject.sae.device)
        best = best_cosines(features, subject.sae.w_dec)
        start = best_cosines(features, subject.start_decoder().to(subject.sae.device))
        n = features.shape[0]
        scores: dict[str, Score | NotApplicable] = {
            self.fraction: Score(self._share(best), n),
            "mean": Score(float(best.double().mean()), n),
            f"{self.fraction}_at_start": Score(self._share(start), n),
            "mean_at_start": Score(float(start.double().mean()), n),
        }
        probabilities = prepared.tensors["probabilities"]
        rank = torch.argsort(torch.argsort(probabilities, stable=True), stable=True)
        items = {
            "feature": list(range(n)),
            "probability": probabilities.tolist(),
            "frequency_group": (rank * self.config.quantiles // n).tolist(),
            "best_cosine": best.tolist(),
            "best_cosine_at_start": start.tolist(),
        }
        return Scored(scores, items)


def best_cosines(
    features: Float[Tensor, "n_features d_in"], directions: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " n_features"]:
    """Return each feature's largest signed cosine with any direction."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    wanted = torch.nn.functional.normalize(features, dim=1)
    return torch.cat([(part @ unit.T).max(dim=1).values for part in torch.split(wanted, _CHUNK)])


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``feature_recovery``."""
    return [
        MetricSpec(
            config=FeatureRecoveryConfig,
            build=FeatureRecovery,
            summary="Share of the true features that a decoder direction points at",
            source=_SOURCE,
        )
    ]
