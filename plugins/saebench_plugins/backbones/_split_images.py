"""Images in splits: a seed draws one order of all images, and each split is a piece of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from saebench_core import ImageSet, InputError, Split, named_generator

__all__ = ["SplitImages", "draw_splits"]


@dataclass(frozen=True)
class SplitImages:
    """Images, and which of them belong to a split.

    Attributes:
        everything: all images.
        splits: numbers of each split's images, in its order.
    """

    everything: ImageSet
    splits: Mapping[str, Int[Tensor, " images"]]

    def count(self, split: Split) -> int:
        """Return the number of images of a split."""
        return len(self.splits[split])

    def chosen(self, split: Split, start: int, count: int) -> Sequence[int]:
        """Return the numbers of images that stand together in a split, fewer than ``count`` if it ends.

        Raises:
            InputError: if there are none.
        """
        numbers: list[int] = self.splits[split][start : start + count].tolist()
        if not numbers:
            raise InputError(f"split {split!r} has {self.count(split)} images; none at {start}")
        return numbers

    def labels(self, split: Split, device: torch.device) -> Int[Tensor, " images"]:
        """Return every image's class, in the split's order."""
        return torch.tensor(self.everything.labels, device=device)[self.splits[split].to(device)]


def draw_splits(count: int, holdout: float, seed: int) -> dict[str, Int[Tensor, " images"]]:
    """Cut a seeded permutation: evaluation (two thirds of the held-out images), calibration, train.

    Raises:
        InputError: if a split would be empty.
    """
    held = round(count * holdout)
    calibration = held // 3
    if calibration == 0 or held == count:
        raise InputError(f"{count} images with holdout {holdout} leave a split empty; give more images")
    order = torch.randperm(count, generator=named_generator(seed, "image splits"), device="cpu")
    evaluation = held - calibration
    return {"evaluation": order[:evaluation], "calibration": order[evaluation:held], "train": order[held:]}
