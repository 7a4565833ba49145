"""A sentence encoder of transformers: mean over tokens, norm one."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core import InputError, file_sha256, locate

__all__ = ["Embed", "TextEncoder", "encoder_digest"]

Embed = Callable[[Sequence[str]], Float[Tensor, "texts width"]]
"""Returns a vector of norm one for each text."""

_AT_ONCE: Final = 64
_MAX_TOKENS: Final = 256


class TextEncoder:
    """Embeds texts, independently of the model that is examined.

    Raises:
        InputError: if the folder has no model that can be loaded.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = _folder(path) or path
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # no progress bar amid ours
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                model: Any = AutoModel.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"no text encoder could be loaded from {path!r}: {error}") from error
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Return the embeddings of texts, fp32, on the CPU."""
        parts = []
        for start in range(0, len(texts), _AT_ONCE):
            batch = self._tokenizer(
                list(texts[start : start + _AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            ).to(self._device)
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            parts.append(torch.nn.functional.normalize(mean.to(torch.float32), dim=1).cpu())
        return torch.cat(parts)


def _folder(path: str) -> str | None:
    """Return a local folder; None for a hub's name."""
    if path.startswith(("package:", ".", "/", "~")) or Path(path).exists():
        return str(locate(path))
    return None


def encoder_digest(path: str) -> str:
    """Return a digest of the encoder's files, or the name of a hub's."""
    folder = _folder(path)
    if folder is None:
        return path
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    digests = "".join(f"{file.relative_to(folder)} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()
