"""Reads sparsify's ``sae.safetensors`` beside its ``cfg.json``.

``W_dec`` holds decoder rows, so that only the encoder is transposed; ``b_dec`` is subtracted from the input, whether
or not the decoder was kept at unit norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from saebench_core.errors import InputError
from saebench_core.formats.checkpoint import Checkpoint, Facts, assemble, count, read_json, read_safetensors
from saebench_core.rules import TopK

__all__ = ["NAME", "WEIGHTS", "read"]

NAME: Final = "sparsify"
WEIGHTS: Final = "sae.safetensors"
_NAMES: Final = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def read(weights: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        weights: ``sae.safetensors``.

    Raises:
        InputError: if it cannot be read, or is no SAE with a top-k activation.
    """
    config = read_json(weights.with_name("cfg.json"))
    _refuse(config, weights)
    k = count(config.get("k"))
    if k is None:
        raise InputError(f"{weights.with_name('cfg.json')}: expected a key k, a positive whole number")
    stored = read_safetensors(weights)
    missing = [name for name in _NAMES if name not in stored]
    if missing:
        raise InputError(f"{weights}: no tensor {', '.join(missing)}; there are: {', '.join(sorted(stored))}")
    tensors = {_NAMES.get(name, name): tensor for name, tensor in stored.items()}
    tensors["W_enc"] = tensors["W_enc"].T
    sae = assemble(weights, tensors, TopK(k), "b_dec")
    d_in = config.get("d_in", sae.d_in)
    d_sae = config.get("num_latents") or round(d_in * config.get("expansion_factor", sae.d_sae / d_in))
    if (d_in, d_sae) != (sae.d_in, sae.d_sae):
        raise InputError(f"{weights}: d_in {sae.d_in} and {sae.d_sae} latents, but {d_in} and {d_sae} in its cfg.json")
    return Checkpoint(sae, _facts(weights, k))


def _refuse(config: Mapping[str, Any], weights: Path) -> None:
    """Refuse what is another function than an SAE with the k largest pre-activations."""
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise InputError(f"{weights}: the activation {activation!r} cannot be read; allowed: topk")
    for key, what in (("transcode", "a transcoder"), ("skip_connection", "an SAE with a skip connection")):
        if config.get(key, False):
            raise InputError(
                f"{weights}: {what} ({key} is true); only SAEs, which read and write one site, can be read"
            )


def _facts(weights: Path, k: int) -> Facts:
    hook = weights.absolute().parent.name
    layer = re.search(r"(?:layers|h|blocks)\.(\d+)", hook)
    run = read_json(weights.absolute().parent.parent / "config.json", wanted=False)
    model = run.get("model")
    return Facts(
        NAME,
        "topk",
        model=model if isinstance(model, str) else None,
        layer=int(layer[1]) if layer else None,
        hook=hook if layer else None,
        k=float(k),
    )
