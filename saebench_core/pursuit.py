"""Orthogonal matching pursuit: the codes that a dictionary allows when no encoder stands in the way."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.kernels.selection import Codes, Selection

__all__ = ["pursue"]

_RIDGE = 1e-7
_DEPENDENT = 1e-5
"""Length below which what an atom adds to those before it is rounding."""
_REST = 1e-6
"""Share of a row's norm below which what is left of it is rounding."""
_PART_ENTRIES = 1 << 21


def pursue(x: Float[Tensor, "rows d_in"], dictionary: Float[Tensor, "d_sae d_in"], k: int) -> Codes:
    """Return codes of ``k`` entries a row, chosen greedily and fitted by least squares after each choice.

    The next atom is the one with the largest absolute cosine with what is left of the row; coefficients may be
    negative. A row that is reconstructed to rounding before it has them all keeps entries of value zero.

    Args:
        x: rows.
        dictionary: atoms; their norms do not matter to the choice.
        k: entries of a row, at most ``d_sae``.

    Raises:
        InputError: if there are fewer atoms than ``k``.

    Source: Pati et al. 1993; Tropp and Gilbert 2007.
    """
    d_sae = dictionary.shape[0]
    if not 0 < k <= d_sae:
        raise InputError(f"a pursuit chooses between 1 and d_sae {d_sae} atoms, got {k}")
    unit = torch.nn.functional.normalize(dictionary, dim=1)
    cut = max(1, _PART_ENTRIES // d_sae)
    taken, needed = (
        torch.cat(part) for part in zip(*(_chosen(part, unit, k) for part in torch.split(x, cut)), strict=True)
    )
    chosen, order = taken.sort(dim=1)
    atoms = zip(torch.split(chosen, cut), torch.split(needed.gather(1, order), cut), torch.split(x, cut), strict=True)
    values = torch.cat([_fitted(unit[own] * used[..., None], part) for own, used, part in atoms])
    norms = dictionary.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    rows = torch.arange(x.shape[0], device=x.device).repeat_interleave(k)
    return Codes(Selection(rows, chosen.flatten(), x.shape[0], d_sae), (values / norms[chosen]).flatten())


def _chosen(
    x: Float[Tensor, "rows d_in"], unit: Float[Tensor, "d_sae d_in"], k: int
) -> tuple[Int[Tensor, "rows k"], Bool[Tensor, "rows k"]]:
    """Return the atoms of each row in the order in which they are taken, and whether anything was left to explain then.

    What is left of a row is kept orthogonal to its atoms by an orthonormal basis that grows with them; that is the
    least-squares residual, without a system of equations to solve in every round.
    """
    chosen = torch.empty((x.shape[0], k), dtype=torch.int64, device=x.device)
    basis = x.new_zeros((x.shape[0], k, x.shape[1]))
    residual, match = x.clone(), x.new_empty((x.shape[0], unit.shape[0]))
    needed = torch.empty_like(chosen, dtype=torch.bool)
    least = _REST * x.norm(dim=1)
    for taken in range(k):
        needed[:, taken] = residual.norm(dim=1) > least
        torch.mm(residual, unit.T, out=match).abs_()
        match.scatter_(1, chosen[:, :taken], -1.0)
        chosen[:, taken] = match.argmax(dim=1)
        atom, known = unit[chosen[:, taken]], basis[:, :taken]
        for _ in range(2):  # once loses the orthogonality of atoms that lie close together
            atom = atom - torch.einsum("rkd,rk->rd", known, torch.einsum("rkd,rd->rk", known, atom))
        length = atom.norm(dim=1, keepdim=True)
        basis[:, taken] = torch.where(length > _DEPENDENT, atom / length, 0.0)
        residual -= (basis[:, taken] * residual).sum(dim=1, keepdim=True) * basis[:, taken]
    return chosen, needed


def _fitted(atoms: Float[Tensor, "rows k d_in"], x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows k"]:
    """Return the least-squares coefficients of each row on its own atoms."""
    wide = atoms.double()
    gram = wide @ wide.mT
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)  # atoms that are equal, or zero
    wanted = torch.einsum("rkd,rd->rk", wide, x.double())
    return torch.cholesky_solve(wanted[..., None], torch.linalg.cholesky(gram))[..., 0].to(x.dtype)
