"""Forward passes that begin at a site, or that go on in words from activations edited there."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saebench_core import InputError, TokenBatch
from saebench_plugins.backbones._hf_forward import hooked, stopped_after

__all__ = ["generated", "logits_from", "pieces_of", "place_of", "resumed", "states_after"]


@torch.no_grad()
def states_after(layer: nn.Module, forward: Callable[[], object]) -> Float[Tensor, "sequences length d_in"]:
    """Return the activations after a layer at every position, as the model computes them."""
    output = stopped_after(layer, forward)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def resumed(
    model: Any, layers: Sequence[nn.Module], tokens: TokenBatch, states: Float[Tensor, "sequences length d_in"]
) -> Float[Tensor, "sequences vocabulary"]:
    """Return fp32 logits after each sequence's last token, from ``states`` after the last of ``layers`` on.

    These layers, the model's first, are passed by: nothing of them is computed.
    """
    last = tokens.attention.sum(1) - 1
    with _passed_by(model, layers, tokens, states):
        return _logits_at(model, tokens, last)


@torch.no_grad()
def logits_from(
    model: Any, layers: Sequence[nn.Module], tokens: TokenBatch, states: Float[Tensor, "sequences length d_in"]
) -> Float[Tensor, "sequences length vocabulary"]:
    """Return fp32 logits at every position, from ``states`` after the last of ``layers`` on, these passed by."""
    with _passed_by(model, layers, tokens, states):
        mask = tokens.attention.to(torch.int64)
        output = model(input_ids=tokens.ids, attention_mask=mask, use_cache=False)
    return cast(Tensor, output.logits.to(torch.float32))


@contextlib.contextmanager
def _passed_by(model: Any, layers: Sequence[nn.Module], tokens: TokenBatch, states: Tensor) -> Iterator[None]:
    """Let layers return what they are given, and the last of them ``states``."""
    first = tokens.ids[:1, :1]
    output = stopped_after(layers[-1], lambda: model(input_ids=first, use_cache=False))
    in_tuple = isinstance(output, tuple)

    def give(hidden: Tensor) -> Any:
        return (hidden,) if in_tuple else hidden

    def hand_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        return give(hidden_states)

    def replace(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        return give(states)

    try:
        for layer in layers[:-1]:
            layer.__dict__["forward"] = hand_on
        layers[-1].__dict__["forward"] = replace
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _logits_at(model: Any, tokens: TokenBatch, places: Int[Tensor, " sequences"]) -> Tensor:
    """Return the logits at one place of each sequence; the output layer sees no others where the model allows it."""
    wanted, index = torch.unique(places, return_inverse=True)
    options = _only(model, wanted)
    index = index if options else places
    mask = tokens.attention.to(torch.int64)
    logits = model(input_ids=tokens.ids, attention_mask=mask, use_cache=False, **options).logits
    found: Tensor = logits[torch.arange(len(index), device=logits.device), index].to(torch.float32)
    return found


def _only(model: Any, wanted: Any) -> dict[str, Any]:
    """Return what keeps a model from computing other logits than these, where it knows such an option."""
    return {"logits_to_keep": wanted} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


@torch.no_grad()
def generated(
    model: Any, layer: nn.Module, tokens: TokenBatch, count: int, states: Tensor | None
) -> Int[Tensor, "sequences count"]:
    """Return the likeliest next tokens, one after the other.

    Sequences of one length go together, so that none is padded: what is generated does not hang on its company.
    """
    lengths = tokens.attention.sum(1)
    found = tokens.ids.new_zeros(len(tokens.ids), count)
    for length in sorted(set(lengths.tolist())):
        group = (lengths == length).nonzero()[:, 0]
        part = None if states is None else states[group, :length]
        found[group] = _continued(model, layer, tokens.ids[group, :length], count, part)
    return found


def _continued(model: Any, layer: nn.Module, ids: Tensor, count: int, states: Tensor | None) -> Tensor:
    def replace(module: nn.Module, inputs: object, output: Any) -> Any:
        if states is None:
            return output
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with hooked(layer, replace):
        output = model(input_ids=ids, use_cache=True, **_only(model, 1))
    chosen = [output.logits[:, -1].argmax(-1)]
    while len(chosen) < count:
        output = model(input_ids=chosen[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        chosen.append(output.logits[:, -1].argmax(-1))
    return torch.stack(chosen, dim=1)


def place_of(tokenizer: Any, text: str, character: int) -> int:
    """Return the place of the last token that holds a character, special tokens not counted.

    Raises:
        InputError: if the tokenizer does not say where its tokens are, or none holds the character.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} does not say where tokens are in a text; a fast tokenizer does")
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    places = [place for place, (start, end) in enumerate(spans) if start <= character < end]
    if not places:
        raise InputError(f"no token of {text!r:.80} holds its character {character}")
    return places[-1]


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return what each token adds to the text of those before it.

    A character that is spread over several tokens goes to the last of them; until then decoders write U+FFFD.
    """
    found: list[str] = []
    text = ""
    for end in range(1, len(ids) + 1):
        longer = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        if longer.endswith("\ufffd") and end < len(ids):
            found.append("")
            continue
        found.append(longer[len(text) :])
        text = longer
    return found
