"""Pairs of prompts at work: the activation of a base's entity is replaced, and the model's answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core import EditableModel, Progress, TokenBatch
from saebench_plugins.metrics._entity_answers import gives
from saebench_plugins.metrics._known_prompts import Pair, Prompt, responses
from saebench_plugins.metrics._swap_masks import Basis, Fitting, fit_mask

__all__ = ["Outcome", "Stage", "record_states"]

_AT_ONCE: Final = 128
_ASKED_AT_ONCE: Final = 512


class Outcome(NamedTuple):
    """Shares of the pairs whose answer becomes the source's (cause), stays the base's (isolation), and their mean."""

    cause: float
    isolation: float

    @property
    def disentangled(self) -> float:
        """Mean of both."""
        return (self.cause + self.isolation) / 2


def record_states(model: EditableModel, site: str, prompts: Sequence[Prompt], max_tokens: int) -> dict[str, Tensor]:
    """Return tokens and the states at the site of all prompts, end to end, and where each prompt begins."""
    ids, states, lengths = [], [], []
    for start in range(0, len(prompts), _AT_ONCE):
        tokens = model.tokenise([prompt.text for prompt in prompts[start : start + _AT_ONCE]], max_tokens)
        found = model.states(tokens, site)
        ids.append(tokens.ids[tokens.attention].cpu())
        states.append(found[tokens.attention].cpu())
        lengths.append(tokens.attention.sum(1).cpu())
    ends = torch.cat(lengths).cumsum(0)
    return {"ids": torch.cat(ids), "states": torch.cat(states), "offsets": torch.cat([ends.new_zeros(1), ends])}


@dataclass(frozen=True)
class Stage:
    """A model, prompts that it knows, and their states at a site.

    Attributes:
        model: answers.
        site: where entities are swapped.
        prompts: what is asked.
        recorded: what `record_states` returned.
        words: tokens of an answer.
        device: where the model is.
        progress: is told how far a mask is learned.
    """

    model: EditableModel
    site: str
    prompts: Sequence[Prompt]
    recorded: Mapping[str, Tensor]
    words: int
    device: torch.device
    progress: Progress

    def entity_rows(self, numbers: Sequence[int]) -> Float[Tensor, "some d_in"]:
        """Return the activations of these prompts' entities, fp32."""
        places = torch.tensor([self.prompts[number].place for number in numbers], dtype=torch.int64, device="cpu")
        rows = self.recorded["offsets"].cpu()[torch.tensor(numbers, device="cpu")] + places
        return self.recorded["states"][rows.to(self.recorded["states"].device)].to(self.device, torch.float32)

    def _edited(self, numbers: Sequence[int], rows: Float[Tensor, "some d_in"]) -> tuple[TokenBatch, Tensor]:
        """Return tokens and states of prompts, padded on the right, with these activations of their entities."""
        offsets = self.recorded["offsets"].tolist()
        spans = [slice(offsets[number], offsets[number + 1]) for number in numbers]
        ids = _padded([self.recorded["ids"][span] for span in spans]).to(self.device)
        states = _padded([self.recorded["states"][span] for span in spans]).to(self.device)
        lengths = torch.tensor([span.stop - span.start for span in spans], device=self.device)
        attention = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        places = torch.tensor([self.prompts[number].place for number in numbers], device=self.device)
        where = (torch.arange(len(numbers), device=self.device), places)
        return TokenBatch(ids, attention, attention), states.index_put(where, rows.to(states.dtype))

    def fit(self, basis: Basis, pairs: Sequence[Pair], fitting: Fitting, label: str) -> Float[Tensor, " size"]:
        """Learn a mask on pairs; return its logits. ``label`` says what is learned, to who waits."""
        bases, sources = [pair.base for pair in pairs], [pair.source for pair in pairs]
        firsts = [self.prompts[pair.source if pair.kind == "cause" else pair.base].first for pair in pairs]
        targets: Int[Tensor, " pairs"] = torch.tensor(firsts, device=self.device)

        def logits(some: Sequence[int], rows: Tensor) -> Tensor:
            numbers = [bases[number] for number in some]
            tokens, states = self._edited(numbers, rows)
            own = torch.tensor([self.prompts[number].begin for number in numbers], device=self.device)
            return self.model.resume(tokens, self.site, states, own)

        rows = (self.entity_rows(bases), self.entity_rows(sources))
        return fit_mask(basis, *rows, targets, logits, fitting, partial(self.progress, f"ravel: {label}"))

    @torch.no_grad()
    def outcomes(self, pairs: Sequence[Pair], basis: Basis, gates: Sequence[Tensor]) -> list[Outcome]:
        """Return how the model answers with entities mixed by each of some gates.

        All are asked together: answers are generated for prompts of one length at a time, and more of them go faster.
        """
        rows = []
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            base = self.entity_rows([pair.base for pair in part])
            source = self.entity_rows([pair.source for pair in part])
            rows.append(torch.stack([basis.mixed(base, source, gate) for gate in gates]))
        return self._judged(pairs, torch.cat(rows, dim=1))

    @torch.no_grad()
    def untouched(self, pairs: Sequence[Pair]) -> Outcome:
        """Return how the model answers with nothing edited."""
        return self._judged(pairs, self.entity_rows([pair.base for pair in pairs])[None])[0]

    def _judged(self, pairs: Sequence[Pair], rows: Float[Tensor, "edits pairs d_in"]) -> list[Outcome]:
        right = self._answers(list(pairs) * len(rows), rows.flatten(0, 1))
        found = []
        for start in range(0, len(right), len(pairs)):
            mine = list(zip(pairs, right[start : start + len(pairs)], strict=True))
            sides = [[answer for pair, answer in mine if pair.kind == kind] for kind in ("cause", "isolation")]
            found.append(Outcome(*(sum(side) / max(1, len(side)) for side in sides)))
        return found

    def _answers(self, pairs: Sequence[Pair], rows: Float[Tensor, "pairs d_in"]) -> list[bool]:
        """Say of each pair whether the answer is the source's (cause) or still the base's (isolation)."""
        offsets = self.recorded["offsets"].tolist()
        lengths = [offsets[pair.base + 1] - offsets[pair.base] for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda number: lengths[number])
        right = [False] * len(pairs)
        for start in range(0, len(order), _ASKED_AT_ONCE):
            part = order[start : start + _ASKED_AT_ONCE]
            for number, found in zip(
                part, self._some_answers([pairs[number] for number in part], rows[part]), strict=True
            ):
                right[number] = found
        return right

    def _some_answers(self, pairs: Sequence[Pair], rows: Float[Tensor, "pairs d_in"]) -> list[bool]:
        bases = [self.prompts[pair.base] for pair in pairs]
        values = [self.prompts[pair.source if pair.kind == "cause" else pair.base].value for pair in pairs]

        def edited(left: Sequence[int]) -> Tensor:
            return self._edited([pairs[number].base for number in left], rows[list(left)])[1]

        texts, _ = responses(self.model, self.site, bases, self.words, edited, values)
        checked = zip(texts, values, bases, strict=True)
        return [gives(text, value, base.attribute) for text, value, base in checked]


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
