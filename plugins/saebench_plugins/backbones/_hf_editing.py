"""Forward passes that begin at a site, or that go on in words from activations edited there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saebench_core import InputError, TokenBatch
from saebench_plugins.backbones._hf_beginnings import Beginnings, Begun, last_output
from saebench_plugins.backbones._hf_forward import hidden_of, hooked, stopped_after, with_hidden
from saebench_plugins.backbones._hf_passing import FirstLayers

__all__ = ["generated", "logits_from", "pieces_of", "place_of", "resumed", "states_after"]

_SIDE_BY_SIDE: Final = 128


@torch.no_grad()
def states_after(layer: nn.Module, forward: Callable[[], object]) -> Float[Tensor, "sequences length d_in"]:
    """Return the activations after a layer at every position, as the model computes them."""
    return hidden_of(stopped_after(layer, forward))


def resumed(
    model: Any, layers: FirstLayers, begun: Begun, states: Float[Tensor, "sequences length d_in"]
) -> Float[Tensor, "sequences vocabulary"]:
    """Return fp32 logits after each sequence's last token, from ``states`` after the last of ``layers`` on."""
    with layers.return_instead(begun.ids, begun.rest_of(states)):
        found: Tensor = last_output(model, begun).logits[:, 0].to(torch.float32)
    return found


@torch.no_grad()
def logits_from(
    model: Any, layers: FirstLayers, tokens: TokenBatch, states: Float[Tensor, "sequences length d_in"]
) -> Float[Tensor, "sequences length vocabulary"]:
    """Return fp32 logits at every position, from ``states`` after the last of ``layers`` on."""
    with layers.return_instead(tokens.ids, states):
        mask = tokens.attention.to(torch.int64)
        output = model(input_ids=tokens.ids, attention_mask=mask, use_cache=False)
    return cast(Tensor, output.logits.to(torch.float32))


@torch.no_grad()
def generated(
    model: Any,
    layer: nn.Module,
    beginnings: Beginnings,
    tokens: TokenBatch,
    count: int,
    states: Tensor | None,
    own: Int[Tensor, " sequences"] | None,
) -> Int[Tensor, "sequences count"]:
    """Return the likeliest next tokens, one after the other.

    Sequences of which about equally much is left to compute go side by side, if the model can; else those of one
    length, so that none is padded.
    """
    lengths = tokens.attention.sum(1)
    if beginnings.can_pad(tokens, count):
        left = lengths if own is None else lengths - own
        groups = torch.split(left.argsort(stable=True), _SIDE_BY_SIDE)
    else:
        groups = tuple((lengths == length).nonzero()[:, 0] for length in sorted(set(lengths.tolist())))
    found = tokens.ids.new_zeros(len(tokens.ids), count)
    for group in groups:
        some = TokenBatch(*(tensor[group] for tensor in tokens))
        begun = beginnings.begun(some, None if own is None else own[group], count)
        found[group] = _continued(model, layer, begun, count, None if states is None else states[group])
    return found


def _continued(model: Any, layer: nn.Module, begun: Begun, count: int, states: Tensor | None) -> Tensor:
    given = None if states is None else begun.rest_of(states)

    def replace(module: nn.Module, inputs: object, output: Any) -> Any:
        if given is None:
            return output
        hidden = torch.cat([given, hidden_of(output)[:, given.shape[1] :]], dim=1)  # more only of a model without past
        return with_hidden(output, hidden)

    def edited() -> Any:
        with hooked(layer, replace):
            return last_output(model, begun, use_cache=True)

    output = edited()
    chosen = [output.logits[:, 0].argmax(-1)]
    while len(chosen) < count:
        past = getattr(output, "past_key_values", None)
        begun = begun.extended(chosen[-1]) if past is None else begun.longer(chosen[-1], past)
        output = edited() if past is None else last_output(model, begun)
        chosen.append(output.logits[:, 0].argmax(-1))
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
