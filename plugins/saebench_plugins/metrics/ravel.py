"""Causal editing: can an attribute of an entity be changed through a few latents, and others be left as they are?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

import torch
from torch import Tensor

from saebench_core import (
    Backbone,
    BackboneDescription,
    EditableModel,
    InputError,
    Json,
    Metric,
    MetricContext,
    MetricSpec,
    MissingPackageError,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    SparseAutoencoder,
    Subject,
    Work,
    hookimpl,
    named_generator,
    tensor_sha256,
)
from saebench_plugins.metrics._entities import GeonamesCities
from saebench_plugins.metrics._ravel_pairs import (
    REFERENCES,
    Attribute,
    RavelConfig,
    attributes_of,
    fitting,
    hard,
    prepared_pairs,
    why_not,
)
from saebench_plugins.metrics._swap_masks import Latents

__all__ = ["Ravel", "RavelConfig"]

_RANDOM_DRAWS: Final = 3
_ATTRIBUTES: Final = 4
"""Attributes of a kind of entity, and tokens of a prompt, for the plan."""
_PROMPT: Final = 20
_SOURCE: Final = "paper section 4.2; Huang et al. 2024; SAEBench RAVEL"


class Ravel(Metric):
    """Learns one mask for each attribute on train pairs, and lets the model answer test pairs."""

    def __init__(self, config: RavelConfig) -> None:
        self.config = config
        self._entities = config.entities or (GeonamesCities(),)
        self._digests: dict[str, Json] | None = None

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores: means over attributes, then over kinds of entities."""
        cause = "share of test pairs on an attribute whose answer becomes the source's"
        isolation = "share of test pairs on the other attributes whose answer stays the base's"
        mean = "(cause + isolation) / 2"
        names = {
            "disentangled": _info("higher", f"{mean}: {cause}, and {isolation}", headline=True),
            "cause": _info("higher", f"{cause}, latents above zero in the mask swapped", headline=True),
            "isolation": _info("higher", f"{isolation}, latents above zero in the mask swapped", headline=True),
            "swapped": ScoreInfo("none", "1", 0.0, None, "both", "latents above zero in the mask", _SOURCE),
            "none_swapped": _info("none", f"{mean} of reconstructions alone"),
            "all_swapped": _info("none", f"{mean}, every latent swapped"),
            "random_swapped": _info(
                "none", f"{mean}, as many latents swapped as by the mask, drawn from those that fire on the pairs"
            ),
        }
        for name, what in REFERENCES.items():
            names |= {f"{name}_{part}": _info("none", f"{part}: {what}") for part in ("cause", "isolation")}
        return names

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for a model that answers with edited activations."""
        if not isinstance(backbone, EditableModel):
            return NotApplicable("the backbone is no language model that answers with edited activations")
        if not self.config.entities:
            try:
                self._entities[0].fingerprint()
            except MissingPackageError as error:
                return NotApplicable(f"no entities: give `entities`. By default geonames: {error}")
        return None

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the files."""
        if self._digests is None:
            try:
                self._digests = {str(number): source.fingerprint() for number, source in enumerate(self._entities)}
            except MissingPackageError:
                if self.config.entities:
                    raise
                return {}
        return self._digests

    def work(self, description: BackboneDescription) -> Work:
        """Count twenty tokens a prompt and those of its answers; what is edited, forth and back."""
        config, attributes = self.config, _ATTRIBUTES * len(self._entities)
        asked = attributes * (config.max_entities or 4000) * (config.max_templates or 50)
        pairs = 2 * attributes * config.pairs
        learned, tested = 3 * config.train_share * pairs * _PROMPT, (1 - config.train_share) * pairs
        tested *= _PROMPT + config.words
        prepared = asked * (_PROMPT + config.words) + learned * (config.epochs + config.rotation_epochs) + 4 * tested
        scored = learned * config.epochs + (3 + _RANDOM_DRAWS) * tested
        whole = description.whole_pass
        return Work(prepared=int(whole * prepared), scored=int(whole * scored), encoded=int(2 * scored / _PROMPT))

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count twenty tokens for every prompt that pairs may use."""
        attributes = _ATTRIBUTES * len(self._entities)
        prompts = min(4 * self.config.pairs, (self.config.max_entities or 4000) * (self.config.max_templates or 50))
        return attributes * prompts * _PROMPT * description.sites[site] * 4

    def prepare(self, context: MetricContext) -> Prepared:
        """Find what the model knows, make pairs, and measure what needs no SAE."""
        model = context.backbone
        if not isinstance(model, EditableModel):
            raise InputError("ravel needs a language model that answers with edited activations")
        return prepared_pairs(self.config, [source.read() for source in self._entities], model, context)

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Learn a mask for each attribute, and test it beside fixed ones.

        What was found for an attribute is kept, so that a score that was ended goes on after it.
        """
        listed: Any = prepared.facts["references"]
        references = {(row["kind"], row["attribute"]): row for row in listed if "rotation" in row}
        attributes = [
            attribute
            for attribute in attributes_of(self.config, prepared.tensors, prepared.facts, context)
            if (attribute.kind, attribute.name) in references
        ]
        if not attributes:
            return Scored(dict.fromkeys(self.scores(), NotApplicable(why_not(prepared.facts, self.config.gate))))
        identity = _identity(subject.sae)
        rows: list[dict[str, Any]] = []
        for number, attribute in enumerate(attributes):
            row: dict[str, Any] = {"kind": attribute.kind, "attribute": attribute.name}
            row |= self._kept(subject.sae, identity, attribute, context)
            for name in REFERENCES:
                row[f"{name}_cause"], row[f"{name}_isolation"] = references[attribute.kind, attribute.name][name]
            rows.append(row)
            context.progress("ravel", number + 1, len(attributes))
        return Scored(self._means(rows), {name: [row[name] for row in rows] for name in rows[0]})

    def _kept(
        self, sae: SparseAutoencoder, identity: Mapping[str, Json], attribute: Attribute, context: MetricContext
    ) -> dict[str, Any]:
        """Return what masks do to an attribute, measured once."""

        def build(folder: Path) -> None:
            (folder / "row.json").write_text(json.dumps(self._measured(sae, attribute)), encoding="utf-8")

        key: dict[str, Json] = {
            "sae": dict(identity),
            "of": [attribute.kind, attribute.name],
            "config": self.config.model_dump(mode="json", exclude={"name", "only"}),
            "files": dict(self.fingerprint()),
        }
        found: dict[str, Any] = json.loads((context.product(key, build) / "row.json").read_text(encoding="utf-8"))
        return found

    def _measured(self, sae: SparseAutoencoder, attribute: Attribute) -> dict[str, Any]:
        stage, test, basis = attribute.stage, attribute.test, Latents(sae)
        label = f"{attribute.kind}, {attribute.name}, latents"
        gate = hard(stage.fit(basis, attribute.train, fitting(self.config, self.config.epochs), label))
        rows = stage.entity_rows(sorted({number for pair in test for number in (pair.base, pair.source)}))
        random = _random_gates(basis, rows, int(gate.sum()), self.config.seed)
        gates = [gate, torch.zeros_like(gate), torch.ones_like(gate), *random]
        learned, none, every, *drawn = stage.outcomes(test, basis, gates)
        return {
            "cause": learned.cause,
            "isolation": learned.isolation,
            "disentangled": learned.disentangled,
            "swapped": int(gate.sum()),
            "none_swapped": none.disentangled,
            "all_swapped": every.disentangled,
            "random_swapped": fmean(one.disentangled for one in drawn),
            "pairs": len(test),
        }

    def _means(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Score | NotApplicable]:
        n = sum(row["pairs"] for row in rows)
        kinds = sorted({row["kind"] for row in rows})
        return {
            name: Score(fmean(fmean(row[name] for row in rows if row["kind"] == kind) for kind in kinds), n)
            for name in self.scores()
        }


def _info(direction: Literal["higher", "none"], formula: str, headline: bool = False) -> ScoreInfo:
    return ScoreInfo(direction, "share", 0.0, 1.0, "both", formula, _SOURCE, headline=headline)


def _identity(sae: SparseAutoencoder) -> dict[str, Json]:
    tensors: Json = {name: tensor_sha256(tensor) for name, tensor in sorted(sae.tensors.items())}
    return {"tensors": tensors, "rule": repr(sae.rule), "centring": sae.centring}


def _random_gates(basis: Latents, rows: Tensor, count: int, seed: int) -> list[Tensor]:
    """Draw masks of as many latents among those that fire on these rows."""
    codes = basis.sae.encode(rows)
    alive = codes.selection.fired(codes.values).nonzero()[:, 0].cpu()
    along = torch.randn(basis.sae.d_in, generator=named_generator(seed, "ravel order"), device="cpu")
    alive = alive[(basis.sae.w_dec[alive].cpu() @ along).argsort()]  # whatever numbers latents have
    gates = []
    for draw in range(_RANDOM_DRAWS):
        order = torch.randperm(len(alive), generator=named_generator(seed, "ravel random", str(draw)), device="cpu")
        gate = torch.zeros(basis.size, device=basis.device)
        gate[alive[order[:count]].to(basis.device)] = 1
        gates.append(gate)
    return gates


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=RavelConfig,
            build=Ravel,
            summary="Causal editing: change one attribute of an entity through latents, leave the others",
            source="Huang et al. 2024; SAEBench RAVEL",
        )
    ]
