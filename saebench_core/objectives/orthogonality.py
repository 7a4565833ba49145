"""A penalty on decoder directions that lie close together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, final

import torch
from torch import Tensor

from saebench_core.objectives.base import Step, Term
from saebench_core.randomness import named_generator
from saebench_core.rules import Role

__all__ = ["Orthogonality"]

_BLOCK: Final = 1 << 22
"""Cosines that are held at a time."""


@final
@dataclass(frozen=True)
class Orthogonality(Term):
    """``mean_j max_{i != j} cos(d_i, d_j)^2`` within random chunks of latents (after Korznikov et al. 2025).

    The chunks are drawn anew for every step from its number, so that the cost is linear in ``d_sae``.

    Attributes:
        chunk: most latents in a chunk.
        every: the term is zero but for every so-many-th step.
        reduce: over the other latents of a chunk: ``max``, or ``mean_sq``.
        sign: cosines that count: ``positive``, or of both signs by ``abs``.
    """

    name: ClassVar[str] = "orthogonality"
    shapes: ClassVar[frozenset[Role]] = frozenset({"decoder"})
    chunk: int = 8192
    every: int = 1
    reduce: Literal["max", "mean_sq"] = "max"
    sign: Literal["positive", "abs"] = "positive"

    def loss(self, step: Step) -> Tensor:
        """Return the mean over all latents."""
        rows = step.tensors["W_dec"]
        if step.number % self.every or rows.shape[0] == 1:
            return rows.new_zeros(())
        directions = torch.nn.functional.normalize(rows, dim=1)
        total = directions.new_zeros(())
        for chunk in self._chunks(step.number, rows.shape[0], rows.device):
            part = directions if chunk is None else directions.index_select(0, chunk)
            total = total + (self._largest(part) if self.reduce == "max" else _MeanSquare.apply(part, self.sign))
        return total / rows.shape[0]

    def _chunks(self, number: int, d_sae: int, device: torch.device) -> Iterator[Tensor | None]:
        """Yield the latents of each chunk; None for all of them."""
        count = -(-d_sae // self.chunk)
        if count == 1:
            yield None
            return
        order = torch.randperm(d_sae, generator=named_generator("orthogonality", number), device="cpu").to(device)
        yield from order.tensor_split(count)

    def _largest(self, directions: Tensor) -> Tensor:
        """Return the sum of squared cosines with the nearest other latent; only that pair has a gradient."""
        if directions.shape[0] == 1:
            return directions.new_zeros(())
        with torch.no_grad():
            nearest = torch.cat([block.argmax(1) for _, block in _blocks(directions, self.sign, -1.0)])
        cosine = (directions * directions.index_select(0, nearest)).sum(1)
        return (cosine.relu() if self.sign == "positive" else cosine).square().sum()


class _MeanSquare(torch.autograd.Function):
    """``sum_j mean_{i != j} cos(d_i, d_j)^2``, blocks of rows at a time, with its gradient made on the way."""

    @staticmethod
    def forward(ctx: Any, directions: Tensor, sign: Literal["positive", "abs"]) -> Tensor:
        others = max(1, directions.shape[0] - 1)
        total, gradient = directions.new_zeros(()), torch.empty_like(directions)
        for rows, block in _blocks(directions, sign, 0.0, keep_sign=True):
            total += block.square().sum()
            torch.mm(block, directions, out=gradient[rows])
        ctx.save_for_backward(gradient.mul_(4 / others))  # each pair is met twice, each square's slope is two
        return total / others

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None


def _blocks(
    directions: Tensor, sign: Literal["positive", "abs"], itself: float, keep_sign: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Yield cosines with all directions, some rows at a time.

    Args:
        directions: of norm one.
        sign: cosines that count; the negative ones are zero for ``positive``.
        itself: stands in place of a direction's cosine with itself.
        keep_sign: do not take the absolute value for ``abs``.
    """
    size = max(1, _BLOCK // directions.shape[0])
    for first in range(0, directions.shape[0], size):
        rows = slice(first, min(first + size, directions.shape[0]))
        block = directions[rows] @ directions.T
        if sign == "positive":
            block.relu_()
        elif not keep_sign:
            block.abs_()
        block.diagonal(first).fill_(itself)
        yield rows, block
