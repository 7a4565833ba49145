"""How far an SAE's directions have moved from where they were drawn (paper appendix D, figure 11)."""

from __future__ import annotations

from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core.interfaces.constraint import Start
from saebench_core.sae import SparseAutoencoder

__all__ = ["DRIFT_SHARES", "cosines", "drift_steps", "drift_summary"]

DRIFT_SHARES: Final = (0.0, 0.001, 0.00316, 0.01, 0.0316, 0.05, 0.1, 0.316, 1.0)
"""Shares of the training at which drift is looked at."""

BINS: Final = 100
LOWEST: Final = -0.2
_LEVELS: Final = (0.8, 0.9, 0.99)
_BLOCK_ROWS: Final = 1024


def drift_steps(total: int) -> frozenset[int]:
    """Return the numbers of done steps at which drift is looked at."""
    return frozenset(round(share * total) for share in DRIFT_SHARES)


@torch.no_grad()
def cosines(now: Float[Tensor, "d_sae d_in"], start: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Return the cosine of every direction with where it was drawn, in fp64, on the CPU."""
    parts = zip(torch.split(now, _BLOCK_ROWS), torch.split(start, _BLOCK_ROWS), strict=True)
    return torch.cat([torch.cosine_similarity(one.cpu().double(), other.cpu().double(), dim=1) for one, other in parts])


def drift_summary(
    sae: SparseAutoencoder, start: Start, alive: Bool[Tensor, " d_sae"], step: int, share: float
) -> dict[str, Any]:
    """Return counts, mean, median and shares of the cosines, of decoder and encoder, alive and dead latents apart.

    Dead latents do not move, and would make any training look lazy.

    Args:
        sae: in training space.
        start: weights as they were drawn.
        alive: latents that have fired within the window.
        step: number of steps that were done.
        share: of the whole training.
    """
    moved = {"decoder": cosines(sae.w_dec, start.w_dec), "encoder": cosines(sae.w_enc.T, start.w_enc.T)}
    alive = alive.cpu()
    parts = {part: {"alive": _summary(found[alive]), "dead": _summary(found[~alive])} for part, found in moved.items()}
    return {"step": step, "share": share, **parts}


def _summary(values: Tensor) -> dict[str, Any]:
    if values.numel() == 0:
        return {"latents": 0}
    counts = torch.histc(values.float().clamp(LOWEST, 1.0), BINS, LOWEST, 1.0)
    return {
        "latents": values.numel(),
        "mean": float(values.mean()),
        "median": float(values.median()),
        "at_least": {str(level): float((values >= level).double().mean()) for level in _LEVELS},
        "counts": [int(count) for count in counts.tolist()],
    }
