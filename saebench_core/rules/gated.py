"""Gated: one threshold decides which latents fire, another scale how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection
from saebench_core.rules.base import Export, Rule, TensorInfo

__all__ = ["Gated"]


@final
@dataclass(frozen=True)
class Gated(Rule):
    """``z = [p + b_gate > 0] relu(exp(r_mag) p + b_mag)`` with ``p = (x - centre) W_enc`` (Rajamanoharan et al. 2024).

    The pre-activations that select are ``p + b_gate``. No gradient of the values reaches the gate; a loss on those
    pre-activations trains it.
    """

    bias_is_threshold: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    encoder_bias: ClassVar[str] = "b_gate"

    def tensors(self) -> Mapping[str, TensorInfo]:
        """Scale and bias of the magnitudes, of the encoder's side."""
        return {
            "b_mag": TensorInfo("bias", ("d_sae",)),
            "r_mag": TensorInfo("encoder", ("d_sae",), scales=False),
        }

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the open gates."""
        return pre.above(0.0)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the open gates."""
        return pre.above(0.0)

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the magnitudes; an open gate may have none."""
        cols = selection.cols
        product = pre - tensors["b_gate"].index_select(0, cols)
        scale = tensors["r_mag"].exp().index_select(0, cols)
        return torch.relu(scale * product + tensors["b_mag"].index_select(0, cols))

    def rescaled(self, tensors: Mapping[str, Tensor], factors: Tensor) -> tuple[Rule, Mapping[str, Tensor]]:
        """Biases are on the scale of pre-activations, the scale of magnitudes is not."""
        return self, {"b_mag": tensors["b_mag"] * factors, "r_mag": tensors["r_mag"]}

    def shifted(self, tensors: Mapping[str, Tensor], offset: Tensor) -> Mapping[str, Tensor]:
        """Magnitudes read the product without the gate's bias, so their own bias takes up the centre too."""
        return {"b_mag": tensors["b_mag"] + tensors["r_mag"].exp() * offset}

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``gated``."""
        return Export("gated", {}, {"b_mag": tensors["b_mag"], "r_mag": tensors["r_mag"]})
