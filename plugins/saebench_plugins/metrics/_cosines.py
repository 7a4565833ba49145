"""Cosines between two sets of directions, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK: Final = 1024


def cosine_parts(
    rows: Float[Tensor, "rows d_in"], others: Float[Tensor, "others d_in"]
) -> Iterator[Float[Tensor, "part others"]]:
    """Yield the signed cosines of each row with all others; a direction of norm zero has none, so 0."""
    unit = torch.nn.functional.normalize(others, dim=1)
    for part in torch.split(torch.nn.functional.normalize(rows, dim=1), _CHUNK):
        yield part @ unit.T


def best_cosines(rows: Float[Tensor, "rows d_in"], others: Float[Tensor, "others d_in"]) -> Float[Tensor, " rows"]:
    """Return each row's largest signed cosine with any of the others."""
    return torch.cat([part.max(dim=1).values for part in cosine_parts(rows, others)])
