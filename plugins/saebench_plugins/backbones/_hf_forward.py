"""Forward passes of a language model that are read, or patched, after one decoder layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saebench_core import InputError, Patch, PluginError

__all__ = ["hidden_of", "hooked", "patched", "rows_after", "same_logits", "stopped_after", "with_hidden"]

_AXES: Final = 3
_ROUNDING: Final = 0.05
"""Share of the largest logit by which a model may differ, in bf16, if it computes the same in another way."""


class _StopForward(Exception):
    """Leaves a forward pass at the site; nothing after it is computed."""


@torch.no_grad()
def rows_after(
    layer: nn.Module, kept: Bool[Tensor, "sequences length"], forward: Callable[[], object]
) -> Float[Tensor, "kept d_in"]:
    """Return the kept tokens' activations after a layer, fp32; the forward pass ends there."""
    return hidden_of(stopped_after(layer, forward))[kept].to(torch.float32)


@torch.no_grad()
def stopped_after(layer: nn.Module, forward: Callable[[], object]) -> Any:
    """Return what a layer returns; the forward pass ends there."""
    found: list[Any] = []

    def stop(module: nn.Module, inputs: object, output: Any) -> None:
        found.append(output)
        raise _StopForward

    with hooked(layer, stop), contextlib.suppress(_StopForward):
        forward()
    return found[0]


@torch.no_grad()
def patched(
    layer: nn.Module, kept: Bool[Tensor, "sequences length"], patch: Patch | None, forward: Callable[[], Any]
) -> Any:
    """Return what a forward pass returns while ``patch`` replaces the kept tokens' activations after a layer.

    Raises:
        PluginError: if the patch returns another shape than it was given.
    """

    def replace(module: nn.Module, inputs: object, output: Any) -> Any:
        if patch is None or not kept.any():
            return output
        hidden = hidden_of(output).clone()
        rows = hidden[kept].to(torch.float32)
        new = patch(rows)
        if new.shape != rows.shape:
            raise PluginError(f"a patch returned {tuple(new.shape)} for activations {tuple(rows.shape)}")
        hidden[kept] = new.to(hidden.dtype)
        return with_hidden(output, hidden)

    with hooked(layer, replace):
        return forward()


def hidden_of(output: Any) -> Tensor:
    """Return the residual stream of a decoder layer's output: a tensor, or what begins with it.

    Raises:
        InputError: if that is not of ``(sequences, length, width)``, as of a model that has several streams.
    """
    hidden = cast(Tensor, output if isinstance(output, Tensor) else output[0])
    if hidden.ndim != _AXES:
        raise InputError(
            f"the model's layers return activations of the shape {tuple(hidden.shape)}; hf_lm reads models whose "
            "layers return (sequences, tokens, width)"
        )
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return a decoder layer's output with another residual stream."""
    if isinstance(output, Tensor):
        return hidden
    return type(output)([hidden, *output[1:]])


@contextlib.contextmanager
def hooked(layer: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Let ``hook(module, inputs, output)`` see, and replace, what a layer returns."""
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def same_logits(found: Tensor, whole: Tensor) -> bool:
    """Say whether logits are the same up to rounding; where one is not a number, they are not."""
    return bool((found - whole).abs().max() <= _ROUNDING * whole.abs().max())
