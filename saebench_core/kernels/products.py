"""Sparse encode and decode: products on the selected entries only, forward and backward.

An SAE step touches ``L0`` of ``d_sae`` latents a row. What is computed here costs as much as there are selected
entries. Where so many are selected that a dense product is cheaper (above `DENSE_SHARE`), the same functions take
the dense path: outputs agree, only the cost differs.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels.selection import Selected, Selection

__all__ = ["decode", "encode_at", "is_dense", "sampled_product", "transposed_product"]

DENSE_SHARE = 0.08
"""Share of selected entries above which dense products are taken; docs/performance.md shows where they cross."""

_SPARSE_DEVICES = frozenset({"cpu", "cuda"})
_GATHER_ELEMENTS = 1 << 18


def is_dense(selection: Selection) -> bool:
    """Say whether so many entries are selected that dense products are taken."""
    return selection.density > DENSE_SHARE


@lru_cache(maxsize=1)
def _accept_csr() -> None:
    """Take torch's one-time notice that sparse CSR is in beta, so that users do not see it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        bounds, cols = (torch.zeros(n, dtype=torch.int64, device="cpu") for n in (2, 0))
        torch.sparse_csr_tensor(bounds, cols, bounds.new_zeros(0), (1, 1), device="cpu", check_invariants=False)


def _csr(bounds: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    _accept_csr()
    return torch.sparse_csr_tensor(bounds, cols, values, shape, device=values.device, check_invariants=False)


def sampled_product(
    left: Float[Tensor, "rows d"], right: Float[Tensor, "d_sae d"], selection: Selection
) -> Float[Tensor, " entries"]:
    """Return ``(left @ right.T)`` at the selected entries, each the product of two vectors.

    Latent by latent: a latent's vector is read once, and the rows of a batch fit a cache.
    """
    if selection.cols.numel() == 0:
        return left.new_empty(0)
    if left.device.type in _SPARSE_DEVICES:
        order, bounds = selection.by_latent
        zeros = left.new_zeros(order.numel())
        pattern = _csr(bounds, selection.rows.index_select(0, order), zeros, (selection.d_sae, selection.n_rows))
        found = torch.sparse.sampled_addmm(pattern, right, left.T, beta=0.0).values()
        return torch.empty_like(found).scatter_(0, order, found)
    out = left.new_empty(selection.cols.numel())
    step = max(1, _GATHER_ELEMENTS // left.shape[1])  # small enough to stay in a cache
    for start in range(0, out.numel(), step):
        part = slice(start, start + step)
        torch.sum(left[selection.rows[part]] * right[selection.cols[part]], dim=1, out=out[part])
    return out


def transposed_product(
    values: Float[Tensor, " entries"], dense: Float[Tensor, "rows d"], selection: Selection
) -> Float[Tensor, "d_sae d"]:
    """Return ``S.T @ dense`` where S is ``(n_rows, d_sae)`` with these values at the entries."""
    if is_dense(selection):
        return selection.scatter(values).T @ dense
    order, bounds = selection.by_latent
    return _bags(selection.rows.index_select(0, order), dense, bounds, values.index_select(0, order))


def _bags(index: Tensor, table: Tensor, bounds: Tensor, values: Tensor) -> Tensor:
    """Return weighted sums of the table's rows, one for each bag."""
    if index.numel() == 0:
        return table.new_zeros(bounds.numel() - 1, table.shape[1])
    return torch.nn.functional.embedding_bag(
        index, table, bounds, mode="sum", per_sample_weights=values, include_last_offset=True
    )


class _EncodeAt(torch.autograd.Function):
    """Pre-activations at the selected entries; the gradient touches only the latents concerned."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, selection: Selection
    ) -> Tensor:
        ctx.selection = selection
        ctx.save_for_backward(x, centre, weight)
        return pre.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        x, centre, weight = ctx.saved_tensors
        selection: Selection = ctx.selection
        per_latent = grad.new_zeros(selection.d_sae).index_add_(0, selection.cols, grad)
        grad_centre = -(weight @ per_latent) if ctx.needs_input_grad[1] else None
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = transposed_product(grad, x - centre, selection).T
        return None, grad_centre, grad_weight, per_latent if ctx.needs_input_grad[3] else None, None, None


class _Decode(torch.autograd.Function):
    """``codes @ W_dec`` on the selected entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, selection: Selection) -> Tensor:
        ctx.selection = selection
        ctx.save_for_backward(values, weight)
        if is_dense(selection):
            return selection.scatter(values) @ weight
        return _bags(selection.cols, weight, selection.bounds, values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        values, weight = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            dense = is_dense(selection)
            grad_values = (
                (grad @ weight.T)[selection.rows, selection.cols]
                if dense
                else sampled_product(grad.contiguous(), weight, selection)
            )
        if ctx.needs_input_grad[1]:
            grad_weight = transposed_product(values, grad.contiguous(), selection)
        return grad_values, grad_weight, None


def encode_at(
    x: Float[Tensor, "rows d_in"],
    centre: Float[Tensor, " d_in"],
    weight: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    selected: Selected,
) -> Float[Tensor, " entries"]:
    """Return the pre-activations ``(x - centre) @ W_enc + b_enc`` at the selected entries, with gradients.

    Args:
        x: activations; they get no gradient.
        centre: what is subtracted from them; gets a gradient if it wants one.
        weight: encoder ``(d_in, d_sae)``.
        bias: encoder bias.
        selected: the entries, with their values as they were computed for the selection.
    """
    result: Tensor = _EncodeAt.apply(x, centre, weight, bias, selected.pre, selected.selection)
    return result


def decode(
    values: Float[Tensor, " entries"], weight: Float[Tensor, "d_sae d_in"], selection: Selection
) -> Float[Tensor, "rows d_in"]:
    """Return ``codes @ W_dec`` with gradients to the values and the decoder."""
    result: Tensor = _Decode.apply(values, weight, selection)
    return result
