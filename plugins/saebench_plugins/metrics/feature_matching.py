"""Feature matching: decoder directions and true features paired one to one, and how many features are pointed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core import (
    Backbone,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    Subject,
    hookimpl,
    named_generator,
)
from saebench_plugins.metrics._cosines import cosine_parts
from saebench_plugins.metrics._known_features import truth_of, unknown

_SOURCE = "SynthSAEBench (arXiv 2602.14687), section on metrics"


class FeatureMatchingConfig(MetricConfig):
    """Configuration of `FeatureMatching`."""

    type: Literal["feature_matching"] = "feature_matching"


class FeatureMatching(Metric):
    """Absolute cosines of decoder directions with true features; floor: as many random directions as features.

    `feature_recovery` asks for each feature whether some direction is close to it; one direction may serve many.
    Here a direction serves one feature.
    """

    def __init__(self, config: FeatureMatchingConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        mcc = (
            "mean |cos(f, d)| over the pairs of the matching that makes their sum largest; min(n_features, d_sae) pairs"
        )
        start = ", of the decoder as it was drawn before training"
        unique = "number of distinct argmax_f |cos(f, d_j)| over latents j, divided by d_sae"
        return {
            "mcc": ScoreInfo("higher", "cosine", 0.0, 1.0, "decoder", mcc, _SOURCE, headline=True),
            "uniqueness": ScoreInfo("higher", "share", 0.0, 1.0, "decoder", unique, _SOURCE),
            "mcc_at_start": ScoreInfo("none", "cosine", 0.0, 1.0, "decoder", mcc + start, _SOURCE),
            "uniqueness_at_start": ScoreInfo("none", "share", 0.0, 1.0, "decoder", unique + start, _SOURCE),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        return unknown(backbone)

    def prepare(self, context: MetricContext) -> Prepared:
        """Return the features; the floor is what the same count of isotropic random directions reaches."""
        features = truth_of(context, "feature_matching").features()
        generator = named_generator("feature_matching", "floor", *features.shape)
        random = torch.randn(features.shape, generator=generator, device="cpu").to(features.device)
        chance = absolute_cosines(features, random)
        return Prepared(
            tensors={"features": features},
            floors={"mcc": float(matched(chance)[0].mean())},
            ceilings={"mcc": 1.0},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and the latent that each feature was paired with."""
        features = prepared.tensors["features"].to(subject.sae.device)
        cosines = absolute_cosines(features, subject.sae.w_dec)
        values, pairs = matched(cosines)
        start = absolute_cosines(features, subject.start_decoder().to(subject.sae.device))
        n = values.numel()
        scores: dict[str, Score | NotApplicable] = {
            "mcc": Score(float(values.mean()), n),
            "uniqueness": Score(uniqueness(cosines), subject.sae.d_sae),
            "mcc_at_start": Score(float(matched(start)[0].mean()), n),
            "uniqueness_at_start": Score(uniqueness(start), subject.sae.d_sae),
        }
        items = {"feature": pairs[0].tolist(), "latent": pairs[1].tolist(), "absolute_cosine": values.tolist()}
        return Scored(scores, items)


def absolute_cosines(
    features: Float[Tensor, "n_features d_in"], directions: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n_features d_sae"]:
    """Return the absolute cosine of each feature with each direction; a direction of norm zero has none, so 0."""
    return torch.cat([part.abs_().clamp_(max=1.0) for part in cosine_parts(features, directions)])


def matched(cosines: Float[Tensor, "n_features d_sae"]) -> tuple[Float[Tensor, " pairs"], Int[Tensor, "two pairs"]]:
    """Return the values of the best one-to-one matching in fp64, and its features and latents."""
    from scipy.optimize import linear_sum_assignment

    table = cosines.double().cpu().numpy()
    features, latents = linear_sum_assignment(table, maximize=True)
    pairs = torch.stack([torch.from_numpy(features), torch.from_numpy(latents)])
    return torch.from_numpy(table[features, latents]), pairs


def uniqueness(cosines: Float[Tensor, "n_features d_sae"]) -> float:
    """Return the number of features that are some latent's closest, divided by the number of latents."""
    distinct: Tensor = torch.unique(cosines.argmax(dim=0))
    return distinct.numel() / cosines.shape[1]


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``feature_matching``."""
    return [
        MetricSpec(
            config=FeatureMatchingConfig,
            build=FeatureMatching,
            summary="Decoder directions paired one to one with the true features",
            source=_SOURCE,
        )
    ]
