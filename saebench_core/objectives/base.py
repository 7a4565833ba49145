"""What a loss term sees, and how terms add up to the loss of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, final

from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core.kernels import Selection
from saebench_core.rules import Role, Rule

__all__ = ["Objective", "Step", "Term", "WeightedTerm"]


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
        number: the step's, counted from 0; what terms draw at random depends on it alone, so that a training that
            goes on where it was draws the same.
        batch_l0: mean number of active latents of the whole batch, where these rows are a part of it; else None.
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
    number: int = 0
    batch_l0: float | None = None

    @cached_property
    def residual(self) -> Float[Tensor, "rows d_in"]:
        """Target minus reconstruction, with gradients."""
        return self.target - self.reconstruction

    @property
    def n_rows(self) -> int:
        """Rows in the batch."""
        return self.x.shape[0]


class Term(ABC):
    """One named term of a loss."""

    name: ClassVar[str]
    """Key of the term in training curves, and what constraints drop it by."""

    shapes: ClassVar[frozenset[Role]] = frozenset()
    """Roles of the only tensors that the term depends on, or none where it depends on the data. A term whose tensors
    a constraint freezes is a constant, and dropped."""

    by_row: ClassVar[bool] = False
    """Whether the value is a mean over rows of what each row has alone, so that a batch may be cut into parts."""

    reads_batch_l0: ClassVar[bool] = False
    """Whether the value of a part depends on the mean L0 of the whole batch, `Step.batch_l0`."""

    @abstractmethod
    def loss(self, step: Step) -> Float[Tensor, ""]:
        """Return the term's value for the batch, with gradients."""


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
        gain: how strongly the controller answers to small misses; above 1 where L0 follows the weight at once.
    """

    term: Term
    coefficient: float = 1.0
    schedule: Literal["constant", "warmup"] = "constant"
    controlled: bool = False
    l0: float = 0.0
    gain: float = 1.0


@final
@dataclass(frozen=True)
class Objective:
    """A sum of weighted terms.

    Attributes:
        terms: what is added up.
        dropped: terms that a constraint has left out, by name, with the reason.
    """

    terms: tuple[WeightedTerm, ...]
    dropped: tuple[tuple[str, str], ...] = ()

    def without(self, name: str, reason: str = "") -> Objective:
        """Return the objective with the term of that name left out.

        Args:
            name: of the term; nothing happens where there is none.
            reason: why; it stands in the certificate.
        """
        kept = tuple(weighted for weighted in self.terms if weighted.term.name != name)
        if len(kept) == len(self.terms):
            return self
        return replace(self, terms=kept, dropped=(*self.dropped, (name, reason)))

    def without_constants(self, frozen: Role, reason: str) -> Objective:
        """Return the objective without the terms that tensors of this role alone decide.

        Args:
            frozen: role whose tensors do not move.
            reason: why; it stands in the certificate.
        """
        found = self
        for weighted in self.terms:
            if weighted.term.shapes == {frozen}:
                found = found.without(weighted.term.name, reason)
        return found

    @property
    def by_row(self) -> bool:
        """Whether a batch may be cut into parts."""
        return all(weighted.term.by_row for weighted in self.terms)

    @property
    def reads_batch_l0(self) -> bool:
        """Whether parts need the mean L0 of the whole batch."""
        return any(weighted.term.reads_batch_l0 for weighted in self.terms)

    def controlled(self) -> WeightedTerm | None:
        """Return the term that a controller steers, if there is one."""
        return next((weighted for weighted in self.terms if weighted.controlled), None)

    def loss(
        self, step: Step, warmup: float = 1.0, multipliers: Mapping[str, float] | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the total loss and every term's value before weighting.

        Args:
            step: the batch.
            warmup: share of the sparsity warm-up that has passed, in [0, 1].
            multipliers: of the weights of terms that are steered, by the term's name.
        """
        values: dict[str, Tensor] = {}
        total = step.reconstruction.new_zeros(())
        for weighted in self.terms:
            name = weighted.term.name
            value = weighted.term.loss(step)
            weight = weighted.coefficient * (warmup if weighted.schedule == "warmup" else 1.0)
            total = total + value * (weight * (multipliers or {}).get(name, 1.0))
            values[name] = value.detach()
        return total, values
