"""The files of a saved SAE, as SAELens (6) reads them: a configuration in JSON, and tensors beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.rules import Gated, JumpReLU, ReLU, Rule, TopK

__all__ = ["inference_rule", "read_config", "read_tensors", "write_sae"]

_WEIGHTS: Final = "sae_weights.safetensors"
_CONFIG: Final = "cfg.json"
_ALWAYS: Final = {
    "dtype": "float32",
    "device": "cpu",
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def write_sae(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files.

    Args:
        path: folder, made if it is missing.
        config: what the configuration says beside what it always says.
        tensors: by their names in the format.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(stored, path / _WEIGHTS)
    text = json.dumps({**_ALWAYS, **config}, indent=2, sort_keys=True) + "\n"
    (path / _CONFIG).write_text(text, encoding="utf-8")


def read_tensors(path: Path, config: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """Return the tensors in fp32, the encoder with each latent's vector together in memory.

    Args:
        path: folder with both files.
        config: the parsed configuration.
        device: where to put the tensors.

    Raises:
        InputError: if the file is missing or damaged, or the configuration holds what belongs into the tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path / _WEIGHTS, device=device)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: no SAE here: {_WEIGHTS} cannot be read ({error})") from error
    tensors = {name: tensor.to(torch.float32) for name, tensor in stored.items()}
    if "W_enc" in tensors and tensors["W_enc"].ndim == 2:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous().T
    _refuse_unfolded(config, tensors, path)
    return tensors


def _refuse_unfolded(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse settings that change the function and are not in the tensors; SAELens folds them when it saves to share.

    Raises:
        InputError: if activations are scaled, or codes are rescaled by decoder norms that are not one.
    """
    scaled = config.get("normalize_activations", "none")
    if scaled not in (None, "none"):
        raise InputError(f"{path}: normalize_activations is {scaled!r}; fold it into the weights first")
    rescaled = config.get("rescale_acts_by_decoder_norm", False) and "W_dec" in tensors
    if rescaled and bool((tensors["W_dec"].norm(dim=1) - 1).abs().max() > 1e-3):
        raise InputError(
            f"{path}: codes are rescaled by decoder norms that are not one; fold them into the weights first"
        )


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed ``cfg.json`` of a saved SAE.

    Raises:
        InputError: if it is missing or no JSON object.
    """
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no SAE here: {_CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path / _CONFIG}: expected a JSON object")
    return config


def inference_rule(config: Mapping[str, Any]) -> Rule:
    """Return the rule of a saved configuration's architecture.

    Raises:
        InputError: if the architecture is not one of the common ones, or a key of it is missing.
    """
    architecture = config.get("architecture")
    if architecture == "standard":
        return ReLU()
    if architecture == "jumprelu":
        return JumpReLU()
    if architecture == "gated":
        return Gated()
    if architecture == "topk":
        if "k" not in config:
            raise InputError("the configuration of a topk SAE needs the key 'k'")
        return TopK(int(config["k"]))
    known = "gated, jumprelu, standard, topk"
    raise InputError(f"architecture {architecture!r} needs a plugin's rule; known here: {known}")
