"""An SAE that learns how many latents each row gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    AuxK,
    Export,
    Objective,
    PreActivations,
    Recipe,
    Reconstruction,
    Rule,
    Selected,
    Selection,
    Shape,
    Step,
    TensorInfo,
    Term,
    WeightedTerm,
    hookimpl,
)


class LearnedKConfig(ArchitectureConfig):
    """Configuration of `LearnedK`."""

    type: Literal["learned_k"] = "learned_k"
    aux_coefficient: NonNegativeFloat = Field(1 / 32, description="Weight of the loss that revives dead latents.")


def largest_of_rows(found: Selected, counts: Int[Tensor, " rows"]) -> Selected:
    """Return the largest entries of every row, as many as it is given."""
    order = found.pre.argsort(descending=True, stable=True)
    order = order[found.selection.rows[order].argsort(stable=True)]
    rows = found.selection.rows[order]
    rank = torch.arange(rows.numel(), device=rows.device) - found.selection.offsets[rows]
    kept = torch.zeros_like(rows, dtype=torch.bool)
    kept[order] = rank < counts[rows]
    return found.where(kept)


@final
@dataclass(frozen=True)
class Budgeted(Rule):
    """A row's latents pay for its budget: ``k(x) = sum_j z_j / price_j`` over the largest ``4 k`` of the row.

    In training the ``k x rows`` largest of a batch are kept, so that rows compete, and `BudgetLoss` learns prices that
    foretell how many each row gets. In inference a row gets its own budget, whatever the other rows are; BatchTopK has
    one threshold for all rows in its place.

    Attributes:
        k: mean number of latents a row.
    """

    k: float

    def tensors(self) -> Mapping[str, TensorInfo]:
        """One ``price`` a latent. It decides what fires, and is on the scale of pre-activations."""
        return {"price": TensorInfo("threshold", ("d_sae",), start=0.3)}

    def pool(self, pre: PreActivations) -> Selected:
        """Return the entries that pay, and that a budget is spent on."""
        return pre.row_topk(min(math.ceil(4 * self.k), pre.d_sae))

    def budgets(self, pool: Selected, price: Float[Tensor, " d_sae"]) -> Float[Tensor, " rows"]:
        """Return every row's budget, with gradients to the prices."""
        paid = torch.relu(pool.pre) / price.index_select(0, pool.selection.cols)
        return paid.new_zeros(pool.selection.n_rows).index_add(0, pool.selection.rows, paid)

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the largest entries of the batch."""
        return pre.batch_topk(round(self.k * pre.n_rows))

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select as many entries of each row as its budget allows."""
        pool = self.pool(pre)
        return largest_of_rows(pool, self.budgets(pool, tensors["price"]).round().long())

    def activate(
        self, pre: Float[Tensor, " entries"], selection: Selection, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, " entries"]:
        """Return the positive part."""
        return torch.relu(pre)

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep prices above zero."""
        tensors["price"].clamp_(min=1e-4)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write under a name of its own: no other library infers so."""
        return Export("learned_k", {"k": self.k}, {"price": tensors["price"]})


@final
@dataclass(frozen=True)
class BudgetLoss(Term):
    """``mean_rows (b - n log b) / k``, with b a row's budget and n the latents that it got in the batch.

    The Poisson likelihood of n. Its gradient reaches the prices alone.

    Attributes:
        rule: whose budgets are learned.
    """

    rule: Budgeted
    name: ClassVar[str] = "budget"

    def loss(self, step: Step) -> Float[Tensor, ""]:
        """Return the negative likelihood of the numbers that rows got."""
        with torch.no_grad():
            encoder, bias = step.tensors["W_enc"], step.tensors[self.rule.encoder_bias]
            pool = self.rule.pool(PreActivations(step.centred, encoder, bias))
        budgets = self.rule.budgets(pool, step.tensors["price"])
        counts = torch.bincount(step.selection.rows, minlength=step.n_rows)
        return (budgets - counts * budgets.clamp(min=1e-6).log()).sum() / (self.rule.k * step.n_rows)


class LearnedK(Architecture):
    """BatchTopK in training, a learned number of latents for each row in inference."""

    def __init__(self, config: LearnedKConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss."""
        rule = Budgeted(shape.l0)
        terms = [WeightedTerm(Reconstruction()), WeightedTerm(BudgetLoss(rule))]
        if self.config.aux_coefficient:
            terms.append(WeightedTerm(AuxK(), self.config.aux_coefficient))
        return Recipe(rule, Objective(tuple(terms)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``learned_k``."""
    return [
        ArchitectureSpec(
            config=LearnedKConfig,
            build=LearnedK,
            summary="BatchTopK that learns how many latents each row gets in inference",
        )
    ]
