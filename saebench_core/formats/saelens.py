"""Reads SAELens' ``sae_weights.safetensors`` beside its ``cfg.json``: inference, training and older versions.

Training checkpoints are brought to the form that SAELens gives them when it saves an SAE to be shared: the scale of
activations first, then the norms of the decoder, then one threshold for every latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.formats.checkpoint import (
    Checkpoint,
    Facts,
    assemble,
    count,
    fold_decoder,
    read_json,
    read_safetensors,
    threshold_vector,
)
from saebench_core.rules import JumpReLU, Rule
from saebench_core.sae import inference_rule

__all__ = ["NAME", "WEIGHTS", "plugins", "read"]

NAME: Final = "saelens"
WEIGHTS: Final = "sae_weights.safetensors"
_BATCH: Final = ("batchtopk", "matryoshka_batchtopk")
_KNOWN: Final = ("gated", "jumprelu", "standard", "topk")
_ACTIVATIONS: Final = ("relu", "topk")
_RENAMED: Final = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}


def read(weights: Path, rule_of: Callable[[Mapping[str, Any]], Rule] = inference_rule) -> Checkpoint:
    """Read a checkpoint.

    Args:
        weights: ``sae_weights.safetensors``.
        rule_of: gives the rule of a configuration whose architecture is not one of SAELens' training classes.

    Raises:
        InputError: if it cannot be read, or the architecture is unknown.
    """
    config = _modern(read_json(weights.with_name("cfg.json")))
    tensors = read_safetensors(weights)
    missing = [name for name in ("W_enc", "W_dec", "b_dec") if name not in tensors]
    if missing:
        raise InputError(f"{weights}: no tensor {', '.join(missing)}; there are: {', '.join(sorted(tensors))}")
    notes: list[str] = []
    rule = _rule(config, weights, rule_of)
    tensors = _finetuned(tensors, config, weights, notes)
    tensors = _scaled(tensors, config, weights, notes)
    tensors = _rescaled(tensors, config, notes)
    tensors = _thresholds(tensors, weights)
    sae = assemble(weights, tensors, rule, "b_dec" if config["apply_b_dec_to_input"] else "none")
    return Checkpoint(sae, _facts(config, weights, tuple(notes)))


def plugins(weights: Path) -> dict[str, Any]:
    """Return the entries of the plugins whose rule an SAE has, by kind; empty where the rule is the format's own."""
    return _plugins(_modern(read_json(weights.with_name("cfg.json"))))


def _plugins(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["architecture"] in (*_BATCH, *_KNOWN):
        return {}
    found = {kind: config["metadata"].get(kind) for kind in ("architecture", "constraint")}
    return {kind: entry for kind, entry in found.items() if isinstance(entry, dict)}


def _modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in the words of version 6; older ones keep metadata at the top level."""
    found: dict[str, Any] = {_RENAMED.get(key, key): value for key, value in config.items()}
    found.setdefault("architecture", "standard")
    found.setdefault("apply_b_dec_to_input", True)
    if found.get("activation_fn") == "topk":
        found["architecture"] = "topk"
        found.setdefault("k", (found.get("activation_fn_kwargs") or {}).get("k"))
    normalised = found.get("normalize_activations")
    if isinstance(normalised, bool) or normalised is None:
        found["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    metadata = found.get("metadata")
    found["metadata"] = found | (metadata if isinstance(metadata, dict) else {})
    return found


def _rule(config: Mapping[str, Any], weights: Path, rule_of: Callable[[Mapping[str, Any]], Rule]) -> Rule:
    activation = config.get("activation_fn", "relu")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"{weights}: the activation_fn {activation!r} cannot be read; allowed: {', '.join(_ACTIVATIONS)}"
        )
    if config["architecture"] in _BATCH:
        return JumpReLU()
    try:
        return rule_of(config)
    except InputError as error:
        known = ", ".join(sorted((*_BATCH, *_KNOWN)))
        raise InputError(f"{weights}: {error} (in this format: {known})") from error


def _finetuned(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Path, notes: list[str]
) -> dict[str, Tensor]:
    """Return the tensors with the factor of versions before 6, which multiplies codes to be decoded, in the decoder."""
    names = ("finetuning_scaling_factor", "scaling_factor")
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    factor = next((tensors[name] for name in names if name in tensors), None)
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return rest
    if not config.get("finetuning_scaling_factor"):
        raise InputError(f"{weights}: has a scaling factor that its cfg.json does not switch on; remove one of the two")
    notes.append("finetuning scaling factor")
    return rest | {"W_dec": rest["W_dec"] * factor[:, None]}


def _scaled(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Path, notes: list[str]
) -> dict[str, Tensor]:
    """Return the tensors acting on raw activations; a training checkpoint keeps the factor in a file of its own."""
    normalised = config["normalize_activations"]
    if normalised == "none":
        return dict(tensors)
    scaler = read_json(weights.with_name("activation_scaler.json"), wanted=False)
    factor = scaler.get("scaling_factor")
    if normalised != "expected_average_only_in" or not isinstance(factor, int | float) or not factor > 0:
        raise InputError(
            f"{weights.with_name('cfg.json')}: normalize_activations is {normalised!r}; fold it into the weights first "
            "(SAELens does when training ends, and for expected_average_only_in where activation_scaler.json is here)"
        )
    notes.append("scale of activations")
    scaled = dict(tensors) | {
        "W_enc": tensors["W_enc"] * factor,
        "W_dec": tensors["W_dec"] / factor,
        "b_dec": tensors["b_dec"] / factor,
    }
    if "topk_threshold" in tensors and config.get("rescale_acts_by_decoder_norm"):
        scaled["topk_threshold"] = tensors["topk_threshold"] / factor  # compared after decoder norms are multiplied in
    return scaled


def _rescaled(tensors: Mapping[str, Tensor], config: Mapping[str, Any], notes: list[str]) -> dict[str, Tensor]:
    if not config.get("rescale_acts_by_decoder_norm"):
        return dict(tensors)
    folded, changed = fold_decoder(tensors, [name for name in ("b_enc",) if name in tensors])
    notes.extend(["decoder norms"] if changed else [])
    return folded


def _thresholds(tensors: Mapping[str, Tensor], weights: Path) -> dict[str, Tensor]:
    """Return the tensors with a threshold for each latent, whichever form the file has."""
    found = dict(tensors)
    if "topk_threshold" in found:
        found["threshold"] = threshold_vector(weights, found.pop("topk_threshold"), found["W_dec"].shape[0])
    elif "log_threshold" in found:
        found["threshold"] = found.pop("log_threshold").exp()
    return found


def _facts(config: Mapping[str, Any], weights: Path, notes: tuple[str, ...]) -> Facts:
    metadata = config["metadata"]
    details = metadata.get("training_architecture_details") or {}
    k = next((value for value in (config.get("k"), details.get("k"), metadata.get("l0")) if value), None)
    layer, model, hook = (metadata.get(key) for key in ("hook_layer", "model_name", "hook_name"))
    return Facts(
        NAME,
        str(config["architecture"]),
        model=model if isinstance(model, str) else None,
        layer=layer if isinstance(layer, int) else None,
        hook=hook if isinstance(hook, str) else None,
        k=float(k) if isinstance(k, int | float) else None,
        tokens=_tokens(metadata, weights),
        notes=notes,
        plugins=_plugins(config),
    )


def _tokens(metadata: Mapping[str, Any], weights: Path) -> int | None:
    """Return the budget that the runner's configuration states, or our own metadata."""
    runner = read_json(weights.with_name("runner_cfg.json"), wanted=False)
    own = metadata.get("saebench") or {}
    training = own.get("cell", {}).get("training", {}) if isinstance(own, dict) else {}
    steps, batch = count(training.get("steps")), count(training.get("batch_size"))
    stated = (runner.get("training_tokens"), metadata.get("training_tokens"), training.get("tokens"))
    found = next((number for number in map(count, stated) if number is not None), None)
    return found if found is not None else steps * batch if steps and batch else None
