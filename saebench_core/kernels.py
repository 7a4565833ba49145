"""Sparse encode and decode: products on the selected entries only, forward and backward.

An SAE step touches ``L0`` of ``d_sae`` latents a row. Selection is made without gradients from one dense
product; everything after it works on the selected entries. Where so many are selected that a dense product
may be cheaper (above `DENSE_SHARE`), the same functions take the dense path: outputs agree, only the cost differs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Codes", "Selection", "decode", "encode_at", "select_above", "select_batch_topk", "select_row_topk"]

DENSE_SHARE = 0.08
"""Share of selected entries above which dense products are taken; a cautious guess, not a tuned bound."""

_SPARSE_DEVICES = frozenset({"cpu", "cuda"})
_GATHER_ELEMENTS = 1 << 18


@dataclass(frozen=True, eq=False)
class Selection:
    """Which latents of which rows are kept: entries sorted by row.

    Attributes:
        rows: row of each entry, non-decreasing, ``(n_entries,)``.
        cols: latent of each entry, ``(n_entries,)``.
        n_rows: number of rows of the batch.
        d_sae: number of latents.
    """

    rows: Int[Tensor, " entries"]
    cols: Int[Tensor, " entries"]
    n_rows: int
    d_sae: int

    @property
    def density(self) -> float:
        """Share of the ``n_rows x d_sae`` entries that are selected."""
        return self.cols.numel() / max(1, self.n_rows * self.d_sae)

    @cached_property
    def bounds(self) -> Int[Tensor, " bounds"]:
        """First entry of each row and the number of all, ``(n_rows + 1,)``."""
        return _bounds(self.rows, self.n_rows)

    @property
    def offsets(self) -> Int[Tensor, " rows"]:
        """First entry of each row, ``(n_rows,)``."""
        return self.bounds[:-1]

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " bounds"]]:
        """Order of the entries sorted by latent, and the bounds of each latent, ``(d_sae + 1,)``."""
        return torch.argsort(self.cols, stable=True), _bounds(self.cols, self.d_sae)

    def fired(self, values: Float[Tensor, " entries"]) -> Bool[Tensor, " d_sae"]:
        """Latents that have a positive value somewhere in the batch."""
        return torch.bincount(self.cols[values > 0], minlength=self.d_sae) > 0

    def transposed_product(
        self, values: Float[Tensor, " entries"], dense: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "d_sae d"]:
        """Return ``S.T @ dense`` where S is ``(n_rows, d_sae)`` with these values at the entries."""
        if self.density > DENSE_SHARE:
            return self.scatter(values).T @ dense
        order, bounds = self.by_latent
        transposed = _csr(bounds, self.rows[order], values[order], (self.d_sae, self.n_rows))
        return transposed @ dense

    def scatter(self, values: Float[Tensor, " entries"]) -> Float[Tensor, "rows d_sae"]:
        """Return the dense ``(n_rows, d_sae)`` matrix with these values and zeros elsewhere."""
        dense = values.new_zeros(self.n_rows, self.d_sae)
        dense[self.rows, self.cols] = values
        return dense


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes of a batch: a selection and the value of each of its entries.

    Attributes:
        selection: which entries are kept.
        values: their values, ``(n_entries,)``; a kept entry may be zero.
    """

    selection: Selection
    values: Float[Tensor, " entries"]

    def to_dense(self) -> Float[Tensor, "rows d_sae"]:
        """Return the codes as a dense ``(n_rows, d_sae)`` matrix."""
        return self.selection.scatter(self.values)

    def l0(self) -> Float[Tensor, " rows"]:
        """Number of entries that are not zero, per row."""
        selection = self.selection
        return torch.bincount(selection.rows[self.values != 0], minlength=selection.n_rows).to(self.values.dtype)


def _bounds(numbers: Tensor, count: int) -> Tensor:
    """Return where each of ``count`` numbers begins in a sorted list, and the list's length."""
    bounds = numbers.new_zeros(count + 1)
    torch.cumsum(torch.bincount(numbers, minlength=count), 0, out=bounds[1:])
    return bounds


@lru_cache(maxsize=1)
def _accept_csr() -> None:
    """Take torch's one-time notice that sparse CSR is in beta, so that users do not see it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        bounds, cols, values = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        torch.sparse_csr_tensor(bounds, cols, values, (1, 1), check_invariants=False)


def _csr(bounds: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    _accept_csr()
    return torch.sparse_csr_tensor(bounds, cols, values, shape, check_invariants=False)


def from_mask(mask: Bool[Tensor, "rows d_sae"]) -> Selection:
    """Return the selection of the true entries."""
    rows, cols = mask.nonzero(as_tuple=True)
    return Selection(rows, cols, mask.shape[0], mask.shape[1])


def select_above(pre: Float[Tensor, "rows d_sae"], threshold: Tensor | float) -> Selection:
    """Select the entries strictly above a threshold, a scalar or one value a latent ``(d_sae,)``."""
    return from_mask(pre > threshold)


def select_row_topk(pre: Float[Tensor, "rows d_sae"], k: int) -> Selection:
    """Select the k largest entries of every row."""
    n_rows, d_sae = pre.shape
    cols = pre.topk(k, dim=1, sorted=False).indices.flatten()
    rows = torch.arange(n_rows, device=pre.device).repeat_interleave(k)
    return Selection(rows, cols, n_rows, d_sae)


def select_batch_topk(pre: Float[Tensor, "rows d_sae"], n_keep: int) -> Selection:
    """Select the ``n_keep`` largest positive entries of the whole batch, fewer if there are fewer.

    A lower bound of the threshold comes from a sample; only entries above it are sorted.
    Ties at the threshold are all kept.
    """
    if n_keep == 0:  # a k below 1/2 on a batch of one row
        return from_mask(torch.zeros_like(pre, dtype=torch.bool))
    floor = _sampled_lower_bound(pre, n_keep)
    candidates = from_mask(pre > floor)
    values = pre[candidates.rows, candidates.cols]
    if values.numel() < n_keep and floor > 0:
        candidates = from_mask(pre > 0)
        values = pre[candidates.rows, candidates.cols]
    if values.numel() <= n_keep:
        return candidates
    threshold = values.topk(n_keep, sorted=False).values.min()
    kept = values >= threshold
    return Selection(candidates.rows[kept], candidates.cols[kept], candidates.n_rows, candidates.d_sae)


def _sampled_lower_bound(pre: Tensor, n_keep: int, sample: int = 1 << 16) -> float:
    """Return a value that the ``n_keep``-th largest entry exceeds with near certainty (0 if unsure)."""
    flat = pre.reshape(-1)
    stride = max(1, flat.numel() // sample)
    picked = flat[::stride]
    expected = n_keep * picked.numel() / flat.numel()
    rank = int(expected + 6 * expected**0.5 + 8)
    if rank >= picked.numel():
        return 0.0
    return max(0.0, float(picked.topk(rank, sorted=False).values.min()))


class _EncodeAt(torch.autograd.Function):
    """Pre-activations at the selected entries; the gradient touches only the latents concerned."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, selection: Selection
    ) -> Tensor:
        ctx.selection = selection
        ctx.save_for_backward(x, centre, weight)
        return pre[selection.rows, selection.cols]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        x, centre, weight = ctx.saved_tensors
        selection: Selection = ctx.selection
        per_latent = grad.new_zeros(selection.d_sae).index_add_(0, selection.cols, grad)
        grad_centre = -(weight @ per_latent) if ctx.needs_input_grad[1] else None
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = selection.transposed_product(grad, x - centre).T
        return None, grad_centre, grad_weight, per_latent if ctx.needs_input_grad[3] else None, None, None


class _Decode(torch.autograd.Function):
    """``codes @ W_dec`` on the selected entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, selection: Selection) -> Tensor:
        ctx.selection = selection
        ctx.save_for_backward(values, weight)
        return _decode(values, weight, selection)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        values, weight = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = _sampled_product(grad, weight, selection)
        if ctx.needs_input_grad[1]:
            grad_weight = selection.transposed_product(values, grad)
        return grad_values, grad_weight, None


def _decode(values: Tensor, weight: Tensor, selection: Selection) -> Tensor:
    if selection.density > DENSE_SHARE:
        return selection.scatter(values) @ weight
    if values.numel() == 0:
        return weight.new_zeros(selection.n_rows, weight.shape[1])
    return torch.nn.functional.embedding_bag(
        selection.cols, weight, selection.offsets, mode="sum", per_sample_weights=values
    )


def _sampled_product(left: Tensor, right: Tensor, selection: Selection) -> Tensor:
    """Return ``(left @ right.T)`` at the selected entries."""
    if selection.density > DENSE_SHARE:
        return (left @ right.T)[selection.rows, selection.cols]
    if left.device.type in _SPARSE_DEVICES:
        zeros = left.new_zeros(selection.cols.numel())
        pattern = _csr(selection.bounds, selection.cols, zeros, (selection.n_rows, selection.d_sae))
        sampled: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0)
        return sampled.values()
    out = left.new_empty(selection.cols.numel())
    step = max(1, _GATHER_ELEMENTS // left.shape[1])  # small enough to stay in a cache
    for start in range(0, out.numel(), step):
        part = slice(start, start + step)
        torch.sum(left[selection.rows[part]] * right[selection.cols[part]], dim=1, out=out[part])
    return out


def encode_at(
    x: Float[Tensor, "rows d_in"],
    centre: Float[Tensor, " d_in"],
    weight: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    pre: Float[Tensor, "rows d_sae"],
    selection: Selection,
) -> Float[Tensor, " entries"]:
    """Return the pre-activations ``(x - centre) @ W_enc + b_enc`` at the selected entries, with gradients.

    Args:
        x: activations; they get no gradient.
        centre: what is subtracted from them; gets a gradient if it wants one.
        weight: encoder ``(d_in, d_sae)``.
        bias: encoder bias.
        pre: the same pre-activations, already computed densely without gradients.
        selection: the entries.
    """
    result: Tensor = _EncodeAt.apply(x, centre, weight, bias, pre, selection)
    return result


def decode(
    values: Float[Tensor, " entries"], weight: Float[Tensor, "d_sae d_in"], selection: Selection
) -> Float[Tensor, "rows d_in"]:
    """Return ``codes @ W_dec`` with gradients to the values and the decoder."""
    result: Tensor = _Decode.apply(values, weight, selection)
    return result
