"""Tokenised documents packed into sequences of one length, each document in one split only."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from saebench_core.interfaces.context import Split

__all__ = ["PackedSequences", "Packing", "pack_documents", "split_of_text"]

_BATCH: Final = 512


def split_of_text(text: str, seed: int, holdout: float) -> Split:
    """Return the split of a document, decided by its text alone, so that equal texts never part.

    Args:
        text: the document.
        seed: another seed gives another partition.
        holdout: share of the documents in each of evaluation and calibration.
    """
    digest = hashlib.sha256(f"{seed}\x1f{text}".encode("utf-8", "replace")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < holdout:
        return "evaluation"
    return "calibration" if share < 2 * holdout else "train"


@dataclass(frozen=True)
class Packing:
    """How token ids become sequences.

    Documents follow one another, separated by ``eos``, and are cut into sequences of ``length`` tokens that each
    begin with ``bos``. Special tokens are read by the model and not kept.

    Attributes:
        length: tokens in a sequence.
        bos: token that begins every sequence, or None.
        eos: token between documents, or None.
        special: tokens whose positions are not kept.
        skip_first: leading ordinary tokens of a sequence that are not kept either.
    """

    length: int
    bos: int | None
    eos: int | None
    special: frozenset[int]
    skip_first: int

    def kept(self, ids: Sequence[int]) -> int:
        """Return how many positions of one sequence are kept."""
        return max(0, sum(token not in self.special for token in ids) - self.skip_first)


@dataclass
class PackedSequences:
    """Sequences of a split: ``ids`` end to end, and the number of tokens and of kept positions of each.

    All sequences but the last have the full length; the last may be shorter.
    """

    ids: array[int] = field(default_factory=lambda: array("i"))
    lengths: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    rows: int = 0
    _rest: array[int] = field(default_factory=lambda: array("i"))

    def add(self, ids: Sequence[int], packing: Packing) -> None:
        """Append a document's tokens."""
        self._rest.extend(ids)
        if packing.eos is not None:
            self._rest.append(packing.eos)
        body = packing.length - (packing.bos is not None)
        start = 0
        while len(self._rest) - start >= body:
            self._close(self._rest[start : start + body], packing)
            start += body
        del self._rest[:start]

    def finish(self, packing: Packing) -> None:
        """Close the last, shorter sequence."""
        if self._rest:
            self._close(self._rest, packing)
            self._rest = array("i")

    def _close(self, body: array[int], packing: Packing) -> None:
        sequence = body if packing.bos is None else array("i", [packing.bos]) + body
        kept = packing.kept(sequence)
        self.ids.extend(sequence)
        self.lengths.append(len(sequence))
        self.kept.append(kept)
        self.rows += kept


def pack_documents(
    documents: Iterable[str],
    tokenise: Callable[[list[str]], list[list[int]]],
    packing: Packing,
    place: Callable[[str], Split],
    goals: Mapping[Split, int],
    report: Callable[[int], None],
) -> dict[Split, PackedSequences]:
    """Tokenise and pack documents until every split has its number of kept positions, or the documents end.

    A text that comes again is left out. Documents are read no further than needed; a split that is full takes no more.

    Args:
        documents: texts.
        tokenise: returns token ids without special tokens, for several texts at once.
        packing: how ids become sequences.
        place: returns a text's split.
        goals: kept positions that each split shall have.
        report: is told how many all splits have so far.
    """
    packed = {split: PackedSequences() for split in goals}
    texts = _unique(documents)
    while any(packed[split].rows < goal for split, goal in goals.items()) and (batch := list(islice(texts, _BATCH))):
        for text, ids in zip(batch, tokenise(batch), strict=True):
            split = place(text)
            if packed[split].rows < goals[split]:
                packed[split].add(ids, packing)
        report(sum(min(packed[split].rows, goal) for split, goal in goals.items()))
    for part in packed.values():
        part.finish(packing)
    return packed


def _unique(texts: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for text in texts:
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).digest()
        if digest not in seen:
            seen.add(digest)
            yield text
