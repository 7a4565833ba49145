"""Penalties that make codes sparse: on values, on their number, on how far latents are from firing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels import Selection
from saebench_core.objectives.base import Step, Term

__all__ = ["L1", "CountsActive", "PowerPenalty", "PreActivationLoss", "StepL0", "TanhPenalty", "TargetL0"]

_CHUNK_ENTRIES: Final = 1 << 22


@runtime_checkable
class CountsActive(Protocol):
    """A rule whose number of active entries has a surrogate gradient."""

    def count(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return 1 for every active entry."""


def _mean_l0(step: Step, name: str) -> Tensor:
    """Return the mean number of active latents, with the rule's surrogate gradient."""
    if not isinstance(step.rule, CountsActive):
        raise TypeError(f"{name} needs a rule with a surrogate count, not {type(step.rule).__name__}")
    mean: Tensor = step.rule.count(step.pre, step.selection, step.tensors).sum() / step.n_rows
    return mean


def _times_norms(values: Tensor, step: Step) -> Tensor:
    """Return each entry's value times the norm of its latent's decoder row."""
    norms: Tensor = step.tensors["W_dec"].norm(dim=1)
    return values * norms.index_select(0, step.selection.cols)


@final
@dataclass(frozen=True)
class L1(Term):
    """``mean_rows sum_j z_j ||d_j||``; the norms are one for unit decoders.

    Attributes:
        norm_weighted: whether the decoder's norms count (Anthropic, April 2024).
        of: what is summed: ``values``, or the positive ``pre``-activations that select (a gated SAE's gate).
    """

    name: ClassVar[str] = "l1"
    by_row: ClassVar[bool] = True
    norm_weighted: bool = False
    of: Literal["values", "pre"] = "values"

    def loss(self, step: Step) -> Tensor:
        """Return the penalty a row."""
        values = step.values if self.of == "values" else torch.relu(step.pre)
        return (_times_norms(values, step) if self.norm_weighted else values).sum() / step.n_rows


@final
@dataclass(frozen=True)
class TargetL0(Term):
    """``(mean L0 / target - 1)^2`` with the surrogate count (dictionary_learning's form of JumpReLU)."""

    name: ClassVar[str] = "target_l0"
    by_row: ClassVar[bool] = True
    reads_batch_l0: ClassVar[bool] = True
    l0: float = 0.0

    def loss(self, step: Step) -> Tensor:
        """Return the squared relative miss; of a part, what adds up to it over all parts, with the same gradient.

        Raises:
            TypeError: if the rule has no surrogate count.
        """
        share = _mean_l0(step, self.name) / self.l0
        if step.batch_l0 is None:
            return (share - 1).square()
        whole = step.batch_l0 / self.l0
        return 2 * (whole - 1) * share + 1 - whole * whole


@final
@dataclass(frozen=True)
class StepL0(Term):
    """``mean_rows sum_j [pre_j > theta_j]`` with the surrogate count (Rajamanoharan et al. 2024)."""

    name: ClassVar[str] = "step_l0"
    by_row: ClassVar[bool] = True

    def loss(self, step: Step) -> Tensor:
        """Return the mean L0.

        Raises:
            TypeError: if the rule has no surrogate count.
        """
        return _mean_l0(step, self.name)


@final
@dataclass(frozen=True)
class TanhPenalty(Term):
    """``mean_rows sum_j tanh(c z_j ||d_j||)`` (Anthropic, January 2025): counts latents that are clearly active."""

    name: ClassVar[str] = "tanh"
    by_row: ClassVar[bool] = True
    scale: float = 4.0

    def loss(self, step: Step) -> Tensor:
        """Return the penalty a row."""
        return torch.tanh(self.scale * _times_norms(step.values, step)).sum() / step.n_rows


@final
@dataclass(frozen=True)
class PowerPenalty(Term):
    """``mean_rows sum_j (z_j + eps)^p - eps^p``, p falling in steps from 1 to its end (Karvonen et al. 2024).

    Without eps the gradient at zero would be infinite for every p below 1.

    Attributes:
        end: the last p.
        changes: how often p changes, by equal amounts.
        first: share of the training at the first change.
        last: share of the training at the last one.
        eps: added to the values.
    """

    name: ClassVar[str] = "power"
    by_row: ClassVar[bool] = True
    end: float = 0.2
    changes: int = 10
    first: float = 0.05
    last: float = 0.8
    eps: float = 1e-3

    def stage(self, progress: float) -> int:
        """Return how many changes have passed."""
        if progress < self.first:
            return 0
        if self.changes == 1 or self.first == self.last:
            return self.changes
        spacing = (self.last - self.first) / (self.changes - 1)
        return min(self.changes, 1 + int((progress - self.first) / spacing + 1e-9))

    def exponent(self, stage: int) -> float:
        """Return p after so many changes."""
        return 1 + (self.end - 1) * stage / self.changes

    def at(self, step: Step, stage: int) -> Float[Tensor, ""]:
        """Return the penalty with the exponent of a stage."""
        p = self.exponent(stage)
        return ((step.values + self.eps).pow(p) - math.pow(self.eps, p)).sum() / step.n_rows

    def loss(self, step: Step) -> Tensor:
        """Return the penalty a row."""
        return self.at(step, self.stage(step.progress))


@final
@dataclass(frozen=True)
class PreActivationLoss(Term):
    """``mean_rows sum_j relu(theta_j - pre_j) ||d_j||``: draws silent latents towards firing (Anthropic, January 2025).

    Attributes:
        latents: ``all``, or those that are ``dead`` (SAELens).
    """

    name: ClassVar[str] = "pre_activation"
    by_row: ClassVar[bool] = True
    latents: Literal["all", "dead"] = "all"

    def loss(self, step: Step) -> Tensor:
        """Return the penalty a row.

        Raises:
            TypeError: if the rule has no threshold for each latent.
        """
        tensors, bias = step.tensors, step.tensors[step.rule.encoder_bias]
        threshold = tensors.get("threshold")
        if threshold is None or threshold.ndim != 1:
            raise TypeError(f"{self.name} needs a rule with a threshold a latent, not {type(step.rule).__name__}")
        norms, encoder = tensors["W_dec"].norm(dim=1), tensors["W_enc"].T
        if self.latents == "dead":
            dead = step.dead.nonzero(as_tuple=True)[0]
            encoder, bias, threshold, norms = (part.index_select(0, dead) for part in (encoder, bias, threshold, norms))
        shortfall: Tensor = _Shortfall.apply(step.centred, encoder, threshold - bias)
        return torch.dot(shortfall, norms) / step.n_rows


class _Shortfall(torch.autograd.Function):
    """``sum_rows relu(level_j - <x, e_j>)`` for every latent; nothing dense outlives a few rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, level: Tensor) -> Tensor:
        total, below = torch.zeros_like(level), torch.zeros_like(level)
        towards = torch.zeros_like(encoder)
        for rows in torch.split(x, max(1, _CHUNK_ENTRIES // max(1, encoder.shape[0]))):
            short = torch.addmm(level, rows, encoder.T, alpha=-1).relu_()
            total += short.sum(0)
            inside = (short > 0).to(short.dtype)
            below += inside.sum(0)
            towards.addmm_(inside.T, rows)
        ctx.save_for_backward(towards, below)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        towards, below = ctx.saved_tensors
        return None, -grad[:, None] * towards, grad * below
