"""The corpus of a language model: tokenised and packed once, then kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saebench_core import Context, Json, Split, TextSource, pack_documents
from saebench_plugins.backbones._hf_loading import Tokens

__all__ = ["Corpus", "packed_corpora"]


@dataclass(frozen=True)
class Corpus:
    """Packed sequences of a split, on the CPU: all of one length but the last."""

    ids: Tensor
    lengths: Tensor
    kept: Tensor

    @property
    def rows(self) -> int:
        """Number of kept positions."""
        return int(self.kept.sum())


def packed_corpora(
    source: TextSource,
    tokens: Tokens,
    goals: Mapping[Split, int],
    split_of: Callable[[str], Split],
    identity: Mapping[str, Json],
    context: Context,
) -> dict[Split, Corpus]:
    """Return the corpus of each split from the store; it is packed if it is not there.

    Args:
        source: where the documents come from.
        tokens: the tokenizer.
        goals: rows at which each split is cut.
        split_of: says which split a document belongs to.
        identity: all that the packed corpus depends on.
        context: gives store and progress.
    """
    from safetensors.torch import load_file, save_file

    def build(folder: Path) -> None:
        packed = pack_documents(
            source.documents(),
            tokens.encode,
            tokens.packing,
            split_of,
            goals,
            lambda done: context.progress("tokenise", done, sum(goals.values())),
        )
        tensors = {
            f"{split}.{name}": torch.tensor(values, dtype=torch.int32)
            for split, part in packed.items()
            for name, values in {"ids": part.ids, "lengths": part.lengths, "kept": part.kept}.items()
        }
        save_file(tensors, folder / "corpus.safetensors")

    tensors = load_file(context.product(identity, build) / "corpus.safetensors")
    return {split: Corpus(*(tensors[f"{split}.{name}"] for name in ("ids", "lengths", "kept"))) for split in goals}
