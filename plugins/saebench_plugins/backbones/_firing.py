"""Which features of a synthetic world fire in which rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

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


class Entries(NamedTuple):
    """Places in a block.

    Attributes:
        rows: of the block.
        cols: features.
    """

    rows: Int[Tensor, " entries"]
    cols: Int[Tensor, " entries"]


Mask = Bool[Tensor, " entries"]


class Law(ABC):
    """How features fire beside each other: each as often as its probability says."""

    @abstractmethod
    def of(self, features: Int[Tensor, " some"]) -> Law:
        """Return the law of some of the features."""

    @abstractmethod
    def given(self, causes: Float[Tensor, "rows causes"]) -> Float[Tensor, "n_features rows"]:
        """Return how often features fire where they share these causes; they are independent then."""

    @abstractmethod
    def everywhere(self, rows: int, generator: Generator) -> tuple[Fired, Float[Tensor, "rows causes"]]:
        """Draw all features in new rows, and what they share there."""

    @abstractmethod
    def at(self, causes: Float[Tensor, "rows causes"], entries: Entries, generator: Generator) -> Mask:
        """Draw single features, each in one of the rows that share these causes."""


@final
@dataclass(frozen=True)
class Independence(Law):
    """Features share nothing.

    Attributes:
        probabilities: of the features.
    """

    probabilities: Float[Tensor, " n_features"]

    def of(self, features: Int[Tensor, " some"]) -> Independence:
        """Return the probabilities of some of the features."""
        return Independence(self.probabilities[features])

    def given(self, causes: Float[Tensor, "rows causes"]) -> Float[Tensor, "n_features rows"]:
        """Return the probabilities."""
        return self.probabilities[:, None].expand(-1, causes.shape[0])

    def everywhere(self, rows: int, generator: Generator) -> tuple[Fired, Float[Tensor, "rows causes"]]:
        """Draw only what fires."""
        return fire_independently(self.probabilities, rows, generator), torch.empty(rows, 0, device="cpu")

    def at(self, causes: Float[Tensor, "rows causes"], entries: Entries, generator: Generator) -> Mask:
        """Throw a coin for each."""
        uniform = torch.rand(entries.cols.shape, generator=generator, dtype=torch.float64, device="cpu")
        return uniform < self.probabilities[entries.cols]


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
    count, numbers = probabilities.numel(), often.nonzero()[:, 0]
    uniform = torch.rand(rows, numbers.numel(), generator=generator, dtype=torch.float64, device="cpu")
    row, which = np.divmod(np.flatnonzero(uniform < probabilities[numbers]), numbers.numel())
    keys = np.repeat(np.arange(rows) * count, rare.bounds.diff()) + rare.cols.numpy()
    keys = np.concatenate([keys, row * count + numbers.numpy()[which]])
    keys.sort(kind="stable")  # two lists in order, which it sees and joins
    return Fired(torch.from_numpy(np.searchsorted(keys, np.arange(rows + 1) * count)), torch.from_numpy(keys % count))
