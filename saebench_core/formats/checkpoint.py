"""What reading a checkpoint gives, and what the readers of all formats share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.rules import Rule
from saebench_core.sae import Centring, SparseAutoencoder

__all__ = [
    "Checkpoint",
    "Facts",
    "assemble",
    "count",
    "fold_decoder",
    "read_json",
    "read_safetensors",
    "threshold_vector",
]

_ONE = 1e-6
_SMALLEST_NORM = 1e-8


@final
@dataclass(frozen=True)
class Facts:
    """What a checkpoint says about itself; None where it does not say.

    Attributes:
        format: name of the format.
        architecture: the peer's own name of the architecture or class.
        model: name of the model that it was trained on.
        layer: number of the layer.
        hook: place in the model, in the peer's words.
        k: active latents a row that it was trained for.
        tokens: training budget in rows of activations.
        notes: what was folded into the weights.
        plugins: entries of the plugins whose rule it has, ``architecture`` and ``constraint``; empty where the rule is
            the format's own.
    """

    format: str
    architecture: str
    model: str | None = None
    layer: int | None = None
    hook: str | None = None
    k: float | None = None
    tokens: int | None = None
    notes: tuple[str, ...] = ()
    plugins: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Checkpoint:
    """An SAE from a file, acting on raw activations, and what the file says about it."""

    sae: SparseAutoencoder
    facts: Facts


def read_json(path: Path, wanted: bool = True) -> dict[str, Any]:
    """Return a JSON object.

    Args:
        path: the file.
        wanted: whether the file must be there; otherwise a missing one is empty.

    Raises:
        InputError: if it is no JSON object.
    """
    if not wanted and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        InputError: if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def assemble(path: Path, tensors: Mapping[str, Tensor], rule: Rule, centring: Centring) -> SparseAutoencoder:
    """Return an SAE of a file's tensors in fp32, a latent's encoder vector together in memory.

    Raises:
        InputError: if tensors are missing, too many, misshapen or not finite.
    """
    plain = {name: tensor.detach().to(torch.float32) for name, tensor in tensors.items()}
    broken = sorted(name for name, tensor in plain.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        raise InputError(f"{path}: not every number is finite in {', '.join(broken)}")
    if "W_enc" in plain and plain["W_enc"].ndim == 2:
        plain["W_enc"] = plain["W_enc"].T.contiguous().T
    try:
        return SparseAutoencoder({name: _owned(name, tensor) for name, tensor in plain.items()}, rule, centring)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _owned(name: str, tensor: Tensor) -> Tensor:
    return tensor if name == "W_enc" else tensor.contiguous()


def fold_decoder(tensors: Mapping[str, Tensor], scaled: Iterable[str]) -> tuple[dict[str, Tensor], bool]:
    """Return the same SAE with decoder rows of norm one, and whether they had other norms.

    Codes are multiplied by the norms; reconstructions stay.

    Args:
        tensors: in our names and shapes.
        scaled: tensors of one entry a latent that live on the scale of pre-activations.
    """
    norms = tensors["W_dec"].to(torch.float32).norm(dim=1)
    if bool((norms - 1).abs().max() <= _ONE):
        return dict(tensors), False
    norms = norms.clamp(min=_SMALLEST_NORM)
    folded = dict(tensors) | {name: tensors[name] * norms for name in scaled}
    folded["W_enc"] = tensors["W_enc"] * norms
    folded["W_dec"] = tensors["W_dec"] / norms[:, None]
    return folded, True


def threshold_vector(path: Path, threshold: Tensor, d_sae: int) -> Tensor:
    """Return a global threshold as one for each latent.

    Raises:
        InputError: if it was never set.
    """
    value = float(threshold)
    if value < 0 or math.isnan(value):
        raise InputError(
            f"{path}: the inference threshold was never set ({value:g}); train past the step at which it starts, "
            "or write the threshold that gives the wanted L0 into the file"
        )
    return torch.full((d_sae,), value)


def count(value: object) -> int | None:
    """Return a whole number that a configuration states, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return int(value)
