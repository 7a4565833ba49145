"""What a training step leaves behind, summed over the parts that its batch was cut into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from saebench_core.objectives import Step

__all__ = ["Tally"]


@final
@dataclass
class Tally:
    """Sums over the rows of a batch.

    Attributes:
        rows: seen so far.
        loss: mean over these rows.
        active: positive codes.
        entries: selected ones.
        error: squared residual.
        fired: latents with a positive code, None before the first part.
        smallest: least positive code.
        last: the last part, for what looks at single rows.
    """

    rows: int = 0
    loss: float = 0.0
    active: int = 0
    entries: int = 0
    error: float = 0.0
    fired: Bool[Tensor, " d_sae"] | None = None
    smallest: float = math.inf
    last: Step | None = None

    @torch.no_grad()
    def add(self, part: Step, loss: float) -> None:
        """Take in a part and its mean loss."""
        values = part.values.detach()
        positive = values[values > 0]
        fired = part.selection.fired(values)
        self.loss = (self.loss * self.rows + loss * part.n_rows) / (self.rows + part.n_rows)
        self.rows += part.n_rows
        self.active += positive.numel()
        self.entries += values.numel()
        self.error += float(part.residual.detach().square().sum())
        self.fired = fired if self.fired is None else self.fired | fired
        self.smallest = min(self.smallest, float(positive.min()) if positive.numel() else math.inf)
        self.last = part

    @property
    def l0(self) -> float:
        """Mean number of positive codes a row."""
        return self.active / max(1, self.rows)

    @property
    def density(self) -> float:
        """Share of all entries that were selected."""
        d_sae = self.last.selection.d_sae if self.last is not None else 1
        return self.entries / max(1, self.rows * d_sae)
