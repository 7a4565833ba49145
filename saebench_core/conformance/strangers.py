"""Plugins that the kit brings itself: an architecture with tensors of every role, a plain one, and no constraint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, final

import torch
from torch import Tensor

from saebench_core.catalog import Plugin
from saebench_core.interfaces.architecture import Architecture, ArchitectureConfig, ArchitectureSpec, Recipe, Shape
from saebench_core.interfaces.constraint import Constraint, ConstraintConfig, ConstraintSpec
from saebench_core.kernels import PreActivations, Selected, Selection
from saebench_core.objectives import L1, AuxK, Objective, Orthogonality, Reconstruction, WeightedTerm
from saebench_core.rules import BatchTopK, Export, Role, Rule, TensorInfo

__all__ = ["FREE", "PLAIN", "STRANGER", "Free"]


@final
@dataclass(frozen=True)
class StrangeRule(Rule):
    """``z = exp(out) relu(exp(scale) (pre - level) + shift)`` where ``pre > level``: a tensor of every role."""

    encoder_bias: ClassVar[str] = "b_read"

    def tensors(self) -> Mapping[str, TensorInfo]:
        """A tensor of every role, under names that no built-in has."""
        return {
            "read_scale": TensorInfo("encoder", ("d_sae",), scales=False),
            "write_scale": TensorInfo("decoder", ("d_sae",), scales=False),
            "level": TensorInfo("threshold", ("d_sae",), start=0.05),
            "shift": TensorInfo("bias", ("d_sae",), start=0.01),
            "seen": TensorInfo("other", (), scales=False, estimated=True),
        }

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is above its level."""
        return pre.above(tensors["level"])

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is above its level."""
        return pre.above(tensors["level"])

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the values."""
        read, write, level, shift = (
            tensors[name].index_select(0, selection.cols) for name in ("read_scale", "write_scale", "level", "shift")
        )
        return torch.relu(read.exp() * (pre - level) + shift) * write.exp()

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep levels at zero or above."""
        tensors["level"].clamp_(min=0)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write under a name that nobody else has."""
        return Export("kit_stranger", {}, {name: tensors[name] for name in self.tensors()})


class StrangerConfig(ArchitectureConfig):
    """Configuration of `Stranger`."""

    type: Literal["kit_stranger"] = "kit_stranger"


class Stranger(Architecture):
    """A rule that no built-in has, with terms that constraints drop."""

    def __init__(self, config: StrangerConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss."""
        penalty = WeightedTerm(L1(), 0.05, "warmup", controlled=True, l0=shape.l0)
        terms = (WeightedTerm(Reconstruction()), penalty, WeightedTerm(Orthogonality(), 0.05), WeightedTerm(AuxK()))
        return Recipe(StrangeRule(), Objective(terms))


class PlainConfig(ArchitectureConfig):
    """Configuration of `Plain`."""

    type: Literal["kit_plain"] = "kit_plain"


class Plain(Architecture):
    """A calibrated rule and the reconstruction loss alone: it meets its L0."""

    def __init__(self, config: PlainConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss."""
        return Recipe(BatchTopK(shape.l0), Objective((WeightedTerm(Reconstruction()),)))


class FreeConfig(ConstraintConfig):
    """Configuration of `Free`."""

    type: Literal["kit_free"] = "kit_free"


class Free(Constraint):
    """Everything is trained."""

    def __init__(self, config: FreeConfig) -> None:
        self.config = config

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing."""
        return frozenset()


def _plugin(spec: ArchitectureSpec | ConstraintSpec, kind: Literal["architecture", "constraint"]) -> Plugin:
    name = str(spec.config.model_fields["type"].default)
    return Plugin(kind, name, spec, distribution="saebench-core", version="", source_digest="")


STRANGER: Final = _plugin(ArchitectureSpec(StrangerConfig, Stranger, "A tensor of every role"), "architecture")
PLAIN: Final = _plugin(ArchitectureSpec(PlainConfig, Plain, "A rule that meets its L0"), "architecture")
FREE: Final = _plugin(ConstraintSpec(FreeConfig, Free, "Nothing is held"), "constraint")
