"""Orthogonal matching pursuit: the codes that a dictionary allows when no encoder stands in the way."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.kernels.selection import Codes, Selection

__all__ = ["pursue"]

_RIDGE = 1e-7


def pursue(x: Float[Tensor, "rows d_in"], dictionary: Float[Tensor, "d_sae d_in"], k: int) -> Codes:
    """Return codes of ``k`` entries a row, chosen greedily and fitted by least squares after each choice.

    The next atom is the one with the largest absolute cosine with what is left of the row; coefficients may be
    negative. A row that is reconstructed already keeps entries of value zero.

    Args:
        x: rows.
        dictionary: atoms; their norms do not matter to the choice.
        k: entries of a row, at most ``d_sae``.

    Raises:
        InputError: if there are fewer atoms than ``k``.

    Source: Pati et al. 1993; Tropp and Gilbert 2007.
    """
    count, d_sae = x.shape[0], dictionary.shape[0]
    if not 0 < k <= d_sae:
        raise InputError(f"a pursuit chooses between 1 and d_sae {d_sae} atoms, got {k}")
    unit = torch.nn.functional.normalize(dictionary, dim=1)
    chosen = torch.empty((count, 0), dtype=torch.int64, device=x.device)
    residual, values = x, x.new_empty((count, 0))
    for _ in range(k):
        match = (residual @ unit.T).abs_()
        match.scatter_(1, chosen, -1.0)
        chosen = torch.cat([chosen, match.argmax(dim=1, keepdim=True)], dim=1)
        atoms = unit[chosen]
        values = _fitted(atoms, x)
        residual = x - torch.einsum("rk,rkd->rd", values, atoms)
    order = chosen.argsort(dim=1)
    cols, values = chosen.gather(1, order), values.gather(1, order)
    norms = dictionary.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    rows = torch.arange(count, device=x.device).repeat_interleave(k)
    return Codes(Selection(rows, cols.flatten(), count, d_sae), (values / norms[cols]).flatten())


def _fitted(atoms: Float[Tensor, "rows k d_in"], x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows k"]:
    """Return the least-squares coefficients of each row on its own atoms."""
    wide = atoms.double()
    gram = wide @ wide.mT
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)  # atoms that are equal, or zero
    wanted = torch.einsum("rkd,rd->rk", wide, x.double())
    return torch.cholesky_solve(wanted[..., None], torch.linalg.cholesky(gram))[..., 0].to(x.dtype)
