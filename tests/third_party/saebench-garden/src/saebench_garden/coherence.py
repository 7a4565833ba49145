"""A metric: how close the directions of latents lie to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

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
    Split,
    Subject,
    hookimpl,
)

_CHUNK = 1024
_SOURCE = "mutual coherence (Donoho and Huo 2001), averaged"


class CoherenceConfig(MetricConfig):
    """Configuration of `Coherence`."""

    type: Literal["coherence"] = "coherence"
    rows: PositiveInt = Field(1024, description="Evaluation rows whose latents are compared with each other.")


class Nearest(NamedTuple):
    """For every latent, the absolute cosine of the direction closest to its own, and whose that is."""

    cosines: Float[Tensor, " d_sae"]
    latents: Int[Tensor, " d_sae"]


def nearest_directions(directions: Float[Tensor, "d_sae d_in"]) -> Nearest:
    """Return the closest other direction of each, lines, not arrows; a few rows at a time."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    found = []
    for first in range(0, unit.shape[0], _CHUNK):
        cosines = (unit[first : first + _CHUNK] @ unit.T).abs()
        cosines.diagonal(first).fill_(-1.0)
        found.append(cosines.max(dim=1))
    cosines = torch.cat([part.values for part in found]).clamp(0.0, 1.0)
    return Nearest(cosines, torch.cat([part.indices for part in found]))


def interference(codes: Codes, directions: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " pairs"]:
    """Return the absolute cosines of all pairs of latents that fire on the same row."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    fires = codes.values != 0
    found = [unit.new_zeros(0)]
    for first, last in pairwise(codes.selection.bounds.tolist()):
        mine = unit[codes.selection.cols[first:last][fires[first:last]]]
        upper = torch.triu_indices(len(mine), len(mine), offset=1, device=unit.device)
        found.append((mine @ mine.T)[upper[0], upper[1]].abs().clamp(max=1.0))
    return torch.cat(found)


class Coherence(Metric):
    """``closest`` looks at the decoder alone, ``together`` at latents that have to share a row."""

    version: ClassVar[int] = 1

    def __init__(self, config: CoherenceConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        closest = "mean over latents j of max_{i != j} |cos(d_i, d_j)|"
        together = "mean of |cos(d_i, d_j)| over pairs of latents that fire on the same row"
        start = ", of the decoder as it was drawn before training"
        return {
            "closest": ScoreInfo("lower", "cosine", 0.0, 1.0, "decoder", closest, _SOURCE),
            "closest_at_start": ScoreInfo("none", "cosine", 0.0, 1.0, "decoder", closest + start, _SOURCE),
            "together": ScoreInfo("lower", "cosine", 0.0, 1.0, "both", together, "this package", headline=True),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies everywhere."""
        return None

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return what isotropic random directions of this width score on ``together``; that of others depends on d_sae.

        ``E |cos| = Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2))``.
        """
        d_in = context.backbone.describe().sites[context.site]
        chance = math.exp(math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)) / math.sqrt(math.pi)
        return Prepared(floors={"together": chance}, ceilings={"closest": 0.0, "together": 0.0})

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the three scores, and each latent's nearest neighbour."""
        sae = subject.sae
        if sae.d_sae < 2:
            return Scored(dict.fromkeys(self.scores(), NotApplicable("there is one latent only")))
        nearest = nearest_directions(sae.w_dec)
        start = nearest_directions(subject.start_decoder().to(sae.device))
        reader = context.activations("evaluation", self.config.rows)
        pairs = torch.cat([interference(sae.encode(x), sae.w_dec) for x in reader.batches(_CHUNK)])
        scores: dict[str, Score | NotApplicable] = {
            "closest": Score(float(nearest.cosines.double().mean()), sae.d_sae),
            "closest_at_start": Score(float(start.cosines.double().mean()), sae.d_sae),
            "together": Score(float(pairs.double().mean()), pairs.numel())
            if pairs.numel()
            else NotApplicable("no two latents fire on the same row"),
        }
        items = {
            "latent": list(range(sae.d_sae)),
            "closest_cosine": nearest.cosines.tolist(),
            "closest_latent": nearest.latents.tolist(),
        }
        return Scored(scores, items)


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``coherence``."""
    return [
        MetricSpec(
            config=CoherenceConfig,
            build=Coherence,
            summary="How close directions of latents lie to each other, over all latents and those that fire together",
            source=_SOURCE,
        )
    ]
