"""The control of sparse probing: as many random projections as there are latents, as sparse as its codes."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core import JumpReLU, SparseAutoencoder, named_generator

__all__ = ["random_projections"]

_ENTRIES: Final = 1 << 24
_ROWS: Final = 4096


def random_projections(sae: SparseAutoencoder, activations: Float[Tensor, "rows d_in"], seed: int) -> SparseAutoencoder:
    """Return an encoder of random directions, uniform on the sphere, with one threshold for all.

    The mean activation is subtracted, and the threshold is such that as many projections are above it as the SAE has
    codes, on rows taken evenly from ``activations``. The decoder is of no use.
    """
    count = max(1, min(_ROWS, _ENTRIES // sae.d_sae, len(activations)))
    sample = activations[torch.arange(count, device=activations.device) * len(activations) // count].to(
        sae.device, torch.float32
    )
    generator = named_generator(seed, "sparse_probing random projections", str(sae.d_sae))
    drawn = torch.randn(sae.d_sae, sae.d_in, generator=generator, device="cpu")
    directions = torch.nn.functional.normalize(drawn, dim=1).to(sae.device)
    mean = sample.mean(0)
    projected = ((sample - mean) @ directions.T).flatten()
    wanted = min(len(sae.encode(sample).values), int((projected > 0).sum()))
    threshold = float(projected.kthvalue(len(projected) - wanted).values) if wanted < len(projected) else 0.0
    return SparseAutoencoder.start(directions.T, directions, mean, JumpReLU(start=max(0.0, threshold)), "b_dec")
