"""A metric under examination: on every backbone of the kit, with its inputs as they come back from the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file

from saebench_core.conformance.checks import NotCheckable, demand
from saebench_core.conformance.context import KitContext
from saebench_core.conformance.references import reference_saes, start_decoder
from saebench_core.conformance.subjects import PluginSubject
from saebench_core.conformance.worlds import WORLDS
from saebench_core.interfaces.backbone import Backbone, BackboneSpec
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.metric import Metric, NotApplicable, Prepared, Score, Scored, ScoreInfo, Subject
from saebench_core.sae import SparseAutoencoder

__all__ = ["Judged", "MetricSubject"]


@dataclass(frozen=True)
class Judged:
    """A metric on one backbone.

    Attributes:
        world: name of the backbone.
        metric: the metric.
        context: as the core hands it over.
        prepared: inputs as they come back from the store.
        fresh: inputs as the metric returned them.
        saes: SAEs whose scores are known beforehand.
        scored: what the metric says of each.
    """

    world: str
    metric: Metric
    context: KitContext
    prepared: Prepared
    fresh: Prepared
    saes: Mapping[str, SparseAutoencoder]
    scored: Mapping[str, Scored]

    @property
    def scores(self) -> Mapping[str, ScoreInfo]:
        """What the metric declares."""
        return self.metric.scores()

    def value(self, sae: str, score: str) -> float | None:
        """Return a value, or None where the metric says that the score does not apply."""
        found = self.scored[sae].scores[score]
        return found.value if isinstance(found, Score) else None

    def again(self, sae: str, context: KitContext | None = None, prepared: Prepared | None = None) -> Scored:
        """Score an SAE once more."""
        known = self.saes.get("renumbered")
        return score_of(self.metric, self.saes[sae], prepared or self.prepared, context or self.context, known)


def score_of(
    metric: Metric, sae: SparseAutoencoder, prepared: Prepared, context: KitContext, other: SparseAutoencoder | None
) -> Scored:
    """Score one SAE; a metric that compares seeds sees ``other`` as what another seed has led to."""
    others = {1: lambda: _subject(other)} if metric.compares_seeds and other is not None else {}
    return metric.score(replace(_subject(sae), others=others), prepared, context)


def _subject(sae: SparseAutoencoder) -> Subject:
    return Subject(sae, lambda: start_decoder(sae.d_in, sae.d_sae))


class MetricSubject(PluginSubject):
    """A metric on the kit's backbones, and on one more if its author gives one."""

    backbone: Mapping[str, Any] | None = None
    """Entry of a backbone that the metric is tried on beside the kit's own."""

    @cached_property
    def metric(self) -> Metric:
        """The metric."""
        return cast(Metric, self.build())

    def worlds(self) -> dict[str, Backbone]:
        """Return the backbones, built anew and not prepared."""
        found = {name: make() for name, make in WORLDS.items()}
        if self.backbone is not None:
            plugin = self.catalog.get("backbone", str(self.backbone.get("type")))
            spec = cast(BackboneSpec, plugin.spec)
            found = {f"the given {plugin.name}": spec.build(spec.config.model_validate(dict(self.backbone)))} | found
        return found

    def context(self, backbone: Backbone, finest: int | None = None) -> KitContext:
        """Return a context over a store of its own."""
        site = next(iter(backbone.describe().sites))
        return KitContext(self.new_folder(), backbone, site, self.catalog, self.plugin.name, finest)

    @cached_property
    def judged(self) -> tuple[Judged, ...]:
        """The metric on every backbone that it applies to, as far as that is known before anything is prepared.

        Raises:
            NotCheckable: if it applies to none.
        """
        found = [self.judge(name, backbone) for name, backbone in self.worlds().items() if self._applies(backbone)]
        if not found:
            raise NotCheckable("the metric applies to none of the kit's backbones; give it one with `backbone`")
        return tuple(found)

    def _applies(self, backbone: Backbone) -> bool:
        return self.metric.applicable(backbone) is None

    def judge(self, world: str, backbone: Backbone) -> Judged:
        """Prepare the metric on a backbone and score the SAEs that are known."""
        context = self.context(backbone)
        fresh = self.metric.prepare(context)
        prepared = stored(fresh, self.new_folder())
        batches = backbone_rows(context)
        saes = reference_saes(context.backbone, batches)
        scored = {name: score_of(self.metric, sae, prepared, context, saes["renumbered"]) for name, sae in saes.items()}
        return Judged(world, self.metric, context, prepared, fresh, saes, scored)

    def exercise(self) -> object:
        """Prepare and score on every backbone."""
        metric = cast(Metric, self.build())
        for backbone in self.worlds().values():
            if metric.applicable(backbone) is None:
                context = self.context(backbone)
                prepared = metric.prepare(context)
                saes = reference_saes(context.backbone, backbone_rows(context))
                score_of(metric, saes["random"], prepared, context, saes["renumbered"])
        return metric


def backbone_rows(context: KitContext, split: Split = "evaluation", rows: int = 320) -> Any:
    """Return rows of a backbone without the metric's having asked for them."""
    asked = dict(context.asked)
    found = context.activations(split, rows).values
    context.asked.clear()
    context.asked.update(asked)
    return found


def stored(prepared: Prepared, folder: Path) -> Prepared:
    """Return a metric's inputs after a round trip through the files that the store keeps of them."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in prepared.tensors.items()}
    save_file(tensors, folder / "tensors.safetensors")
    content = {"facts": dict(prepared.facts), "floors": dict(prepared.floors), "ceilings": dict(prepared.ceilings)}
    text = json.dumps(content, allow_nan=False)
    read = json.loads(text)
    return Prepared(load_file(folder / "tensors.safetensors"), read["facts"], read["floors"], read["ceilings"])


def demand_same(what: str, found: Scored, allowed: Scored, tolerance: float = 0.0) -> None:
    """Refuse scores that differ by more than a tolerance, relative above one.

    Raises:
        ConformanceError: with the first that differs.
    """
    for name, value in allowed.scores.items():
        other = found.scores.get(name)
        if isinstance(value, NotApplicable) or isinstance(other, NotApplicable) or other is None:
            demand(type(value) is type(other), f"{what}: {name} = {other}", f"{value}")
            continue
        apart = abs(other.value - value.value)
        allowed_apart = tolerance * max(1.0, abs(value.value))
        bound = f"within {tolerance:g}" if tolerance else "exactly"
        demand(apart <= allowed_apart, f"{what}: {name} = {other.value:.9g}", f"{value.value:.9g}, {bound}")
