"""A model's first layers, which need not be computed where what they return is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saebench_plugins.backbones._hf_forward import hidden_of, hooked, same_logits, stopped_after, with_hidden

__all__ = ["FirstLayers"]


class FirstLayers:
    """The layers up to a site.

    They are passed by, unless a later layer needs more of them than what the last one returns (keys and values that
    layers share, or states of their own). Which it is shows in a trial, once.
    """

    def __init__(self, model: Any, layers: Sequence[nn.Module]) -> None:
        self._model = model
        self._layers = layers
        self._can: bool | None = None

    @contextlib.contextmanager
    def return_instead(self, ids: Tensor, states: Tensor) -> Iterator[None]:
        """Let the last of the layers return ``states (sequences, length, d_in)`` for tokens like ``ids``."""
        if self._can is None:
            self._can = self._try()
        given = self._passed_by(ids, states) if self._can else self._replaced(states)
        with given:
            yield

    @torch.no_grad()
    def _try(self) -> bool:
        """Return whether logits are the same, up to rounding, without the layers."""
        ids = torch.arange(6, device=self._model.device).reshape(2, 3)
        whole = self._model(input_ids=ids, use_cache=False).logits
        states = hidden_of(stopped_after(self._layers[-1], lambda: self._model(input_ids=ids, use_cache=False)))
        try:
            with self._passed_by(ids, states):
                found = self._model(input_ids=ids, use_cache=False).logits
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False  # whatever a model says that misses something
        return same_logits(found, whole)

    @contextlib.contextmanager
    def _replaced(self, states: Tensor) -> Iterator[None]:
        """Compute all layers, and replace what the last one returns."""

        def replace(module: nn.Module, inputs: object, output: Any) -> Any:
            return with_hidden(output, states)

        with hooked(self._layers[-1], replace):
            yield

    @contextlib.contextmanager
    def _passed_by(self, ids: Tensor, states: Tensor) -> Iterator[None]:
        """Let layers return what they are given, and the last of them ``states``."""
        first, last = ids[:1, :1], self._layers[-1]
        output = stopped_after(last, lambda: self._model(input_ids=first, use_cache=False))
        alone = output if isinstance(output, Tensor) else output[:1]

        def hand_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
            return with_hidden(alone, hidden_states)

        def replace(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
            return with_hidden(alone, states)

        try:
            for layer in self._layers[:-1]:
                layer.__dict__["forward"] = hand_on
            last.__dict__["forward"] = replace
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)
