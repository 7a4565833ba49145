"""Errors of reconstructions: of all latents, of prefixes, of the gates alone, of dead latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection, decode, encode_at, fast_screen
from saebench_core.kernels.lists import order
from saebench_core.kernels.products import DENSE_SHARE
from saebench_core.objectives.base import Step, Term

__all__ = ["AuxK", "GateReconstruction", "PrefixReconstruction", "Reconstruction"]

_CHUNK_ENTRIES: Final = 1 << 20


@final
@dataclass(frozen=True)
class Reconstruction(Term):
    """``mean_rows ||x - x_hat||^2``."""

    name: ClassVar[str] = "reconstruction"
    by_row: ClassVar[bool] = True

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row."""
        return step.residual.square().sum() / step.n_rows


@final
@dataclass(frozen=True)
class PrefixReconstruction(Term):
    """``mean_rows (1/g) sum_i ||x - x_hat_i||^2``, where x_hat_i is decoded from the first i groups of latents.

    Attributes:
        sizes: latents in each of the g groups, in the order of latents; together ``d_sae``.
    """

    name: ClassVar[str] = "prefix_reconstruction"
    by_row: ClassVar[bool] = True
    sizes: tuple[int, ...] = ()

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row, averaged over prefixes; each entry is decoded once."""
        found, groups, rows = step.selection, len(self.sizes), step.n_rows
        ends = torch.tensor(self.sizes, device=found.cols.device).cumsum(0)
        # a batch of g times as many rows, in which row (group, row) has the entries of that group alone
        at = torch.bucketize(found.cols, ends, right=True) * rows + found.rows
        by_group = order(at, groups * rows)
        place, cols = at.index_select(0, by_group), found.cols.index_select(0, by_group)
        parted = Selection(place, cols, groups * rows, found.d_sae)
        parts = decode(step.values.index_select(0, by_group), step.tensors["W_dec"], parted).view(groups, rows, -1)
        errors = (step.target - step.tensors["b_dec"]) - parts.cumsum(0)
        return errors.square().sum() / (groups * rows)


@final
@dataclass(frozen=True)
class GateReconstruction(Term):
    """``mean_rows ||x - (relu(gate) W_dec + b_dec)||^2``, without gradients to ``W_dec`` and ``b_dec``.

    What trains the gates of a gated SAE, whose values give them no gradient.
    """

    name: ClassVar[str] = "gate_reconstruction"
    by_row: ClassVar[bool] = True

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row."""
        back = decode(torch.relu(step.pre), step.tensors["W_dec"].detach(), step.selection)
        return (step.target - step.tensors["b_dec"].detach() - back).square().sum() / step.n_rows


@final
@dataclass(frozen=True)
class AuxK(Term):
    """Dead latents reconstruct the residual: ``||e - e_hat||^2 / var(e)`` (dictionary_learning's form).

    The k largest positive pre-activations among dead latents are decoded without ``b_dec``.

    Attributes:
        k: dead latents that a row takes, from 1 on; None: half of ``d_in``.

    Raises:
        ValueError: if k is below 1.
    """

    k: int | None = None

    name: ClassVar[str] = "aux_k"

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k is {self.k}; it must be 1 or more")

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
        k = min(max(1, residual.shape[1] // 2) if self.k is None else self.k, dead.numel())
        error = _dense_error if k > DENSE_SHARE * dead.numel() else _sparse_error
        return error(step, residual, dead, k) / step.n_rows / spread


def _sparse_error(step: Step, residual: Tensor, dead: Tensor, k: int) -> Tensor:
    """Return the squared error of the k largest positive latents of every row, products on selected entries only."""
    x, tensors = step.centred, step.tensors
    encoder, bias = tensors["W_enc"], tensors[step.rule.encoder_bias]
    with torch.no_grad():
        part, shift = encoder.T.index_select(0, dead).T, bias.index_select(0, dead)
        among, pre = PreActivations(x, part, shift, fast_screen(x.device.type)).row_topk(k)
        among = Selection(among.rows, dead.index_select(0, among.cols), among.n_rows, encoder.shape[1])
        found = Selected(among, pre).where(pre > 0)
    at = encode_at(x, torch.zeros_like(x[0]), encoder, bias, found)
    return (residual - decode(at, tensors["W_dec"], found.selection)).square().sum()


def _dense_error(step: Step, residual: Tensor, dead: Tensor, k: int) -> Tensor:
    """Return the same by dense products, some rows at a time."""
    tensors = step.tensors
    encoder = tensors["W_enc"].T.index_select(0, dead)
    bias = tensors[step.rule.encoder_bias].index_select(0, dead)
    decoder = tensors["W_dec"].index_select(0, dead)
    error: Tensor = _DenseError.apply(step.centred, residual, encoder, bias, decoder, k)
    return error


class _DenseError(torch.autograd.Function):
    """The squared error by dense products, with its gradients made on the way: nothing dense outlives a few rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, encoder: Tensor, bias: Tensor, decoder: Tensor, k: int
    ) -> Tensor:
        total = residual.new_zeros(())
        to_encoder, to_bias, to_decoder = (torch.zeros_like(tensor) for tensor in (encoder, bias, decoder))
        size = max(1, _CHUNK_ENTRIES // encoder.shape[0])
        for rows, wanted in zip(torch.split(x, size), torch.split(residual, size), strict=True):
            codes = _largest_positive(torch.addmm(bias, rows, encoder.T), k)
            error = torch.addmm(wanted, codes, decoder, alpha=-1)
            total += error.square().sum()
            error.mul_(-2)
            if ctx.needs_input_grad[4]:
                to_decoder.addmm_(codes.T, error)
            if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
                slope = (error @ decoder.T).mul_(codes > 0)
                to_encoder.addmm_(slope.T, rows)
                to_bias += slope.sum(0)
        ctx.save_for_backward(to_encoder, to_bias, to_decoder)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        made = zip(ctx.saved_tensors, ctx.needs_input_grad[2:5], strict=True)
        return None, None, *(grad * tensor if wanted else None for tensor, wanted in made), None


def _largest_positive(pre: Tensor, k: int) -> Tensor:
    """Keep the k largest positive entries of every row, in place, and set the others to zero."""
    pre.relu_()
    if int((pre > 0).sum(1).max()) > k:
        least = pre.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
        pre.mul_(pre >= least)
    return pre
