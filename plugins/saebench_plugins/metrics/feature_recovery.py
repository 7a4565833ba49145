"""Feature recovery: how many of the true features have a decoder direction close to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, field_validator, model_validator
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
    Subject,
    hookimpl,
    named_generator,
)
from saebench_plugins.metrics._cosines import best_cosines
from saebench_plugins.metrics._known_features import frequency_groups, truth_of, unknown
from saebench_plugins.metrics._recovery_charts import recovery_charts

_SOURCE = "Sanity Checks for SAEs, eq. 6"


class FeatureRecoveryConfig(MetricConfig):
    """Configuration of `FeatureRecovery`."""

    type: Literal["feature_recovery"] = "feature_recovery"
    threshold: float = Field(
        0.8, ge=0.0, lt=1.0, description="A feature is recovered if its best cosine is above this."
    )
    also: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = Field(
        (0.7, 0.9), description="Further thresholds that are counted beside it."
    )
    quantiles: PositiveInt = Field(10, description="Groups of equal size by frequency, each with a score of its own.")

    @field_validator("also")
    @classmethod
    def _ascending(cls, also: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(also)))

    @model_validator(mode="after")
    def _told_apart(self) -> FeatureRecoveryConfig:
        names = [f"{threshold:g}" for threshold in {self.threshold, *self.also}]
        if len(set(names)) < len(names):
            raise ValueError("thresholds must differ in their first six digits: scores are named by them")
        return self


class FeatureRecovery(Metric):
    """``R(f) = max_j cos(f, d_j)``, signed; floor: as many isotropic random directions as there are features.

    A cell's own chance line is the score of its start: random directions of its init, as many as it has latents.
    """

    def __init__(self, config: FeatureRecoveryConfig) -> None:
        self.config = config

    @property
    def _counted(self) -> dict[str, float]:
        """Thresholds by the name of the score that counts features above them; the headline's first."""
        headline = self.config.threshold
        every = [headline, *(threshold for threshold in self.config.also if threshold != headline)]
        return {f"fraction_{threshold:g}": threshold for threshold in every}

    @property
    def _groups(self) -> list[str]:
        """Scores of the groups of equal frequency, the rarest first."""
        count = self.config.quantiles
        digits = len(str(count))
        return [f"fraction_{self.config.threshold:g}_group_{group:0{digits}}" for group in range(1, count + 1)]

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        share = "share of features with max_j cos(f, d_j) > {:g}"
        mean = "mean over features of max_j cos(f, d_j)"
        start = ", of the decoder as it was drawn before training"
        named: dict[str, ScoreInfo] = {}
        for name, threshold in self._counted.items():
            formula, headline = share.format(threshold), threshold == self.config.threshold
            named[name] = ScoreInfo("higher", "share", 0.0, 1.0, "decoder", formula, _SOURCE, headline=headline)
            named[f"{name}_at_start"] = ScoreInfo("none", "share", 0.0, 1.0, "decoder", formula + start, _SOURCE)
        named["mean"] = ScoreInfo("higher", "cosine", -1.0, 1.0, "decoder", mean, _SOURCE, headline=True)
        named["mean_at_start"] = ScoreInfo("none", "cosine", -1.0, 1.0, "decoder", mean + start, _SOURCE)
        for group, name in enumerate(self._groups, 1):
            within = f", among those of group {group} of {self.config.quantiles} by frequency, 1 the rarest"
            formula = share.format(self.config.threshold) + within
            named[name] = ScoreInfo("higher", "share", 0.0, 1.0, "decoder", formula, _SOURCE)
            named[f"{name}_at_start"] = ScoreInfo("none", "share", 0.0, 1.0, "decoder", formula + start, _SOURCE)
        return named

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where the true features are known."""
        return unknown(backbone)

    def prepare(self, context: MetricContext) -> Prepared:
        """Return features and frequencies; the floor is the same count of isotropic random directions."""
        truth = truth_of(context, "feature_recovery")
        features, probabilities = truth.features(), truth.probabilities()
        generator = named_generator("feature_recovery", "floor", *features.shape)
        random = torch.randn(features.shape, generator=generator, device="cpu").to(features.device)
        chance = best_cosines(features, random)
        floors = {name: _share(chance, threshold) for name, threshold in self._counted.items()}
        group = frequency_groups(probabilities, self.config.quantiles)
        for number, name in enumerate(self._groups):
            own = chance[group == number]
            floors |= {name: _share(own, self.config.threshold)} if own.numel() else {}
        return Prepared(
            tensors={"features": features, "probabilities": probabilities},
            floors=floors | {"mean": float(chance.double().mean())},
            ceilings=dict.fromkeys((*self._counted, "mean", *self._groups), 1.0),
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return recovery of the decoder, of its start, and each feature's best cosine with its frequency group."""
        features = prepared.tensors["features"].to(subject.sae.device)
        best = best_cosines(features, subject.sae.w_dec)
        start = best_cosines(features, subject.start_decoder().to(subject.sae.device))
        probabilities, n = prepared.tensors["probabilities"], features.shape[0]
        group = frequency_groups(probabilities, self.config.quantiles)
        scores: dict[str, Score | NotApplicable] = {
            "mean": Score(float(best.double().mean()), n),
            "mean_at_start": Score(float(start.double().mean()), n),
        }
        for name, threshold in self._counted.items():
            scores[name] = Score(_share(best, threshold), n)
            scores[f"{name}_at_start"] = Score(_share(start, threshold), n)
        alike = bool(probabilities.min() == probabilities.max())
        for number, name in enumerate(self._groups):
            own = group.to(best.device) == number
            scores[name] = self._of_group(best[own], alike)
            scores[f"{name}_at_start"] = self._of_group(start[own], alike)
        items = {
            "feature": list(range(n)),
            "probability": probabilities.tolist(),
            "frequency_group": group.tolist(),
            "best_cosine": best.tolist(),
            "best_cosine_at_start": start.tolist(),
        }
        return Scored(scores, items)

    def figures(self, found: Sequence[Observed]) -> Sequence[Chart]:
        """Return every feature's best cosine, sorted, and recovery against frequency, twins overlaid."""
        return recovery_charts(found, self.config.threshold)

    def _of_group(self, best: Float[Tensor, " features"], alike: bool) -> Score | NotApplicable:
        if alike:
            return NotApplicable("all features fire equally often")
        if best.numel() == 0:
            return NotApplicable(f"fewer features than the {self.config.quantiles} groups")
        return Score(_share(best, self.config.threshold), best.numel())


def _share(best: Float[Tensor, " features"], threshold: float) -> float:
    return float((best > threshold).double().mean())


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
