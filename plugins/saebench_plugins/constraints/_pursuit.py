"""Codes without an encoder: matching pursuit on the decoder, as a selection rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

from jaxtyping import Float
from torch import Tensor

from saebench_core import Export, PreActivations, Rule, Selected, Selection, pursue

ARCHITECTURE: Final = "orthogonal_matching_pursuit"


@final
@dataclass(frozen=True)
class Pursuit(Rule):
    """``k`` entries a row by orthogonal matching pursuit on the decoder; the encoder is not read.

    Attributes:
        k: entries a row.
    """

    meets_l0: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    k: int

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select as in inference."""
        return self.select_inference(pre, tensors)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Pursue the centred rows."""
        codes = pursue(pre.centred, tensors["W_dec"], self.k)
        return Selected(codes.selection, codes.values)

    def activate(
        self, pre: Float[Tensor, " entries"], selection: Selection, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, " entries"]:
        """Return the coefficients as they were fitted; they may be negative."""
        return pre

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write under a name of its own: SAELens' matching pursuit has no biases and fits no least squares."""
        return Export(ARCHITECTURE, {"k": self.k}, {})
