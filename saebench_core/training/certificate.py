"""The certificate of a cell: what was random, what stayed so, and that twins shared it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saebench_core.interfaces.constraint import BaseDraw, Constraint, Start
from saebench_core.interfaces.context import ActivationReader
from saebench_core.randomness import tensor_sha256
from saebench_core.sae import SparseAutoencoder

__all__ = ["certify", "frozen_hashes", "realised"]

_BATCH = 4096


def frozen_hashes(sae: SparseAutoencoder, names: frozenset[str]) -> dict[str, str]:
    """Return the sha256 of every frozen tensor, in training space."""
    return {name: tensor_sha256(sae.tensors[name]) for name in sorted(names)}


def realised(sae: SparseAutoencoder, reader: ActivationReader) -> dict[str, float]:
    """Return mean L0 and the share of latents that fire, of an SAE in raw space on evaluation rows."""
    fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
    rows = 0
    for batch in reader.batches(_BATCH):
        codes = sae.encode(batch)
        fires += torch.bincount(codes.selection.cols[codes.values != 0], minlength=sae.d_sae)
        rows += batch.shape[0]
    return {"realised_l0": float(fires.sum()) / rows, "alive_share": float((fires > 0).double().mean())}


def certify(
    draw: BaseDraw,
    start: Start,
    sae: SparseAutoencoder,
    constraint: Constraint,
    before: Mapping[str, str],
    batch_order_sha256: str,
) -> dict[str, Any]:
    """Return the certificate, but for what `realised` measures.

    Args:
        draw: base draw of the seed.
        start: weights as drawn.
        sae: the trained SAE, in training space.
        constraint: adds its own facts.
        before: hashes of the frozen tensors before training.
        batch_order_sha256: hash of the order of all rows seen.
    """
    cosine = torch.nn.functional.cosine_similarity(sae.w_dec.detach().double(), start.w_dec.double(), dim=1)
    after = frozen_hashes(sae, frozenset(before))
    return {
        "base_draw_sha256": tensor_sha256(draw.normal),
        "batch_order_sha256": batch_order_sha256,
        "w_dec_start_sha256": tensor_sha256(start.w_dec),
        "frozen": {name: {"before": before[name], "after": after[name]} for name in before},
        "decoder_cosine": {"min": float(cosine.min()), "mean": float(cosine.mean())},
        "at_bound_share": None,
        **constraint.certify(sae, start),
    }
