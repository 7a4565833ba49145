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
    """Return SAEs by name.

    perfect: an orthonormal basis in both signs, so ``x_hat = x`` for every x; the true features where they are known,
        on latents that never fire if they are no basis.
    permuted: perfect with its decoder rows moved by a third: every direction is there, on another latent.
    renumbered: perfect with its latents in another order, encoder and decoder alike: the same SAE.
    blind: perfect, but nothing fires. dead: random directions, nothing fires; both write the mean.
    nothing: every weight is zero. random: random directions, tied.
    """
    d_in = x.shape[1]
    rows, bias = _perfect(backbone, d_in)
    order = torch.randperm(len(rows), generator=named_generator("conformance", "renumbered"), device="cpu")
    zero, mean = torch.zeros(d_in, device="cpu"), x.mean(0)
    random = start_decoder(d_in, 2 * d_in)
    never, always = torch.tensor(_NEVER, device="cpu"), torch.tensor(0.0, device="cpu")
    return {
        "perfect": _made(rows, rows, zero, bias),
        "permuted": _made(rows, rows.roll(len(rows) // 3, 0), zero, bias),
        "renumbered": _made(rows[order], rows[order], zero, bias[order]),
        "blind": _made(rows, rows, mean, never),
        "dead": _made(random, random, mean, never),
        "nothing": _made(torch.zeros_like(rows), torch.zeros_like(rows), zero, always),
        "random": _made(random, random, mean, always),
    }


def _perfect(backbone: Backbone, d_in: int) -> tuple[Tensor, Tensor]:
    """Return directions that reconstruct everything, and the bias of each."""
    basis = torch.eye(d_in, device="cpu")
    features = backbone.features().to("cpu") if isinstance(backbone, GroundTruth) else basis
    if features.shape == basis.shape and torch.allclose(features @ features.T, basis, atol=1e-5):
        rows = torch.cat([features, -features])
        return rows, torch.zeros(len(rows), device="cpu")
    rows = torch.cat([basis, -basis, features])
    bias = torch.zeros(len(rows), device="cpu")
    bias[2 * d_in :] = _NEVER
    return rows, bias


def start_decoder(d_in: int, d_sae: int) -> Float[Tensor, "d_sae d_in"]:
    """Return the directions that an SAE of this size is said to have started from."""
    drawn = torch.randn(d_sae, d_in, generator=named_generator("conformance", "start"), device="cpu")
    return torch.nn.functional.normalize(drawn, dim=1)


def _made(encoder: Tensor, decoder: Tensor, b_dec: Tensor, bias: Tensor) -> SparseAutoencoder:
    sae = SparseAutoencoder.start(encoder.T, decoder, b_dec, ReLU(), "b_dec")
    sae.encoder_bias.copy_(bias)
    return sae
