"""What a selection rule is, and what it says of itself.

A rule names the tensors it needs beside the four of every SAE, selects entries without gradients, and
gives the selected entries their values with gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection

__all__ = ["CalibratedThreshold", "Export", "Role", "Rule", "TensorInfo"]

Role = Literal["encoder", "decoder", "threshold", "bias", "other"]


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor of an SAE is.

    Attributes:
        role: what constraints know it by.
        shape: in letters of the SAE's sizes, e.g. ``("d_sae",)``.
        start: value that it is filled with at the start.
        scales: whether it is multiplied when the inputs are (biases and thresholds are, weights are not).
        estimated: set from data, not trained by gradients.
    """

    role: Role
    shape: tuple[Literal["d_in", "d_sae"], ...]
    start: float = 0.0
    scales: bool = True
    estimated: bool = False


@dataclass(frozen=True)
class Export:
    """A rule in terms of the SAELens format: its architecture, further keys and tensors."""

    architecture: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Rule(ABC):
    """Turns pre-activations into sparse codes."""

    bias_is_threshold: ClassVar[bool] = False
    """Whether ``b_enc`` decides alone how often a latent fires, so that a frozen encoder still trains it."""

    encoder_bias: ClassVar[str] = "b_enc"
    """Name of the bias that is added to the pre-activations that entries are selected by."""

    meets_l0: ClassVar[bool] = False
    """Whether the rule keeps the target number of latents by itself, without calibration or a penalty."""

    by_row: ClassVar[bool] = False
    """Whether training too selects in each row by that row alone, so that a batch may be cut into parts."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name the tensors that the rule needs beside ``W_enc``, its encoder bias, ``W_dec`` and ``b_dec``."""
        return {}

    @abstractmethod
    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the entries that a training step touches, without gradients."""

    @abstractmethod
    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the entries of inference; a row's selection must not depend on the other rows."""

    @abstractmethod
    def activate(
        self, pre: Float[Tensor, " entries"], selection: Selection, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, " entries"]:
        """Return the values of the selected entries, with gradients."""

    @abstractmethod
    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Say how the rule's inference is written in the SAELens format."""

    def calibrated(self) -> CalibratedThreshold | None:
        """Name the scalar tensor that is set after training so that the mean L0 meets its target, if any."""
        return None

    def rescaled(
        self, tensors: Mapping[str, Tensor], factors: Float[Tensor, " d_sae"]
    ) -> tuple[Rule, Mapping[str, Tensor]] | None:
        """Return the rule and its own tensors for codes that are multiplied by one positive factor a latent.

        The SAE multiplies ``W_enc`` and the encoder bias itself. None where no rule infers the same codes so: then an
        SAE keeps the decoder norms that it was trained with.
        """
        return None

    def shifted(self, tensors: Mapping[str, Tensor], offset: Float[Tensor, " d_sae"]) -> Mapping[str, Tensor]:
        """Return the rule's own tensors that change when the encoder bias takes up a fixed centre of the inputs.

        Args:
            tensors: of the SAE, before.
            offset: what is added to the encoder bias, and what pre-activations without it now lack.
        """
        return {}

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most rules have nothing to do
        """Bring the rule's own tensors back into their range after an optimiser step, in place."""


@final
@dataclass(frozen=True)
class CalibratedThreshold:
    """A global threshold on the pre-activations, set from data as the quantile that gives the target.

    Attributes:
        tensor: its name among the SAE's tensors.
        l0: mean number of latents above it.
        average: decay of the running estimate in training (dictionary_learning: 0.999).
    """

    tensor: str
    l0: float
    average: float = 0.999
