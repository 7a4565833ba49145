"""Selection rules: how pre-activations become sparse codes, in training and in inference.

A rule names the tensors it needs beside the four of every SAE, selects entries without gradients, and
gives the selected entries their values with gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection

__all__ = ["BatchTopK", "Export", "JumpReLU", "ReLU", "Role", "Rule", "TensorInfo", "TopK"]

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


@final
@dataclass(frozen=True)
class ReLU(Rule):
    """All positive pre-activations (Bricken et al. 2023)."""

    bias_is_threshold: ClassVar[bool] = True

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the positive entries."""
        return pre.above(0.0)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the positive entries."""
        return pre.above(0.0)

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the positive part."""
        return torch.relu(pre)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``standard``."""
        return Export("standard", {}, {})


@final
@dataclass(frozen=True)
class TopK(Rule):
    """The k largest pre-activations of each row, negative ones set to zero (Gao et al. 2024)."""

    meets_l0: ClassVar[bool] = True

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

    def calibrated(self) -> CalibratedThreshold:
        """The threshold meets k on average."""
        return CalibratedThreshold("threshold", self.k)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``jumprelu`` with one threshold for all latents."""
        d_sae = tensors["b_enc"].shape[0]
        return Export("jumprelu", {}, {"threshold": tensors["threshold"].expand(d_sae).clone()})


class _Jump(torch.autograd.Function):
    """``z = pre * [pre > threshold]`` with the rectangle surrogate for the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return grad * (pre > threshold), -grad * threshold / ctx.bandwidth * window, None


class _Step(torch.autograd.Function):
    """``[pre > threshold]`` with the rectangle surrogate for the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return None, -grad / ctx.bandwidth * window, None


@final
@dataclass(frozen=True)
class JumpReLU(Rule):
    """Pre-activations above a threshold of each latent's own (Rajamanoharan et al. 2024).

    Attributes:
        bandwidth: width of the surrogate's kernel, in units of the normalised inputs.
        start: threshold at the start.
    """

    bandwidth: float = 0.001
    start: float = 0.001

    def tensors(self) -> Mapping[str, TensorInfo]:
        """One ``threshold`` a latent, trained."""
        return {"threshold": TensorInfo("threshold", ("d_sae",), start=self.start)}

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is active or inside the surrogate's kernel."""
        return pre.above(tensors["threshold"] - self.bandwidth / 2)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is above its threshold and positive."""
        return pre.above(tensors["threshold"].clamp(min=0))

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the values above the threshold, zero inside the kernel below it."""
        result: Tensor = _Jump.apply(pre, tensors["threshold"][selection.cols], self.bandwidth)
        return result

    def count(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Float[Tensor, " entries"]:
        """Return 1 for every active entry, with the surrogate gradient to the thresholds."""
        result: Tensor = _Step.apply(pre, tensors["threshold"][selection.cols], self.bandwidth)
        return result

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep thresholds at zero or above."""
        tensors["threshold"].clamp_(min=0)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``jumprelu``."""
        return Export("jumprelu", {}, {"threshold": tensors["threshold"].clamp(min=0)})
