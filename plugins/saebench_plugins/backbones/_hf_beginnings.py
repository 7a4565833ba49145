"""Beginnings that many sequences share: their keys and values are computed once, and gone on from."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import OrderedDict
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from saebench_core import TokenBatch
from saebench_plugins.backbones._hf_forward import same_logits

__all__ = ["Beginnings", "Begun", "last_output"]

_KEPT: Final = 512
"""Beginnings kept, the latest used: as many as there are templates of several kinds of entities."""

_Ids = tuple[int, ...]
_Pairs = list[tuple[Tensor, Tensor]]


class Begun(NamedTuple):
    """What is left to compute of sequences whose beginnings are computed.

    Attributes:
        ids: the other tokens, padded on the right.
        attention: which places are taken: those of the beginnings, padded on the left, then those of ``ids``.
        places: of ``ids`` in their sequences; those of padding are the last token's.
        left: how many of ``ids`` belong to each sequence.
        past: keys and values of the beginnings, as the model wants them; None if there is no beginning.
    """

    ids: Int[Tensor, "sequences rest"]
    attention: Bool[Tensor, "sequences begun_and_rest"]
    places: Int[Tensor, "sequences rest"]
    left: Int[Tensor, " sequences"]
    past: Any

    def options(self, model: Any) -> dict[str, Any]:
        """Return what the model is called with."""
        found: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.attention.to(torch.int64)}
        if self.past is None:
            return {**found, "use_cache": False}
        found |= {"past_key_values": self.past, "use_cache": True}
        has_places = "position_ids" in inspect.signature(model.forward).parameters
        return found | ({"position_ids": self.places} if has_places else {})

    def longer(self, ids: Int[Tensor, " sequences"], past: Any) -> Begun:
        """Return what is left after these sequences, each with one more token."""
        attention = torch.cat([self.attention, torch.ones_like(self.attention[:, :1])], dim=1)
        places = self.places.amax(1, keepdim=True) + 1
        return Begun(ids[:, None], attention, places, torch.ones_like(self.left), past)

    def extended(self, ids: Int[Tensor, " sequences"]) -> Begun:
        """Return these sequences, each with one more token, all to be computed: of one length, nothing begun."""
        attention = torch.cat([self.attention, torch.ones_like(self.attention[:, :1])], dim=1)
        places = torch.cat([self.places, self.places[:, -1:] + 1], dim=1)
        return Begun(torch.cat([self.ids, ids[:, None]], dim=1), attention, places, self.left + 1, None)

    def rest_of(self, values: Tensor) -> Tensor:
        """Return a tensor of ``(sequences, length, ...)`` at the places of ``ids``."""
        return values[torch.arange(len(values), device=values.device)[:, None], self.places]


class Beginnings:
    """The beginnings that a model has computed.

    Not every model can go on from keys and values, of sequences of unequal length side by side: one that carries other
    states, or sees so few tokens back that the padding between counts, or does not give the same logits then, computes
    everything, of sequences of one length at a time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: OrderedDict[_Ids, _Pairs] = OrderedDict()
        self._reach: float | None = None

    def can_pad(self, tokens: TokenBatch, count: int = 0) -> bool:
        """Say whether sequences may be padded anywhere, with so many tokens to come."""
        if self._reach is None:
            self._reach = self._measured_reach()
        return 2 * tokens.ids.shape[1] + count <= self._reach

    def begun(self, tokens: TokenBatch, own: Int[Tensor, " sequences"] | None, count: int = 0) -> Begun:
        """Return what is left to compute of sequences, with so many tokens to come.

        The first ``own`` tokens of each are left out, but not its last one.
        """
        lengths = tokens.attention.sum(1)
        if own is None or not self.can_pad(tokens, count):
            return self._begun(tokens, torch.zeros_like(lengths))
        return self._begun(tokens, torch.minimum(own.to(lengths), lengths - 1))

    def _begun(self, tokens: TokenBatch, own: Int[Tensor, " sequences"]) -> Begun:
        lengths, begun = tokens.attention.sum(1), int(own.max())
        left = lengths - own
        ahead = torch.arange(int(left.max()), device=own.device)
        attention = ahead < left[:, None]
        places = torch.minimum(own[:, None] + ahead, lengths[:, None] - 1)
        behind = torch.arange(begun, device=own.device) >= begun - own[:, None]
        past = self._past(tokens.ids, own) if begun else None
        found = Begun(tokens.ids, torch.cat([behind, attention], dim=1), places, left, past)
        return found._replace(ids=found.rest_of(tokens.ids))

    @torch.no_grad()
    def _past(self, ids: Tensor, own: Tensor) -> Any:
        """Return keys and values of the beginnings, padded on the left, one set a sequence."""
        from transformers import DynamicCache

        begin = [tuple(row[:count]) for row, count in zip(ids.tolist(), own.tolist(), strict=True)]
        number = {one: place for place, one in enumerate(dict.fromkeys(begin))}
        longest = self._computed(max(begin, key=len), ids.device)
        nothing = [(keys[:, :0], values[:, :0]) for keys, values in longest]
        several = [self._computed(one, ids.device) if one else nothing for one in number]
        chosen = torch.tensor([number[one] for one in begin], device=ids.device)
        past, length = DynamicCache(), int(own.max())
        for layer in range(len(longest)):
            keys = torch.stack([_padded(pairs[layer][0], length) for pairs in several])
            values = torch.stack([_padded(pairs[layer][1], length) for pairs in several])
            past.update(keys[chosen], values[chosen], layer)
        return past

    def _computed(self, ids: _Ids, device: torch.device) -> _Pairs:
        """Return each layer's keys and values of a beginning."""
        if ids not in self._kept:
            past = self._model(input_ids=torch.tensor([ids], device=device), use_cache=True).past_key_values
            self._kept[ids] = [(layer.keys[0], layer.values[0]) for layer in past.layers]
        self._kept.move_to_end(ids)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[ids]

    @torch.no_grad()
    def _measured_reach(self) -> float:
        """Return how many tokens back every layer sees; 0 if the model cannot go on from keys and values.

        It can if the logits are the same, up to rounding, after what is padded before, between and behind.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        ids = torch.arange(14, device=self._model.device).reshape(2, 7)
        past = getattr(self._model(input_ids=ids[:, :2], use_cache=True), "past_key_values", None)
        layers: list[Any] = past.layers if isinstance(past, DynamicCache) else []
        plain = (DynamicLayer, DynamicSlidingWindowLayer)  # and none of their kinds, which hold more
        if not layers or any(type(layer) not in plain or not layer.is_initialized for layer in layers):
            return 0
        some = torch.ones_like(ids[:, :6], dtype=torch.bool)
        begun = self._begun(TokenBatch(ids[:, :6], some, some), torch.tensor([4, 1], device=ids.device))
        output = last_output(self._model, begun)
        found = last_output(self._model, begun.longer(ids[:, 6], output.past_key_values)).logits[:, 0]
        whole = self._model(input_ids=ids).logits[:, -1]
        if not same_logits(found, whole):
            return 0
        return min((layer.sliding_window for layer in layers if layer.is_sliding), default=math.inf)


def _padded(part: Tensor, length: int) -> Tensor:
    """Return keys or values ``(heads, tokens, width)`` with zeros before them, up to so many tokens."""
    return torch.nn.functional.pad(part, (0, 0, length - part.shape[1], 0))


def last_output(model: Any, begun: Begun, **options: object) -> Any:
    """Return what a model returns, with ``logits (sequences, 1, vocabulary)`` after each last token alone.

    An output layer that is a module of its own is given no other token.
    """
    rows, last = torch.arange(len(begun.left), device=begun.left.device), begun.left - 1
    chosen = False

    def choose(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal chosen
        chosen = True
        return (inputs[0][rows, last][:, None], *inputs[1:])

    head: nn.Module | None = model.get_output_embeddings()
    with contextlib.ExitStack() as hooks:
        if head is not None:
            hooks.callback(head.register_forward_pre_hook(choose).remove)
        output = model(**begun.options(model) | options)
    if not chosen:
        output.logits = output.logits[rows, last][:, None]
    return output
