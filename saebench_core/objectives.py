"""Loss terms: what a training step adds up, and how each term's weight moves.

All losses are sums over ``d_in`` and means over rows, on inputs scaled to unit mean-square norm; coefficients
of libraries that average over ``d_in`` do not transfer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core.kernels import Selection
from saebench_core.rules import Rule

__all__ = ["L1", "AuxK", "Objective", "Reconstruction", "Step", "TargetL0", "Term", "WeightedTerm"]


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss term sees of one training step.

    Attributes:
        x: scaled activations ``(rows, d_in)``.
        centred: what the encoder is applied to, ``x`` minus the centre, without gradients.
        target: what is to be reconstructed, ``(rows, d_in)``; equals ``x`` for an SAE.
        tensors: the SAE's tensors by name.
        rule: its selection rule.
        selection: the entries that the step touches.
        pre: their pre-activations, with gradients, ``(entries,)``.
        values: their values, with gradients, ``(entries,)``.
        reconstruction: ``(rows, d_in)``, with gradients.
        dead: latents that have not fired within the window, ``(d_sae,)``.
        progress: share of the training that has passed, in [0, 1).
    """

    x: Float[Tensor, "rows d_in"]
    centred: Float[Tensor, "rows d_in"]
    target: Float[Tensor, "rows d_in"]
    tensors: Mapping[str, Tensor]
    rule: Rule
    selection: Selection
    pre: Float[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    reconstruction: Float[Tensor, "rows d_in"]
    dead: Bool[Tensor, " d_sae"]
    progress: float = 0.0

    @cached_property
    def residual(self) -> Float[Tensor, "rows d_in"]:
        """Target minus reconstruction, with gradients."""
        return self.target - self.reconstruction

    @property
    def n_rows(self) -> int:
        """Rows in the batch."""
        return self.x.shape[0]


@runtime_checkable
class CountsActive(Protocol):
    """A rule whose number of active entries has a surrogate gradient."""

    def count(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return 1 for every active entry."""


class Term(ABC):
    """One named term of a loss."""

    name: ClassVar[str]
    """Key of the term in training curves, and what constraints drop it by."""

    @abstractmethod
    def loss(self, step: Step) -> Float[Tensor, ""]:
        """Return the term's value for the batch, with gradients."""


@final
@dataclass(frozen=True)
class Reconstruction(Term):
    """``mean_rows ||x - x_hat||^2``."""

    name: ClassVar[str] = "reconstruction"

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row."""
        return step.residual.square().sum() / step.n_rows


@final
@dataclass(frozen=True)
class L1(Term):
    """``mean_rows sum_j z_j ||d_j||``; the norms are one for unit decoders."""

    name: ClassVar[str] = "l1"
    norm_weighted: bool = False

    def loss(self, step: Step) -> Tensor:
        """Return the penalty a row."""
        values = step.values
        if self.norm_weighted:
            values = values * step.tensors["W_dec"].norm(dim=1)[step.selection.cols]
        return values.sum() / step.n_rows


@final
@dataclass(frozen=True)
class TargetL0(Term):
    """``(mean L0 / target - 1)^2`` with the surrogate count (JumpReLU; dictionary_learning's form, full kernel)."""

    name: ClassVar[str] = "target_l0"
    l0: float = 0.0

    def loss(self, step: Step) -> Tensor:
        """Return the squared relative miss."""
        if not isinstance(step.rule, CountsActive):
            raise TypeError(f"target_l0 needs a rule with a surrogate count, not {type(step.rule).__name__}")
        mean_l0 = step.rule.count(step.pre, step.selection, step.tensors).sum() / step.n_rows
        return (mean_l0 / self.l0 - 1).square()


@final
@dataclass(frozen=True)
class AuxK(Term):
    """Dead latents reconstruct the residual: ``||e - e_hat||^2 / var(e)`` (dictionary_learning's form).

    The ``k = d_in / 2`` largest positive pre-activations among dead latents are decoded without ``b_dec``.
    """

    name: ClassVar[str] = "aux_k"

    def loss(self, step: Step) -> Tensor:
        """Return the normalised error of the dead latents' reconstruction, zero where none is dead."""
        dead = step.dead.nonzero(as_tuple=True)[0]
        zero = step.reconstruction.new_zeros(())
        if dead.numel() == 0:
            return zero
        residual = step.residual.detach()
        spread = (residual - residual.mean(0)).square().sum() / step.n_rows
        if float(spread) <= 0:
            return zero
        tensors = step.tensors
        pre = torch.addmm(tensors[step.rule.encoder_bias][dead], step.centred, tensors["W_enc"][:, dead]).relu()
        k = min(residual.shape[1] // 2, dead.numel())
        top = pre.topk(k, dim=1, sorted=False)
        codes = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        error = (residual - codes @ tensors["W_dec"][dead]).square().sum() / step.n_rows
        return error / spread


@final
@dataclass(frozen=True)
class WeightedTerm:
    """A term with its coefficient.

    Attributes:
        term: the term.
        coefficient: its weight.
        schedule: ``constant``, or ``warmup``: multiplied by step / sparsity warm-up steps, at most 1.
        controlled: whether a controller multiplies the weight so that the mean L0 meets ``l0``.
        l0: the controller's target.
    """

    term: Term
    coefficient: float = 1.0
    schedule: Literal["constant", "warmup"] = "constant"
    controlled: bool = False
    l0: float = 0.0


@final
@dataclass(frozen=True)
class Objective:
    """A sum of weighted terms."""

    terms: tuple[WeightedTerm, ...]

    def without(self, name: str) -> Objective:
        """Return the objective with the term of that name left out."""
        return replace(self, terms=tuple(weighted for weighted in self.terms if weighted.term.name != name))

    def controlled(self) -> WeightedTerm | None:
        """Return the term that a controller steers, if there is one."""
        return next((weighted for weighted in self.terms if weighted.controlled), None)

    def loss(self, step: Step, warmup: float, control: float) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the total loss and every term's value before weighting.

        Args:
            step: the batch.
            warmup: share of the sparsity warm-up that has passed, in [0, 1].
            control: the controller's multiplier.
        """
        values: dict[str, Tensor] = {}
        total = step.reconstruction.new_zeros(())
        for weighted in self.terms:
            value = weighted.term.loss(step)
            weight = weighted.coefficient * (warmup if weighted.schedule == "warmup" else 1.0)
            total = total + value * (weight * (control if weighted.controlled else 1.0))
            values[weighted.term.name] = value.detach()
        return total, values
