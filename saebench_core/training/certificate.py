"""The certificate of a cell: what was random, what stayed so, and that twins shared it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from saebench_core.interfaces.constraint import BaseDraw, Constraint, Start
from saebench_core.interfaces.context import ActivationReader
from saebench_core.randomness import tensor_sha256
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.drift import cosines

__all__ = ["Origin", "certify", "frozen_after", "frozen_hashes", "realised", "tensor_hashes"]

_BATCH = 4096


def frozen_hashes(sae: SparseAutoencoder, names: frozenset[str]) -> dict[str, str]:
    """Return the sha256 of every frozen tensor."""
    return {name: tensor_sha256(sae.tensors[name]) for name in sorted(names)}


def tensor_hashes(sae: SparseAutoencoder) -> dict[str, str]:
    """Return the sha256 of every tensor of a saved SAE, such as the twin that another one starts from."""
    return {name: tensor_sha256(tensor) for name, tensor in sorted(sae.tensors.items())}


def realised(sae: SparseAutoencoder, reader: ActivationReader) -> dict[str, float]:
    """Return mean L0 and the share of latents that fire, of an SAE in raw space on evaluation rows."""
    fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
    rows = 0
    for batch in reader.batches(_BATCH):
        codes = sae.encode(batch)
        fires += torch.bincount(codes.selection.cols[codes.values != 0], minlength=sae.d_sae)
        rows += batch.shape[0]
    return {"realised_l0": float(fires.sum()) / rows, "alive_share": float((fires > 0).double().mean())}


@final
@dataclass(frozen=True)
class Origin:
    """Hashes taken before the first step.

    Attributes:
        base_draw_sha256: of the random numbers, taken after the constraint has used them.
        w_dec_start_sha256: of the decoder as drawn, before an architecture scales it.
        frozen: of every frozen tensor, in training space.
    """

    base_draw_sha256: str
    w_dec_start_sha256: str
    frozen: Mapping[str, str]

    @classmethod
    def of(cls, draw: BaseDraw, start: Start, sae: SparseAutoencoder, frozen: frozenset[str]) -> Origin:
        """Hash a draw, the weights made from it, and the SAE that starts with them."""
        return cls(tensor_sha256(draw.normal), tensor_sha256(start.w_dec), frozen_hashes(sae, frozen))


def certify(
    origin: Origin,
    start: Start,
    trained: SparseAutoencoder,
    finished: SparseAutoencoder,
    constraint: Constraint,
    batch_order_sha256: str,
) -> dict[str, Any]:
    """Return the certificate, but for what `realised` measures.

    Args:
        origin: hashes from before the first step.
        start: weights as drawn.
        trained: the SAE after the last step, in training space.
        finished: the SAE in raw space, before free decoder norms go into the codes.
        constraint: adds its own facts.
        batch_order_sha256: hash of the stream and of the order of all rows seen.
    """
    cosine = cosines(finished.w_dec.detach(), start.w_dec)
    after = frozen_after(trained, finished, frozenset(origin.frozen))
    return {
        "base_draw_sha256": origin.base_draw_sha256,
        "batch_order_sha256": batch_order_sha256,
        "w_dec_start_sha256": origin.w_dec_start_sha256,
        "frozen": {
            name: {"before": before, "after": tensor_sha256(after[name])} for name, before in origin.frozen.items()
        },
        "decoder_cosine": {"min": float(cosine.min()), "mean": float(cosine.mean())},
        "at_bound_share": None,
        **constraint.certify(finished, start),
    }


def frozen_after(trained: SparseAutoencoder, finished: SparseAutoencoder, names: frozenset[str]) -> dict[str, Tensor]:
    """Return frozen tensors as they ended: what is published where saving scales nothing, else what was trained."""
    scaled = {name for name in names if trained.info[name].scales or name not in finished.tensors}
    return {name: (trained if name in scaled else finished).tensors[name] for name in sorted(names)}
