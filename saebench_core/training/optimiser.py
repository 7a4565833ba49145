"""AdamW on tensors in memory order, without copies; and blocks of rows that stay in a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from saebench_core.training.settings import TrainingSettings

__all__ = ["Stepper", "blocks", "in_memory_order", "make_optimiser"]

_BLOCK: Final = 1 << 17
"""Elements of a block that fits a processor's cache."""


@final
@dataclass(frozen=True, eq=False)
class Stepper:
    """A trained tensor, and its view in memory order, which the optimiser steps on without copies."""

    tensor: Tensor
    view: Tensor
    transposed: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Stepper:
        """View a tensor, or its transpose, whichever is contiguous."""
        return cls(tensor, in_memory_order(tensor.detach()), not tensor.is_contiguous())

    def hand_over(self) -> None:
        """Give the tensor's gradient to the view."""
        gradient = self.tensor.grad
        self.view.grad = gradient.T if gradient is not None and self.transposed else gradient


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a matrix, or its transpose, whichever is contiguous."""
    return tensor if tensor.is_contiguous() else tensor.T


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors into blocks of rows that stay in a cache."""
    size = max(1, _BLOCK // tensors[0].shape[1])
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def make_optimiser(tensors: list[Tensor], settings: TrainingSettings) -> torch.optim.Optimizer | None:
    """Return AdamW with decay on matrices only; None where nothing is trained."""
    matrices = [tensor for tensor in tensors if tensor.ndim > 1]
    others = [tensor for tensor in tensors if tensor.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True) if groups else None
