"""Reads dictionary_learning's ``ae.pt`` beside or below its ``config.json``.

The linear layers are stored as (out, in) and transposed here. Biases and thresholds are on the scale of raw
activations already: they are multiplied by the norm factor before every save.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from saebench_core.errors import InputError, nearest
from saebench_core.formats.checkpoint import (
    Checkpoint,
    Facts,
    assemble,
    count,
    fold_decoder,
    read_json,
    threshold_vector,
)
from saebench_core.rules import Gated, JumpReLU, ReLU, Rule, TopK
from saebench_core.sae import Centring

__all__ = ["NAME", "WEIGHTS", "read", "read_state"]

NAME: Final = "dictionary_learning"
WEIGHTS: Final = "ae.pt"


class _Parts(NamedTuple):
    """An SAE before it is assembled; ``fold`` names what is multiplied by the decoder's norms, if it is folded."""

    tensors: dict[str, Tensor]
    rule: Rule
    centring: Centring
    fold: tuple[str, ...] | None = None


def read(weights: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        weights: ``ae.pt``, or one of ``checkpoints/``.

    Raises:
        InputError: if the files cannot be read, or the class is unknown.
    """
    config_path = next((place for place in _config_places(weights) if place.is_file()), weights.parent / "config.json")
    config = read_json(config_path)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise InputError(f"{config_path}: expected the key trainer.dict_class, as dictionary_learning writes it")
    name = str(trainer["dict_class"])
    if name not in _CLASSES:
        raise InputError(
            f"{config_path}: trainer.dict_class {name!r} cannot be read{nearest(name, _CLASSES)}; "
            f"known: {', '.join(sorted(_CLASSES))}"
        )
    state = read_state(weights, torch.device("cpu"))
    try:
        parts = _CLASSES[name](state, weights)
    except KeyError as error:
        raise InputError(
            f"{weights}: no tensor {error.args[0]!r}, which {name} has; there are: {sorted(state)}"
        ) from error
    k = _agreed_k(state, trainer, weights)
    tensors, folded = fold_decoder(parts.tensors, parts.fold) if parts.fold is not None else (parts.tensors, False)
    facts = Facts(
        NAME,
        name,
        model=_text(trainer.get("lm_name")),
        layer=trainer["layer"] if isinstance(trainer.get("layer"), int) else None,
        hook=_text(trainer.get("submodule_name")),
        k=k if k is not None else trainer.get("target_l0"),
        tokens=_tokens(weights, config),
        notes=("decoder norms",) if folded else (),
    )
    return Checkpoint(assemble(weights, tensors, parts.rule, parts.centring), facts)


def _config_places(weights: Path) -> tuple[Path, Path]:
    """Return where the configuration may be: beside the weights, or above ``checkpoints/``."""
    return weights.parent / "config.json", weights.parent.parent / "config.json"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def read_state(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors; a checkpoint from the middle of a run holds them under ``ae``.

    Raises:
        InputError: if the file holds anything else than tensors.
    """
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: cannot be read as a file of tensors; files that hold anything else are not unpickled"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("ae"), dict):
        loaded = loaded["ae"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: expected a state dict of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def _agreed_k(state: Mapping[str, Tensor], trainer: Mapping[str, Any], path: Path) -> int | None:
    if "k" not in state:
        return None
    k = int(state["k"])
    if trainer.get("k", k) != k:
        raise InputError(f"{path}: k is {k} in the file and {trainer['k']} in its config.json")
    return k


def _tokens(weights: Path, config: Mapping[str, Any]) -> int | None:
    """Return steps times batch; the step of a file in ``checkpoints/`` is in its name."""
    named = re.fullmatch(r"ae_(\d+)", weights.stem)
    steps = int(named[1]) if named else count(config["trainer"].get("steps"))
    buffer = config.get("buffer")
    batch = count(buffer.get("out_batch_size")) if isinstance(buffer, dict) else None
    return steps * batch if steps and batch else None


def _linear(state: Mapping[str, Tensor], b_dec: str) -> dict[str, Tensor]:
    return {
        "W_enc": state["encoder.weight"].T,
        "b_enc": state["encoder.bias"],
        "W_dec": state["decoder.weight"].T,
        "b_dec": state[b_dec],
    }


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _relu(state: Mapping[str, Tensor], path: Path) -> _Parts:
    return _Parts(_linear(state, "bias"), ReLU(), "b_dec", fold=("b_enc",))


def _relu_april(state: Mapping[str, Tensor], path: Path) -> _Parts:
    return _Parts(_linear(state, "decoder.bias"), ReLU(), "none", fold=("b_enc",))


def _topk(state: Mapping[str, Tensor], path: Path) -> _Parts:
    return _Parts(_linear(state, "b_dec"), TopK(int(state["k"])), "b_dec")  # a threshold is stored, and not used


def _batch_topk(state: Mapping[str, Tensor], path: Path) -> _Parts:
    tensors = _linear(state, "b_dec")
    threshold = threshold_vector(path, state["threshold"], tensors["b_enc"].shape[0])
    return _Parts(tensors | {"threshold": threshold}, JumpReLU(), "b_dec")


def _matryoshka(state: Mapping[str, Tensor], path: Path) -> _Parts:
    tensors = _plain(state)
    threshold = threshold_vector(path, state["threshold"], tensors["b_enc"].shape[0])
    return _Parts(tensors | {"threshold": threshold}, JumpReLU(), "b_dec")


def _jumprelu(state: Mapping[str, Tensor], path: Path) -> _Parts:
    return _Parts(_plain(state) | {"threshold": state["threshold"]}, JumpReLU(), "none")


def _gated(state: Mapping[str, Tensor], path: Path) -> _Parts:
    tensors = {
        "W_enc": state["encoder.weight"].T,
        "W_dec": state["decoder.weight"].T,
        "b_dec": state["decoder_bias"],
        "b_gate": state["gate_bias"],
        "b_mag": state["mag_bias"],
        "r_mag": state["r_mag"],
    }
    return _Parts(tensors, Gated(), "b_dec")


_CLASSES: Final[Mapping[str, Callable[[Mapping[str, Tensor], Path], _Parts]]] = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_april,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}
