"""Which features of a synthetic world fire in which rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array
from torch import Generator, Tensor


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
    whole cost.
    """
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
