"""Reads SAEs that other libraries wrote: one file a format, and the format is told from the files in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from saebench_core.errors import InputError, nearest
from saebench_core.formats import dictionary_learning, gemma_scope, saelens, sparsify
from saebench_core.formats.checkpoint import Checkpoint, Facts
from saebench_core.formats.headers import companions, sizes
from saebench_core.rules import Rule
from saebench_core.sae import inference_rule

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointFormat",
    "Facts",
    "checkpoint_files",
    "checkpoint_plugins",
    "checkpoint_sizes",
    "find_weights",
    "read_checkpoint",
]

CheckpointFormat = Literal["auto", "saelens", "dictionary_learning", "gemma_scope", "sparsify"]

FORMATS: Final[Mapping[str, str]] = {
    module.NAME: module.WEIGHTS for module in (saelens, dictionary_learning, gemma_scope, sparsify)
}
"""Every format, and the file in a folder that it is known by."""

_READERS: Final[Mapping[str, Callable[[Path], Checkpoint]]] = {
    dictionary_learning.NAME: dictionary_learning.read,
    gemma_scope.NAME: gemma_scope.read,
    sparsify.NAME: sparsify.read,
}


def read_checkpoint(
    path: Path,
    format: str = "auto",
    device: str = "cpu",
    rule_of: Callable[[Mapping[str, Any]], Rule] = inference_rule,
) -> Checkpoint:
    """Read an SAE; the result acts on raw activations, whatever was scaled in training.

    Args:
        path: the folder, or the file with the weights.
        format: one of `FORMATS`, or ``auto``.
        device: where to put the tensors.
        rule_of: for the SAELens format, gives the rule of an architecture that it does not know itself.

    Raises:
        InputError: with what was found and what is allowed.
    """
    name, weights = find_weights(path, format)
    found = saelens.read(weights, rule_of) if name == saelens.NAME else _READERS[name](weights)
    return Checkpoint(found.sae.to(torch.device(device)), found.facts)


def find_weights(path: Path, format: str = "auto") -> tuple[str, Path]:
    """Return the format and the file with the weights.

    Args:
        path: the folder, or the file with the weights.
        format: one of `FORMATS`, or ``auto``.

    Raises:
        InputError: if the format is unknown, or the files do not tell one.
    """
    if format != "auto" and format not in FORMATS:
        raise InputError(f"format {format!r} is unknown{nearest(format, FORMATS)}; allowed: auto, {', '.join(FORMATS)}")
    if path.is_file():
        return (_told_by(path) if format == "auto" else format), path
    names = FORMATS if format == "auto" else [format]
    hits = [name for name in names if (path / FORMATS[name]).is_file()]
    if len(hits) == 1:
        return hits[0], path / FORMATS[hits[0]]
    if hits:
        raise InputError(f"{path}: holds files of several formats ({', '.join(hits)}); say which with `format`")
    raise InputError(f"{path}: no SAE here: {_nothing(path, names)}")


def checkpoint_sizes(path: Path, format: str = "auto") -> tuple[int, int]:
    """Return ``d_in`` and ``d_sae`` of an SAE, from headers only; the arguments are those of `read_checkpoint`.

    Raises:
        InputError: if the file has no encoder, or no header.
    """
    return sizes(*find_weights(path, format))


def checkpoint_files(path: Path, format: str = "auto") -> dict[str, Path]:
    """Return the files that `read_checkpoint` reads with these arguments, by their names as seen from the folder.

    Raises:
        InputError: if the format is unknown, or the files do not tell one.
    """
    return companions(*find_weights(path, format))


def checkpoint_plugins(path: Path, format: str = "auto") -> dict[str, Any]:
    """Return the entries of the plugins whose rule an SAE has, by kind; the arguments are those of `read_checkpoint`.

    Raises:
        InputError: if the files do not tell a format, or cannot be read.
    """
    name, weights = find_weights(path, format)
    return saelens.plugins(weights) if name == saelens.NAME else {}


def _nothing(path: Path, names: Mapping[str, str] | list[str]) -> str:
    wanted = ", ".join(f"{FORMATS[name]} ({name})" for name in names)
    if not path.is_dir():
        return f"no such file or folder; expected a folder with one of {wanted}"
    there = sorted(place.name + "/" * place.is_dir() for place in path.iterdir() if not place.name.startswith("."))
    shown = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
    return f"expected a folder with one of {wanted}; there are: {shown or 'no files'}"


def _told_by(weights: Path) -> str:
    """Return the format that a file's name tells; dictionary_learning names its checkpoints by their step."""
    for name, known in FORMATS.items():
        if weights.name == known or (name == dictionary_learning.NAME and weights.suffix == ".pt"):
            return name
    known_files = ", ".join(f"{file} ({name})" for name, file in FORMATS.items())
    raise InputError(f"{weights}: the name tells no format; say it with `format`, or give one of {known_files}")
