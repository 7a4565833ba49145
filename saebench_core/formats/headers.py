"""Sizes of an SAE in a file, and which files it is made of: reads headers, no weights."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch

from saebench_core.errors import InputError
from saebench_core.formats import dictionary_learning, gemma_scope, saelens, sparsify

__all__ = ["companions", "sizes"]

_ENCODERS: Final = ("W_enc", "w_enc", "encoder.weight")
_BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    saelens.NAME: ("cfg.json", "activation_scaler.json", "runner_cfg.json"),
    dictionary_learning.NAME: ("config.json", "../config.json"),
    gemma_scope.NAME: (),
    sparsify.NAME: ("cfg.json", "../config.json"),
}


def companions(name: str, weights: Path) -> dict[str, Path]:
    """Return the file with the weights and the files that are read with it, by their names as seen from its folder.

    A file above the folder counts only where the folder has none of its name.
    """
    folder = weights.absolute().parent
    found = {weights.name: weights}
    for other in _BESIDE[name]:
        if (folder / other).is_file() and other.removeprefix("../") not in found:
            found[other] = folder / other
    return found


def sizes(name: str, weights: Path) -> tuple[int, int]:
    """Return ``d_in`` and ``d_sae`` of an SAE.

    Args:
        name: its format.
        weights: the file with its weights.

    Raises:
        InputError: if the file has no encoder, or no header.
    """
    shapes = _HEADERS[name](weights)
    found = next((key for key in _ENCODERS if len(shapes.get(key, ())) == 2), None)
    if found is None:
        raise InputError(f"{weights}: no encoder here; there are: {', '.join(sorted(shapes)) or 'no tensors'}")
    first, second = shapes[found]
    return (second, first) if found == "encoder.weight" else (first, second)


def _safetensors(weights: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: cannot be read as safetensors ({error})") from error


def _torch(weights: Path) -> dict[str, tuple[int, ...]]:
    state = dictionary_learning.read_state(weights, torch.device("meta"))
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _npz(weights: Path) -> dict[str, tuple[int, ...]]:
    from numpy.lib import format as npy

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(weights) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    major, _ = npy.read_magic(stream)
                    read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
                    shapes[name.removesuffix(".npy")] = read(stream)[0]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{weights}: cannot be read as an archive of numbers ({error})") from error
    return shapes


_HEADERS: Final[Mapping[str, Callable[[Path], dict[str, tuple[int, ...]]]]] = {
    saelens.NAME: _safetensors,
    dictionary_learning.NAME: _torch,
    gemma_scope.NAME: _npz,
    sparsify.NAME: _safetensors,
}
