"""Directions that are kept within bounds of where they were drawn, and the order of latents that a draw gives."""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core.randomness import named_generator, tensor_sha256

__all__ = ["drawn_order", "project_on_band"]

_GUARD: Final = 1e-5
"""Share of the norm below which the sideways part of a row is rounding noise and gives no direction."""


def project_on_band(
    rows: Float[Tensor, "d_sae d_in"], anchors: Float[Tensor, "d_sae d_in"], least: float, most: float = 1.0
) -> None:
    """Project each row, in place, on ``{d : least ||d|| <= <d, anchor> <= most ||d||}``, keeping its norm.

    With ``v`` outside the band, tau the bound that it crossed and ``u = v - <v, a> a``: ``tau a + sqrt(1 - tau^2) u /
    ||u||`` is the nearest point in Euclidean and in geodesic distance. Where ``u`` is rounding noise (v parallel or
    antiparallel to the anchor) a fixed axis made orthogonal to the anchor takes its place. Rows inside keep their bits.

    Args:
        rows: directions, changed in place.
        anchors: unit-norm starts.
        least: smallest cosine with the anchor.
        most: largest one; 1 for a cap.
    """
    norms = rows.norm(dim=1, keepdim=True)
    along = (rows * anchors).sum(dim=1, keepdim=True)
    too_far = along < least * norms
    outside = too_far if most >= 1 else too_far | (along > most * norms)
    chosen = outside.squeeze(1).nonzero(as_tuple=True)[0]
    if chosen.numel() == 0:
        return
    anchor, norm, far = anchors[chosen], norms[chosen], too_far[chosen]
    sideways = rows[chosen] - along[chosen] * anchor
    length = sideways.norm(dim=1, keepdim=True)
    sideways = torch.where(length < _GUARD * norm, _orthogonal_axis(anchor), sideways)
    # once more, so that what rounding left along the anchor cannot push the cosine off its bound
    sideways = sideways - (sideways * anchor).sum(dim=1, keepdim=True) * anchor
    sideways = torch.nn.functional.normalize(sideways, dim=1)
    rows[chosen] = norm * torch.where(far, _mixed(least, anchor, sideways), _mixed(most, anchor, sideways))


def _mixed(cosine: float, anchor: Tensor, sideways: Tensor) -> Tensor:
    return cosine * anchor + math.sqrt(max(0.0, 1 - cosine * cosine)) * sideways


def _orthogonal_axis(anchors: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """Return, for each unit anchor, the coordinate axis it leans on least, made orthogonal to it."""
    axis = torch.zeros_like(anchors)
    axis.scatter_(1, anchors.abs().argmin(dim=1, keepdim=True), 1.0)
    return axis - (axis * anchors).sum(dim=1, keepdim=True) * anchors


def drawn_order(directions: Float[Tensor, "d_sae d_in"]) -> Int[Tensor, " d_sae"]:
    """Return the latents in a random order that their drawn directions decide: a permutation seeded by their hash.

    Whatever a constraint has to choose among latents at random needs no further draw to be kept, for anybody who has
    the draw has the order. It tells nothing of where a direction points.
    """
    generator = named_generator("order of latents", tensor_sha256(directions))
    return torch.randperm(directions.shape[0], generator=generator, device="cpu").to(directions.device)
