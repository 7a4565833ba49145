"""How much of a model's loss survives when activations are replaced by their reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional

from saebench_core import (
    Backbone,
    BackboneDescription,
    EditableModel,
    InputError,
    LanguageModel,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Patch,
    PluginError,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    Subject,
    TokenBatch,
    VisionModel,
    Work,
    hookimpl,
)

__all__ = ["LossRecovered", "LossRecoveredConfig"]

_SEQUENCES_AT_ONCE: Final = 4  # logits of a large vocabulary: 128 tokens x 262k in fp32 are 134 MB
_IMAGES_AT_ONCE: Final = 32
_STATES: Final = "states"
_CLEAN: Final = ("ce_clean", "ce_zero", "kl_zero")
_SMALLEST_GAP: Final = 1e-4
"""Nats that zero ablation must cost; below it there is nothing to recover, only rounding to divide by."""


class LossRecoveredConfig(MetricConfig):
    """Cross-entropy and KL divergence recovered: next tokens of a language model, zero-shot classes of images."""

    type: Literal["loss_recovered"] = "loss_recovered"
    sequences: PositiveInt = Field(32, description="Evaluation sequences of a language model.")
    tokens: int = Field(128, ge=2, description="Tokens of each sequence, counted from its start.")
    replaced: Literal["kept", "all"] = Field(
        "kept",
        description="Tokens of a language model whose activations are replaced. kept: those that are rows. all: BOS "
        "and the first ones too; losses are those of the kept ones all the same.",
    )
    images: PositiveInt = Field(512, description="Evaluation images of a vision model.")


@dataclass(frozen=True)
class _Losses:
    """Sums over the positions of an item (a sequence or an image), fp64 on the CPU, ``(items,)`` each."""

    ce: Float[Tensor, " items"]
    kl: Float[Tensor, " items"]
    right: Float[Tensor, " items"]
    positions: Float[Tensor, " items"]

    @classmethod
    def join(cls, parts: list[_Losses]) -> _Losses:
        names = ("ce", "kl", "right", "positions")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def mean(self, name: Literal["ce", "kl", "right"]) -> float:
        """Return the mean over all positions of all items."""
        total: Tensor = getattr(self, name)
        return float(total.sum() / self.positions.sum())


def _zero(activations: Tensor) -> Tensor:
    return torch.zeros_like(activations)


def _keep(activations: Tensor) -> Tensor:
    return activations


def compare(
    clean: Float[Tensor, "items positions classes"],
    patched: Float[Tensor, "items positions classes"],
    targets: Int[Tensor, "items positions"],
    used: Bool[Tensor, "items positions"],
) -> _Losses:
    """Return the losses of patched logits, summed over the used positions of each item.

    CE is ``-log p(target)``, KL is ``sum p_clean (log p_clean - log p)``, both in nats from fp32 ``log_softmax``.
    """
    log_p, log_clean = patched.log_softmax(-1), clean.log_softmax(-1)
    ce = -log_p.gather(-1, targets[..., None])[..., 0]
    kl = (log_clean.exp() * (log_clean - log_p)).sum(-1)
    right = (patched.argmax(-1) == targets).to(torch.float32)
    sums = [(value * used).to("cpu", torch.float64).sum(1) for value in (ce, kl, right)]
    return _Losses(sums[0], sums[1], sums[2], used.to("cpu", torch.float64).sum(1))


class LossRecovered(Metric):
    """Patches the site with zeros (floor), nothing (ceiling) and reconstructions.

    Where a model can go on from a site, its activations there are kept, and no SAE makes them be computed again.
    """

    version = 2
    large_inputs = True

    def __init__(self, config: LossRecoveredConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        mean = "mean over kept positions with a next token (images: over images)"
        source = "paper section 4.1, figures 12 and 13; SAEBench core evaluation"
        return {
            "ce": ScoreInfo(
                "higher",
                "share",
                None,
                None,
                "both",
                "(CE_zero - CE_sae) / (CE_zero - CE_clean)",
                source,
                headline=True,
            ),
            "kl": ScoreInfo(
                "higher", "share", None, 1.0, "both", "(KL_zero - KL_sae) / KL_zero", source, headline=True
            ),
            "ce_clean": ScoreInfo("none", "nats", 0.0, None, "both", f"{mean} of -log p_clean(target)", source),
            "ce_sae": ScoreInfo("lower", "nats", 0.0, None, "both", f"{mean} of -log p_sae(target)", source),
            "ce_zero": ScoreInfo("none", "nats", 0.0, None, "both", f"{mean} of -log p_zero(target)", source),
            "top1": ScoreInfo(
                "higher", "share", 0.0, 1.0, "both", "share of images whose class has the largest logit", source
            ),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for logits that a patch can change."""
        if isinstance(backbone, (LanguageModel, VisionModel)):
            return None
        return NotApplicable("the backbone has no logits: neither a language model nor a vision model with classes")

    def work(self, description: BackboneDescription) -> Work:
        """Count clean passes beside patched ones."""
        rows = self.config.sequences * self.config.tokens
        if description.modality == "vision":
            patches = description.facts.get("tokens_per_image")
            rows = self.config.images * (patches if isinstance(patches, int) else 1)
        passed = int(rows * description.whole_pass)
        return Work(prepared=3 * passed, scored=2 * passed, encoded=rows)

    def prepare(self, context: MetricContext) -> Prepared:
        """Compute the clean and the zero-ablated losses of every item."""
        states = self._states(context)
        clean = self._losses(context, _keep, states)
        zero = self._losses(context, _zero, states)
        if not float(clean.positions.sum()):
            raise InputError("loss_recovered: the evaluation split has no kept position with a next token")
        vision = isinstance(context.backbone, VisionModel)
        tensors = {"ce_clean": clean.ce, "ce_zero": zero.ce, "kl_zero": zero.kl, "positions": clean.positions}
        tensors |= {} if states is None else {_STATES: states}
        floors, ceilings = {"ce": 0.0, "kl": 0.0}, {"ce": 1.0, "kl": 1.0}
        if vision:
            floors["top1"], ceilings["top1"] = zero.mean("right"), clean.mean("right")
        return Prepared(tensors, {"item": "image" if vision else "sequence"}, floors, ceilings)

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Patch reconstructions in, and compare."""
        losses = self._losses(context, subject.sae.reconstruct, prepared.tensors.get(_STATES))
        positions = losses.positions
        n = int(positions.sum())
        means = {name: float(prepared.tensors[name].sum() / positions.sum()) for name in _CLEAN}
        ce, kl = losses.mean("ce"), losses.mean("kl")
        scores: dict[str, Score | NotApplicable] = {
            "ce": _recovered(means["ce_zero"] - ce, means["ce_zero"] - means["ce_clean"], n, "the cross-entropy"),
            "kl": _recovered(means["kl_zero"] - kl, means["kl_zero"], n, "the distribution"),
            "ce_clean": Score(means["ce_clean"], n),
            "ce_sae": Score(ce, n),
            "ce_zero": Score(means["ce_zero"], n),
            "top1": NotApplicable("accuracy is stated for classes of images; a language model has the cross-entropy"),
        }
        item = str(prepared.facts["item"])
        if item == "image":
            scores["top1"] = Score(losses.mean("right"), n)
        return Scored(scores, self._items(item, losses, prepared))

    def _items(self, item: str, losses: _Losses, prepared: Prepared) -> dict[str, list[Any]]:
        """Return a row for each item that has positions: its mean losses in nats."""
        there = losses.positions > 0
        positions = losses.positions[there]
        columns = {"ce_sae": losses.ce, "kl_sae": losses.kl}
        columns |= {name: prepared.tensors[name] for name in _CLEAN}
        means = {name: (sums[there] / positions).tolist() for name, sums in columns.items()}
        return {item: there.nonzero()[:, 0].tolist(), "positions": positions.to(torch.int64).tolist(), **means}

    def _losses(self, context: MetricContext, patch: Patch, states: Tensor | None) -> _Losses:
        model = context.backbone
        if isinstance(model, VisionModel):
            return _Losses.join(list(self._image_losses(context, model, patch)))
        if isinstance(model, LanguageModel):
            return _Losses.join(list(self._token_losses(context, model, patch, states)))
        raise InputError("loss_recovered needs a language or vision model")

    def _tokens(self, model: LanguageModel) -> Iterator[tuple[int, TokenBatch]]:
        for start in range(0, self.config.sequences, _SEQUENCES_AT_ONCE):
            count = min(_SEQUENCES_AT_ONCE, self.config.sequences - start)
            whole = model.sequences("evaluation", start, count)
            if not len(whole.ids):
                return
            yield start, TokenBatch(*(tensor[:, : self.config.tokens] for tensor in whole))

    def _states(self, context: MetricContext) -> Float[Tensor, "sequences tokens d_in"] | None:
        """Return what a model has at the site, padded to the same length; None if it cannot go on from there."""
        model = context.backbone
        if not isinstance(model, EditableModel):
            return None
        found = []
        for _, tokens in self._tokens(model):
            states = model.states(tokens, context.site).cpu()
            found.append(functional.pad(states, (0, 0, 0, self.config.tokens - states.shape[1])))
        return torch.cat(found)

    def _token_losses(
        self, context: MetricContext, model: LanguageModel, patch: Patch, recorded: Tensor | None
    ) -> Iterator[_Losses]:
        for start, tokens in self._tokens(model):
            used = tokens.kept[:, :-1] & tokens.attention[:, 1:]  # the last position has no next token
            if self.config.replaced == "all":
                tokens = tokens._replace(kept=tokens.attention)
            if recorded is not None and isinstance(model, EditableModel):
                states = recorded[start : start + len(tokens.ids), : tokens.ids.shape[1]].to(context.device)
                clean = model.logits_from(tokens, context.site, states)
                patched = clean
                if patch is not _keep:
                    patched = model.logits_from(tokens, context.site, _changed(states, tokens.kept, patch))
            else:
                clean = model.logits(tokens, context.site, None)
                patched = clean if patch is _keep else model.logits(tokens, context.site, patch)
            yield compare(clean[:, :-1], patched[:, :-1], tokens.ids[:, 1:], used)
            context.progress("loss_recovered", start + len(tokens.ids), self.config.sequences)

    def _image_losses(self, context: MetricContext, model: VisionModel, patch: Patch) -> Iterator[_Losses]:
        total = min(self.config.images, model.image_count("evaluation"))
        labels = model.labels("evaluation")
        for start in range(0, total, _IMAGES_AT_ONCE):
            images = model.images("evaluation", start, min(_IMAGES_AT_ONCE, total - start))
            targets = labels[start : start + len(images)].to(context.device)[:, None]
            clean = model.zero_shot_logits(images, context.site, None)[:, None]
            patched = clean if patch is _keep else model.zero_shot_logits(images, context.site, patch)[:, None]
            yield compare(clean, patched, targets, torch.ones_like(targets, dtype=torch.bool))
            context.progress("loss_recovered", start + len(images), total)


def _changed(states: Tensor, kept: Bool[Tensor, "sequences length"], patch: Patch) -> Tensor:
    if not kept.any():
        return states
    rows = states[kept].to(torch.float32)
    new = patch(rows)
    if new.shape != rows.shape:
        raise PluginError(f"a patch returned {tuple(new.shape)} for activations {tuple(rows.shape)}")
    found = states.clone()
    found[kept] = new.to(found.dtype)
    return found


def _recovered(gain: float, gap: float, n: int, what: str) -> Score | NotApplicable:
    if gap < _SMALLEST_GAP:
        return NotApplicable(f"zero ablation at this site changes {what} by {gap:.2g} nats only: nothing to recover")
    return Score(gain / gap, n)


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=LossRecoveredConfig,
            build=LossRecovered,
            summary="Share of cross-entropy and KL divergence recovered when reconstructions replace activations",
            source="Bricken et al. 2023; SAEBench core evaluation",
        )
    ]
