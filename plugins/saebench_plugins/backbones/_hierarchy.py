"""Features that fire only where a parent does, and siblings of which at most one fires."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Generator, Tensor

from saebench_core import InputError, Model

_CERTAIN = 1 - 1e-9


class Hierarchy(Model):
    """A forest of equal trees; its nodes are the first features, level by level (SynthSAEBench).

    A child cannot fire more often than its parent, nor can exclusive siblings together: give frequencies that fall with
    the number of the feature (`zipf`, `linear`). With many rivals, and without `compensate`, features fire less often
    than their probability says; `Synthetic.probabilities` tells how often they do.
    """

    roots: PositiveInt = Field(128, description="Number of trees.")
    branching: int = Field(4, ge=2, description="Children of a node.")
    depth: PositiveInt = Field(3, description="Levels below a root.")
    exclusive: float = Field(1.0, ge=0, le=1, description="Share of parents of whose children at most one fires.")
    compensate: bool = Field(True, description="Raise children's probabilities against what parents and rivals take.")
    scale_by_parent: bool = Field(True, description="Multiply children by their parent's value over its mean.")

    @property
    def size(self) -> int:
        """Number of features in the trees."""
        tree: int = (self.branching ** (self.depth + 1) - 1) // (self.branching - 1)
        return self.roots * tree

    def levels(self) -> tuple[tuple[int, int], ...]:
        """Return the first feature of each level, and the one after its last."""
        found = [(0, self.roots)]
        for _ in range(self.depth):
            first, last = found[-1]
            found.append((last, last + (last - first) * self.branching))
        return tuple(found)

    def parents(self, count: int) -> Int[Tensor, " n_features"]:
        """Return each of ``count`` features' parent, -1 for those that have none."""
        above = torch.full((count,), -1, dtype=torch.int64, device="cpu")
        for (first, last), (start, end) in pairwise(self.levels()):
            above[start:end] = torch.arange(first, last, device="cpu").repeat_interleave(self.branching)
        return above

    def grow(self, count: int, generator: Generator) -> Forest:
        """Return the forest among ``count`` features; which parents are exclusive is drawn."""
        inner = self.levels()[-1][0]
        chosen = torch.randperm(inner, generator=generator, device="cpu")[: int(inner * self.exclusive + 0.5)]
        exclusive = torch.zeros(count, dtype=torch.bool, device="cpu")
        exclusive[chosen] = True
        return Forest(self.parents(count), self.levels(), exclusive, self.scale_by_parent)


@dataclass(frozen=True)
class Forest:
    """Trees of features.

    Attributes:
        parents: of every feature, -1 for those that have none.
        levels: first feature of each level, and the one after its last; children of one parent lie together.
        exclusive: whether of a feature's children at most one fires.
        scale_by_parent: whether children are multiplied by their parent's value over its mean.
    """

    parents: Int[Tensor, " n_features"]
    levels: tuple[tuple[int, int], ...]
    exclusive: Bool[Tensor, " n_features"]
    scale_by_parent: bool

    def _families(self) -> list[tuple[int, slice]]:
        """Return every parent with its children, from the roots on."""
        found: list[tuple[int, slice]] = []
        for first, last in self.levels[1:]:
            above = torch.unique_consecutive(self.parents[first:last], return_counts=True)
            starts = first + np.concatenate([[0], above[1].cumsum(0).numpy()])
            found += [
                (int(p), slice(int(a), int(b))) for p, a, b in zip(above[0], starts[:-1], starts[1:], strict=True)
            ]
        return found

    def compensated(self, wanted: Float[Tensor, " n_features"]) -> Float[Tensor, " n_features"]:
        """Return probabilities to draw with, so that features fire as often as is wanted where siblings are few.

        A child's is divided by its parent's; among exclusive siblings it is also multiplied by one plus the number of
        siblings that are expected beside it. At most 1: among many rivals features fire less often.

        Raises:
            InputError: for a child that would have to fire whenever its parent does, or more often.
        """
        below = (self.parents >= 0).nonzero()[:, 0]
        if beyond := int((wanted[below] >= _CERTAIN * wanted[self.parents[below]]).sum()):
            raise InputError(
                f"hierarchy: compensate: {beyond:,} of {below.numel():,} children would have to fire as often as "
                "their parent does, or more often; give probabilities that fall with the number of the feature "
                "(zipf, linear), or compensate: false"
            )
        drawn = wanted.clone()
        for parent, children in self._families():
            above = wanted[parent]
            drawn[children] = wanted[children] / above
            if self.exclusive[parent]:
                drawn[children] *= 1 + (wanted[children].sum() - wanted[children]) / above
        return drawn.clamp(max=_CERTAIN)

    def marginals(self, drawn: Float[Tensor, "n_features ..."]) -> Float[Tensor, "n_features ..."]:
        """Return how often features fire that are drawn independently with these probabilities.

        One of B + 1 exclusive siblings stays with probability 1 / (B + 1), the integral of ``s^B`` over [0, 1]; its
        mean is the integral of ``prod_j (1 - q_j + q_j s)`` over the others, a polynomial: Gauss' rule is exact.
        """
        found = drawn.clone()
        for parent, children in self._families():
            kept = drawn[children]
            if self.exclusive[parent]:
                kept = kept * _stays(kept)
            found[children] = found[parent] * kept
        return found

    @cached_property
    def without_parent(self) -> Int[Tensor, " some"]:
        """Features that need no other one, ascending: the roots, and what stands in no tree."""
        return (self.parents < 0).nonzero()[:, 0]

    def children(self, level: int, parents: Int[Tensor, " some"]) -> Int[Tensor, "some branching"]:
        """Return the children, on a level from 1 on, of features of the level above; all have as many."""
        (before, _), (first, last) = self.levels[level - 1 : level + 1]
        branching = (last - first) // (first - before)
        return first + (parents[:, None] - before) * branching + torch.arange(branching, device="cpu")


def _stays(drawn: Float[Tensor, "siblings ..."]) -> Float[Tensor, "siblings ..."]:
    points, weights = np.polynomial.legendre.leggauss(drawn.shape[0] // 2 + 1)
    s, weight = torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
    factors = 1 - drawn[..., None] + drawn[..., None] * s
    logs = factors.log()
    return ((logs.sum(dim=0) - logs).exp() * weight).sum(dim=-1)
