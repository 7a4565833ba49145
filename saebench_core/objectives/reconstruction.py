"""Errors of reconstructions: of all latents, of prefixes, of the gates alone, of dead latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from saebench_core.kernels import PreActivations, Selection, decode, encode_at, fast_screen
from saebench_core.objectives.base import Step, Term

__all__ = ["AuxK", "GateReconstruction", "PrefixReconstruction", "Reconstruction"]


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
class PrefixReconstruction(Term):
    """``mean_rows (1/g) sum_i ||x - x_hat_i||^2``, where x_hat_i is decoded from the first i groups of latents.

    Attributes:
        sizes: latents in each of the g groups, in the order of latents; together ``d_sae``.
    """

    name: ClassVar[str] = "prefix_reconstruction"
    sizes: tuple[int, ...] = ()

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row, averaged over prefixes; each entry is decoded once."""
        found, groups, rows = step.selection, len(self.sizes), step.n_rows
        ends = torch.tensor(self.sizes, device=found.cols.device).cumsum(0)
        # a batch of g times as many rows, in which row (group, row) has the entries of that group alone
        at = torch.bucketize(found.cols, ends, right=True) * rows + found.rows
        place, order = torch.sort(at, stable=True)
        parted = Selection(place, found.cols[order], groups * rows, found.d_sae)
        parts = decode(step.values[order], step.tensors["W_dec"], parted).view(groups, rows, -1)
        errors = (step.target - step.tensors["b_dec"]) - parts.cumsum(0)
        return errors.square().sum() / (groups * rows)


@final
@dataclass(frozen=True)
class GateReconstruction(Term):
    """``mean_rows ||x - (relu(gate) W_dec + b_dec)||^2``, without gradients to ``W_dec`` and ``b_dec``.

    What trains the gates of a gated SAE, whose values give them no gradient.
    """

    name: ClassVar[str] = "gate_reconstruction"

    def loss(self, step: Step) -> Tensor:
        """Return the squared error a row."""
        back = decode(torch.relu(step.pre), step.tensors["W_dec"].detach(), step.selection)
        return (step.target - step.tensors["b_dec"].detach() - back).square().sum() / step.n_rows


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
        weight = tensors["W_enc"].T.index_select(0, dead).T
        bias = tensors[step.rule.encoder_bias].index_select(0, dead)
        k = min(residual.shape[1] // 2, dead.numel())
        with torch.no_grad():
            screen = fast_screen(step.x.device.type)
            found = PreActivations(step.centred, weight, bias, screen).row_topk(k)
            found = found.where(found.pre > 0)
        at = encode_at(step.centred, torch.zeros_like(step.centred[0]), weight, bias, found)
        back = decode(at, tensors["W_dec"].index_select(0, dead), found.selection)
        return (residual - back).square().sum() / step.n_rows / spread
