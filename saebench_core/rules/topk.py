"""TopK and BatchTopK: the largest pre-activations of a row, or of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection
from saebench_core.rules.base import CalibratedThreshold, Export, Rule, TensorInfo
from saebench_core.rules.jumprelu import JumpReLU

__all__ = ["BatchTopK", "TopK"]


@final
@dataclass(frozen=True)
class TopK(Rule):
    """The k largest pre-activations of each row, negative ones set to zero (Gao et al. 2024)."""

    meets_l0: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    k: int

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select k entries a row."""
        return pre.row_topk(self.k)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select k entries a row."""
        return pre.row_topk(self.k)

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the positive part."""
        return torch.relu(pre)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``topk``."""
        return Export("topk", {"k": self.k, "rescale_acts_by_decoder_norm": False}, {})


@final
@dataclass(frozen=True)
class BatchTopK(Rule):
    """The ``k x rows`` largest pre-activations of a batch; a global threshold in inference (Bussmann et al. 2024)."""

    k: float

    def tensors(self) -> Mapping[str, TensorInfo]:
        """One scalar ``threshold``, estimated from data."""
        return {"threshold": TensorInfo("threshold", (), estimated=True)}

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the largest entries of the batch."""
        return pre.batch_topk(round(self.k * pre.n_rows))

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the entries above the global threshold."""
        return pre.above(tensors["threshold"])

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the positive part."""
        return torch.relu(pre)

    def rescaled(self, tensors: Mapping[str, Tensor], factors: Tensor) -> tuple[Rule, Mapping[str, Tensor]]:
        """One threshold for all latents becomes one for each, which is how a `JumpReLU` infers."""
        return JumpReLU(), {"threshold": tensors["threshold"] * factors}

    def calibrated(self) -> CalibratedThreshold:
        """The threshold meets k on average."""
        return CalibratedThreshold("threshold", self.k)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``jumprelu`` with one threshold for all latents."""
        d_sae = tensors["b_enc"].shape[0]
        return Export("jumprelu", {}, {"threshold": tensors["threshold"].expand(d_sae).clone()})
