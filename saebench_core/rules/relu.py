"""ReLU: every positive pre-activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection
from saebench_core.rules.base import Export, Rule

__all__ = ["ReLU"]


@final
@dataclass(frozen=True)
class ReLU(Rule):
    """All positive pre-activations (Bricken et al. 2023)."""

    bias_is_threshold: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the positive entries."""
        return pre.above(0.0)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the positive entries."""
        return pre.above(0.0)

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the positive part."""
        return torch.relu(pre)

    def rescaled(self, tensors: Mapping[str, Tensor], factors: Tensor) -> tuple[Rule, Mapping[str, Tensor]]:
        """Nothing but the pre-activations has a scale."""
        return self, {}

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``standard``."""
        return Export("standard", {}, {})
