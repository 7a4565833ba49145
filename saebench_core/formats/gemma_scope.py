"""Reads Gemma Scope's ``params.npz``; what it was trained on is in the names of its folders only."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.formats.checkpoint import Checkpoint, Facts, assemble
from saebench_core.rules import JumpReLU

__all__ = ["NAME", "WEIGHTS", "read"]

NAME: Final = "gemma_scope"
WEIGHTS: Final = "params.npz"
_TENSORS: Final = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_PLACES: Final = {"res": "residual stream after the layer", "mlp": "output of the MLP", "att": "heads before W_O"}


def read(weights: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        weights: ``params.npz``.

    Raises:
        InputError: if it cannot be read, or is a transcoder.
    """
    path = weights.absolute().as_posix()
    if re.search(r"gemma-scope-[^/]*transcoder", path):
        raise InputError(f"{weights}: a transcoder; only SAEs, which read and write one site, can be read")
    tensors = _arrays(weights)
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise InputError(f"{weights}: no array {', '.join(missing)}; there are: {', '.join(sorted(tensors))}")
    notes: tuple[str, ...] = ()
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise InputError(f"{weights}: scaling_factor is not one; multiply the rows of W_dec by it, and remove it")
    if "embedding" in weights.absolute().parts[-4:-1]:
        root = tensors["W_enc"].shape[0] ** 0.5  # trained on embeddings that the model multiplies by this root
        tensors |= {"W_enc": tensors["W_enc"] / root, "W_dec": tensors["W_dec"] * root}
        notes = ("scale of embeddings",)
    return Checkpoint(assemble(weights, tensors, JumpReLU(), "none"), _facts(path, notes))


def _arrays(weights: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(weights, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(np.asarray(archive[name], dtype=np.float32)) for name in archive.files}
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{weights}: cannot be read as an archive of numbers; arrays of objects are not unpickled"
        ) from error
    return {f"W_{name[2:]}" if name.startswith("w_") else name: array for name, array in arrays.items()}


def _facts(path: str, notes: tuple[str, ...]) -> Facts:
    layer = re.search(r"layer_(\d+)", path)
    l0 = re.search(r"average_l0_(\d+)", path)
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", path)
    model = f"gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else None
    return Facts(
        NAME,
        "jumprelu",
        model=model,
        layer=int(layer[1]) if layer else None,
        hook=_PLACES[release[3]] if release else None,
        k=float(l0[1]) if l0 else None,
        notes=notes,
    )
