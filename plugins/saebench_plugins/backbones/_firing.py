"""Which features of a synthetic world fire in which rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array
from torch import Generator, Tensor

_OFTEN = 0.5


class Fired(NamedTuple):
    """Active entries of a block, row by row.

    Attributes:
        bounds: where each row's entries begin, and where the last end.
        cols: their features, ascending in a row.
    """

    bounds: Int[Tensor, " bounds"]
    cols: Int[Tensor, " entries"]


def fire_independently(probabilities: Float[Tensor, " n_features"], rows: int, generator: Generator) -> Fired:
    """Draw every feature in every row on its own.

    A Bernoulli(p) is a Poisson(-log(1 - p)) that is not zero, so the active entries are the distinct places of a
    Poisson number of points: exact, and the work grows with the number of active entries only. Points are drawn feature
    by feature; as a sparse matrix by columns they come into rows in linear time, where sorting them was half of the
    whole cost. Features that fire in more than half of the rows would need many points a row; each has a number of its
    own for every row.
    """
    often = probabilities > _OFTEN
    if bool(often.any()):
        return _merged(_rare(probabilities.where(~often, 0.0), rows, generator), probabilities, often, rows, generator)
    return _rare(probabilities, rows, generator)


def _rare(probabilities: Float[Tensor, " n_features"], rows: int, generator: Generator) -> Fired:
    rates = -torch.log1p(-probabilities) * rows
    points = torch.poisson(rates, generator=generator).numpy().astype(np.int32)
    ends = np.zeros(points.size + 1, dtype=np.int32)
    np.cumsum(points, out=ends[1:])
    row = torch.randint(rows, (int(ends[-1]),), generator=generator, device="cpu").numpy().astype(np.int32)
    by_row = csc_array((np.ones(row.size, np.int8), row, ends), shape=(rows, points.size)).tocsr()
    cols, starts = by_row.indices, by_row.indptr
    repeated = np.zeros(cols.size, dtype=bool)
    np.equal(cols[1:], cols[:-1], out=repeated[1:])
    repeated[starts[:-1][starts[:-1] < cols.size]] = False  # the first of a row follows another row's last
    bounds = starts - np.concatenate([[0], repeated.cumsum()])[starts]
    return Fired(torch.from_numpy(bounds.astype(np.int64)), torch.from_numpy(cols[~repeated]).long())


def _merged(
    rare: Fired,
    probabilities: Float[Tensor, " n_features"],
    often: Bool[Tensor, " n_features"],
    rows: int,
    generator: Generator,
) -> Fired:
    """Add the features that fire often to those that do not, rows and features ascending."""
    numbers = often.nonzero()[:, 0]
    uniform = torch.rand(rows, numbers.numel(), generator=generator, dtype=torch.float64, device="cpu")
    at, which = (uniform < probabilities[numbers]).nonzero(as_tuple=True)
    row = torch.cat([torch.arange(rows, device="cpu").repeat_interleave(rare.bounds.diff()), at])
    col = torch.cat([rare.cols, numbers[which]])
    order = (row * probabilities.numel() + col).argsort()
    counts = torch.bincount(row, minlength=rows)
    return Fired(torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), counts.cumsum(0)]), col[order])
