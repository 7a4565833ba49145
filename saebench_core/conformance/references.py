"""SAEs whose scores are known beforehand: perfect, nothing, dead, permuted, renumbered, random."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.interfaces.backbone import Backbone, GroundTruth
from saebench_core.randomness import named_generator
from saebench_core.rules import ReLU
from saebench_core.sae import SparseAutoencoder

__all__ = ["reference_saes", "start_decoder"]

_NEVER = -1e6


def reference_saes(backbone: Backbone, x: Float[Tensor, "rows d_in"]) -> Mapping[str, SparseAutoencoder]:
    """Return SAEs by name, all of twice as many latents as dimensions.

    perfect: an orthonormal basis in both signs, so ``x_hat = x`` for every x; the true features where they are known.
    permuted: perfect with its decoder rows moved by a third: every direction is there, on another latent.
    renumbered: perfect with its latents in another order, encoder and decoder alike: the same SAE.
    blind: perfect, but nothing fires. dead: random directions, nothing fires; both write the mean.
    nothing: every weight is zero. random: random directions, tied.
    """
    d_in = x.shape[1]
    basis = torch.eye(d_in, device="cpu")
    if isinstance(backbone, GroundTruth) and backbone.features().shape == basis.shape:
        basis = backbone.features().to("cpu")
    rows = torch.cat([basis, -basis])
    order = torch.randperm(2 * d_in, generator=named_generator("conformance", "renumbered"), device="cpu")
    zero, mean = torch.zeros(d_in, device="cpu"), x.mean(0)
    random = start_decoder(d_in)
    return {
        "perfect": _made(rows, rows, zero),
        "permuted": _made(rows, rows.roll(2 * d_in // 3, 0), zero),
        "renumbered": _made(rows[order], rows[order], zero),
        "blind": _made(rows, rows, mean, _NEVER),
        "dead": _made(random, random, mean, _NEVER),
        "nothing": _made(torch.zeros_like(rows), torch.zeros_like(rows), zero),
        "random": _made(random, random, mean),
    }


def start_decoder(d_in: int) -> Float[Tensor, "d_sae d_in"]:
    """Return the directions that all these SAEs are said to have started from."""
    drawn = torch.randn(2 * d_in, d_in, generator=named_generator("conformance", "start"), device="cpu")
    return torch.nn.functional.normalize(drawn, dim=1)


def _made(encoder: Tensor, decoder: Tensor, b_dec: Tensor, bias: float = 0.0) -> SparseAutoencoder:
    sae = SparseAutoencoder.start(encoder.T, decoder, b_dec, ReLU(), "b_dec")
    sae.encoder_bias.fill_(bias)
    return sae
