"""Feature absorption: a parent's latent that falls silent where one of its children fires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
    Codes,
    FeatureTree,
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
from saebench_plugins.metrics._cosines import cosine_parts
from saebench_plugins.metrics._known_features import evaluated, fired_features, fired_latents, truth_of, unknown

_ALIKE = 1e-6
_SOURCE = "A is for Absorption (arXiv 2409.14507), on known features"


class FeatureAbsorptionConfig(MetricConfig):
    """Configuration of `FeatureAbsorption`."""

    type: Literal["feature_absorption"] = "feature_absorption"
    threshold: float = Field(
        0.5, ge=0.0, lt=1.0, description="A feature has a latent if the largest cosine of a direction is above this."
    )
    rows: PositiveInt = Field(50_000, description="Evaluation rows.")
    least: PositiveInt = Field(
        10, description="Rows with parent, child and the child's latent that a pair needs to count."
    )


class FeatureAbsorption(Metric):
    """The latent of a feature is the one with the largest ``cos(f, d_j)``; whether it fires is read off the codes.

    Latents whose cosines differ by less than 1e-6 are one: it fires where one of them does.

    Where parent and child fire together, an SAE is sparser if one latent stands for both. Then the parent's own is
    silent, with nothing about the parent to tell why. `rate` counts that among the rows in which the child is seen;
    `missed` is how often the same parents' latents are silent where no child fires. Only what is above that has to do
    with children.
    """

    version: ClassVar[int] = 2

    def __init__(self, config: FeatureAbsorptionConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        least = self.config.least
        pairs = f"mean over pairs of parent and child that each have a latent of their own and {least} rows together"
        rate = f"share of the rows with parent and child in which only the child's latent fires, {pairs}"
        missed = (
            "share of the rows with the parent and none of its children in which its latent is silent, same parents"
        )
        shared = "of the pairs of parent and child of which both have a latent, those of which it is the same"
        return {
            "rate": ScoreInfo("lower", "share", 0.0, 1.0, "both", rate, _SOURCE, headline=True),
            "missed": ScoreInfo("lower", "share", 0.0, 1.0, "both", missed, _SOURCE),
            "shared": ScoreInfo("lower", "share", 0.0, 1.0, "decoder", shared, "saebench_core"),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies where features are known of which some fire only beside another."""
        if (refusal := unknown(backbone)) is not None:
            return refusal
        if not isinstance(backbone, FeatureTree) or bool((backbone.parents() < 0).all()):
            return NotApplicable("no feature of the backbone has a parent")
        return None

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return features and parents."""
        backbone = context.backbone
        if self.applicable(backbone) is not None:
            raise PluginError("feature_absorption was prepared for a backbone whose features have no parents")
        tensors = {
            "features": cast(GroundTruth, backbone).features(),
            "parents": cast(FeatureTree, backbone).parents(),
        }
        return Prepared(tensors=tensors, floors={"rate": 1.0, "missed": 1.0}, ceilings={"rate": 0.0, "missed": 0.0})

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the scores, and the counts of every child that has rows enough."""
        sae, truth = subject.sae, truth_of(context, "feature_absorption")
        features, parents = (prepared.tensors[name].to(sae.device) for name in ("features", "parents"))
        tally = _Tally(sae, latents_of(features, sae.w_dec, self.config.threshold), parents)
        for x, codes in evaluated(context, truth, self.config.rows):
            tally.add(x, codes)
        return self._scored(tally)

    def _scored(self, tally: _Tally) -> Scored:
        children = (tally.parents >= 0).nonzero()[:, 0]
        parents = tally.parents[children]
        first = tally.own.first()
        both = (first[children] >= 0) & (first[parents] >= 0)
        same = tally.own.shared(tally.parents)[children]
        apart = both & ~same & (tally.seen[children] >= self.config.least)
        rate = tally.absorbed[children].double() / tally.seen[children].clamp(min=1)
        above = parents[apart]
        above = above[tally.alone[above] > 0]
        scores: dict[str, Score | NotApplicable] = {
            "rate": _mean(rate[apart], "no pair of parent and child has a latent each, and rows enough"),
            "missed": _mean(tally.missed[above].double() / tally.alone[above], "no parent of such a pair fires alone"),
            "shared": _mean(same[both].double(), "no pair of parent and child has a latent"),
        }
        items = {
            "child": children.tolist(),
            "parent": parents.tolist(),
            "together": tally.together[children].tolist(),
            "seen": tally.seen[children].tolist(),
            "absorbed": tally.absorbed[children].tolist(),
            "child_latent": first[children].tolist(),
            "parent_latent": first[parents].tolist(),
            "counted": apart.tolist(),
        }
        return Scored(scores, items)


def _mean(values: Float[Tensor, " values"], otherwise: str) -> Score | NotApplicable:
    return Score(float(values.mean()), values.numel()) if values.numel() else NotApplicable(otherwise)


class Owned(NamedTuple):
    """Pairs of a feature and a latent of its own, by feature; latents that are as close to it are all its own.

    Attributes:
        features: of each pair.
        latents: of each pair.
        n_features: number of features, with those that have no latent.
        d_sae: number of latents.
    """

    features: Int[Tensor, " pairs"]
    latents: Int[Tensor, " pairs"]
    n_features: int
    d_sae: int

    def first(self) -> Int[Tensor, " n_features"]:
        """Return each feature's latent of lowest number, -1 for none."""
        lowest = self.latents.new_full((self.n_features,), self.d_sae)
        lowest = lowest.scatter_reduce(0, self.features, self.latents, "amin")
        return torch.where(lowest < self.d_sae, lowest, -1)

    def shared(self, parents: Int[Tensor, " n_features"]) -> Bool[Tensor, " n_features"]:
        """Return whether a feature has a latent that is its parent's, too."""
        keys = self.features * self.d_sae + self.latents
        also = torch.isin(parents[self.features] * self.d_sae + self.latents, keys)
        return torch.zeros(self.n_features, dtype=torch.bool, device=keys.device).index_fill(
            0, self.features[also], True
        )

    def told(self, rows: Int[Tensor, " fired"], latents: Int[Tensor, " fired"]) -> Int[Tensor, " told"]:
        """Return, for latents that fire in rows, ``row * n_features + feature`` of all features that they stand for."""
        order = self.latents.argsort(stable=True)
        counts = torch.bincount(self.latents, minlength=self.d_sae)
        starts = counts.cumsum(0) - counts
        many = counts[latents]
        entry = torch.arange(latents.numel(), device=latents.device).repeat_interleave(many)
        within = torch.arange(entry.numel(), device=entry.device) - (many.cumsum(0) - many)[entry]
        return rows[entry] * self.n_features + self.features[order[starts[latents[entry]] + within]]


def latents_of(
    features: Float[Tensor, "n_features d_in"], directions: Float[Tensor, "d_sae d_in"], threshold: float
) -> Owned:
    """Return each feature's closest latents, if their cosine is above a threshold."""
    mine, latents, first = [], [], 0
    for part in cosine_parts(features, directions):
        best = part.amax(dim=1, keepdim=True)
        rows, cols = ((part >= best - _ALIKE) & (best > threshold)).nonzero().unbind(1)
        mine.append(rows + first)
        latents.append(cols)
        first += part.shape[0]
    return Owned(torch.cat(mine), torch.cat(latents), first, directions.shape[0])


class _Tally:
    """Running counts, by feature.

    Attributes:
        together: rows in which a child and its parent fire.
        seen: of those, rows in which the child's latent fires.
        absorbed: of those, rows in which the parent's does not.
        alone: rows in which a parent fires and none of its children.
        missed: of those, rows in which its latent is silent.
    """

    def __init__(self, sae: SparseAutoencoder, own: Owned, parents: Int[Tensor, " n_features"]) -> None:
        self.sae, self.own, self.parents = sae, own, parents
        counts = torch.zeros(5, own.n_features, dtype=torch.int64, device=sae.device)
        self.together, self.seen, self.absorbed, self.alone, self.missed = counts

    def add(self, x: Float[Tensor, "rows d_in"], truth: Codes) -> None:
        """Add activations with their true coefficients."""
        count = self.own.n_features
        rows, cols = fired_features(truth, x.device)
        if rows.numel() == 0:
            return
        places = rows * count + cols
        mine = torch.isin(places, self.own.told(*fired_latents(self.sae.encode(x), x)))
        order = places.argsort()
        above = self.parents[cols]
        wanted = rows * count + above.clamp(min=0)
        place = order[torch.searchsorted(places[order], wanted).clamp(max=places.numel() - 1)]
        paired = (above >= 0) & (places[place] == wanted)
        self.together += torch.bincount(cols[paired], minlength=count)
        self.seen += torch.bincount(cols[paired & mine], minlength=count)
        absorbed = paired & mine & ~mine[place]
        self.absorbed += torch.bincount(cols[absorbed], minlength=count)
        alone = torch.ones_like(paired)
        alone[place[paired]] = False
        self.alone += torch.bincount(cols[alone], minlength=count)
        self.missed += torch.bincount(cols[alone & ~mine], minlength=count)


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``feature_absorption``."""
    return [
        MetricSpec(
            config=FeatureAbsorptionConfig,
            build=FeatureAbsorption,
            summary="How often a known feature's latent is silent where a child of the feature fires",
            source=_SOURCE,
        )
    ]
