"""Seed stability: whether another draw and batch order lead to the same directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

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
)
from saebench_plugins.metrics._cosines import best_cosines

_SOURCE = "mean max cosine similarity, Sharkey et al. 2022; across seeds, Paulo and Belrose 2025 (arXiv 2501.16615)"
_SAME = 1e-4
_GIVEN = "seeds start from directions that they share"
_ALONE = "there is no other seed among the chosen cells"


class SeedStabilityConfig(MetricConfig):
    """Configuration of `SeedStability`."""

    type: Literal["seed_stability"] = "seed_stability"
    threshold: float = Field(
        0.8, ge=0.0, lt=1.0, description="A direction is found again if its best cosine is above this."
    )


class SeedStability(Metric):
    """``max_i cos(d_j, d'_i)`` of every direction with those of the same SAE under each other seed.

    The random null is the same number at the start: directions that are drawn have nothing in common between seeds. A
    start that all seeds share, such as the truth, is no null.
    """

    compares_seeds: ClassVar[bool] = True

    def __init__(self, config: SeedStabilityConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        mean = "mean over latents and other seeds of max_i cos(d_j, d'_i)"
        share = f"share of latents and other seeds with max_i cos(d_j, d'_i) > {self.config.threshold:g}"
        start = ", of the decoders as they were drawn before training"
        return {
            "mean": ScoreInfo("higher", "cosine", -1.0, 1.0, "decoder", mean, _SOURCE, headline=True),
            "mean_at_start": ScoreInfo("none", "cosine", -1.0, 1.0, "decoder", mean + start, _SOURCE),
            self._share: ScoreInfo("higher", "share", 0.0, 1.0, "decoder", share, _SOURCE),
            f"{self._share}_at_start": ScoreInfo("none", "share", 0.0, 1.0, "decoder", share + start, _SOURCE),
        }

    @property
    def _share(self) -> str:
        return f"fraction_{self.config.threshold:g}"

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies everywhere."""
        return None

    def prepare(self, context: MetricContext) -> Prepared:
        """There is nothing to prepare; directions that have nothing in common are above zero only by their number."""
        return Prepared(floors={"mean": 0.0, self._share: 0.0}, ceilings={"mean": 1.0, self._share: 1.0})

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and each latent's mean best cosine."""
        if not subject.others:
            return Scored({name: NotApplicable(_ALONE) for name in self.scores()})
        ends, starts = [], []
        start = subject.start_decoder()
        for other in subject.others.values():
            found = other()
            ends.append(best_cosines(subject.sae.w_dec, found.sae.w_dec))
            starts.append(best_cosines(start, found.start_decoder()))
        now, then = torch.stack(ends), torch.stack(starts)
        given = bool((then > 1 - _SAME).any())  # no drawn direction is as close to another by chance
        scores: dict[str, Score | NotApplicable] = {
            "mean": Score(float(now.double().mean()), now.numel()),
            "mean_at_start": NotApplicable(_GIVEN) if given else Score(float(then.double().mean()), then.numel()),
            self._share: Score(float((now > self.config.threshold).double().mean()), now.numel()),
            f"{self._share}_at_start": NotApplicable(_GIVEN)
            if given
            else Score(float((then > self.config.threshold).double().mean()), then.numel()),
        }
        items = {"latent": list(range(now.shape[1])), "best_cosine": now.double().mean(0).tolist()}
        return Scored(scores, items)


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``seed_stability``."""
    return [
        MetricSpec(
            config=SeedStabilityConfig,
            build=SeedStability,
            summary="Whether training with another seed finds the same directions",
            source=_SOURCE,
        )
    ]
