"""A pool: rows that are permuted together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxtyping import Int
from torch import Tensor

__all__ = ["Gather", "Pool"]

Gather: TypeAlias = Callable[[slice], Tensor]
"""Gives the rows at some places of a pool, in its order."""


class Pool(NamedTuple):
    """Rows that are permuted together.

    Attributes:
        numbers: of the rows, in the pool's order.
        epoch: how often the source had been read before.
        fill: reads the rows.
    """

    numbers: Int[Tensor, " rows"]
    epoch: int
    fill: Callable[[], Gather]
