"""Blocks of rows of a synthetic world: which features fire in which rows, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from saebench_plugins.backbones._firing import Entries, Law
from saebench_plugins.backbones._hierarchy import Forest
from saebench_plugins.backbones._magnitudes import Magnitudes

_LEAST, _MOST, _PRODUCT = 512, 2048, 1 << 20
"""Fewest and most draws of causes over which frequencies are means, and their number times that of features."""
_AT_ONCE = 128
_EDGE = 1e-9
BLOCK = 4096
"""Rows of a block: drawn together from one generator, so that rows do not depend on how they are cut."""


class Block(NamedTuple):
    """Active entries of a block, row by row.

    Attributes:
        bounds: where each row's entries begin, and where the last end.
        cols: their features, ascending in a row.
        values: their magnitudes.
    """

    bounds: Int[Tensor, " bounds"]
    cols: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]


class _Active(NamedTuple):
    rows: Int[Tensor, " entries"]
    cols: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]

    def at(self, which: Tensor) -> _Active:
        return _Active(self.rows[which], self.cols[which], self.values[which])


@final
@dataclass(frozen=True, eq=False)
class Drawing:
    """How blocks are drawn.

    Attributes:
        probabilities: of features, where their parents fire.
        law: how features fire beside each other, as often as that.
        magnitudes: how strongly they do.
        forest: which features need which.
    """

    probabilities: Float[Tensor, " n_features"]
    law: Law
    magnitudes: Magnitudes
    forest: Forest | None

    @cached_property
    def _law_above(self) -> Law:
        """The law of what needs no parent."""
        return self.law if self.forest is None else self.law.of(self.forest.without_parent)

    def rates(self, causes: int, seed: int) -> Float[Tensor, " n_features"]:
        """Return how often features fire.

        Where a parent and its children share causes, they fire together more often than their probabilities say: the
        mean, over causes that are spread evenly, of what holds given them.

        Args:
            causes: how many the features share.
            seed: of where they lie.
        """
        positive = torch.as_tensor(self.magnitudes.positive(), dtype=torch.float64, device="cpu")
        drawn = self.probabilities * positive
        if self.forest is None:
            return drawn
        if causes == 0:
            return self.forest.marginals(drawn)
        total = torch.zeros_like(drawn)
        draws = min(_MOST, max(_LEAST, _PRODUCT // drawn.numel()))
        for part in torch.split(_spread(draws, causes, seed), _AT_ONCE):
            given = self.law.given(part) * positive.expand(drawn.shape)[:, None]
            total += self.forest.marginals(given).sum(dim=1)
        return torch.where(self.forest.parents < 0, drawn, total / draws)

    def block(self, generator: Generator) -> Block:
        """Draw a block: what needs no parent, then, level by level, children of what fires."""
        fired, causes = self._law_above.everywhere(BLOCK, generator)
        cols = fired.cols if self.forest is None else self.forest.without_parent[fired.cols]
        block = self._strong(Block(fired.bounds, cols, _normal(cols, generator)))
        if self.forest is None:
            return block
        rows = torch.arange(BLOCK, device="cpu").repeat_interleave(block.bounds.diff())
        levels = [_Active(rows, block.cols, block.values)]
        above = levels[0].at(block.cols < self.forest.levels[0][1])
        for level in range(1, len(self.forest.levels)):
            above = self._children(self.forest, level, above, causes, generator)
            levels.append(above)
        return _joined(levels, self.probabilities.numel())

    def _strong(self, drawn: Block) -> Block:
        """Turn standard normal values into magnitudes; entries that come out as zero are left out."""
        values = self.magnitudes.of(drawn.cols, drawn.values)
        fires = values > 0
        if bool(fires.all()):
            return drawn._replace(values=values)
        which = fires.nonzero()[:, 0]
        return Block(torch.searchsorted(which, drawn.bounds), drawn.cols[which], values[which])

    def _children(
        self, forest: Forest, level: int, above: _Active, causes: Float[Tensor, "rows causes"], generator: Generator
    ) -> _Active:
        """Draw the children of entries; of exclusive ones that fire together any stays."""
        cols = forest.children(level, above.cols)
        rows = above.rows[:, None].expand(cols.shape)
        fires = self.law.at(causes, Entries(rows.flatten(), cols.flatten()), generator).view(cols.shape)
        values = self.magnitudes.of(cols, _normal(cols, generator))
        fires &= values > 0
        lot = torch.rand(cols.shape, generator=generator, dtype=torch.float64, device="cpu").where(fires, -1.0)
        fires &= ~forest.exclusive[above.cols, None] | (lot == lot.amax(dim=1, keepdim=True))
        if forest.scale_by_parent:
            values = values * (above.values / self.magnitudes.means(above.cols))[:, None]
        return _Active(rows[fires], cols[fires], values[fires])


def _spread(draws: int, causes: int, seed: int) -> Float[Tensor, "draws causes"]:
    """Return standard normal vectors: by Sobol's sequence, five times as exact as random ones, where it goes so far."""
    if causes > torch.quasirandom.SobolEngine.MAXDIM:
        return torch.randn(draws, causes, generator=Generator("cpu").manual_seed(seed), device="cpu")
    engine = torch.quasirandom.SobolEngine(causes, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    uniform = engine.draw(draws, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(uniform.clamp(_EDGE, 1 - _EDGE))
    return normal.float()


def _normal(like: Tensor, generator: Generator) -> Float[Tensor, "*entries"]:
    return torch.randn(like.shape, generator=generator, device="cpu")


def _joined(parts: list[_Active], count: int) -> Block:
    """Return entries of all levels, rows and features ascending."""
    rows, cols, values = (torch.cat(column) for column in zip(*parts, strict=True))
    order = (rows * count + cols).argsort()
    bounds = torch.zeros(BLOCK + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(torch.bincount(rows, minlength=BLOCK), 0, out=bounds[1:])
    return Block(bounds, cols[order], values[order])
