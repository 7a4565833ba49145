"""Binary questions about items, and balanced samples to answer them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saebench_core import named_generator

__all__ = ["Groups", "Probe", "Sizes", "draw_probe", "mean_over_tasks"]

Groups = dict[str, list[int]]
"""The items of each class."""


@dataclass(frozen=True)
class Sizes:
    """Wanted sizes of a probe's sets, and the share of its items that are of its class."""

    train: int
    test: int
    positive_share: float = 0.5


@dataclass(frozen=True)
class Probe:
    """One binary question.

    Attributes:
        task: table that it comes from.
        label: class that is told from the rest.
        train: items that it learns from.
        train_labels: true for the class.
        permuted: the same labels in several random orders, the control.
        test: items that it is tested on.
        test_labels: true for the class.
    """

    task: str
    label: str
    train: Int[Tensor, " train"]
    train_labels: Bool[Tensor, " train"]
    permuted: Bool[Tensor, "orders train"]
    test: Int[Tensor, " test"]
    test_labels: Bool[Tensor, " test"]


def draw_probe(task: str, label: str, train: Groups, test: Groups, sizes: Sizes, seed: int, permutations: int) -> Probe:
    """Draw positives and negatives in the wanted shares, negatives evenly from the other classes (as SAEBench does).

    Args:
        task: name of the task.
        label: the positive class.
        train: items of each class, in the order in which they are taken.
        test: the same for the test; disjoint from ``train``.
        sizes: wanted sizes of train and test set; smaller, in the same shares, where a class has fewer items.
        seed: seed of the permuted labels.
        permutations: number of their orders.
    """
    train_items, train_labels = _sample(train, label, sizes.train, sizes.positive_share)
    test_items, test_labels = _sample(test, label, sizes.test, sizes.positive_share)
    generator = named_generator(seed, "sparse_probing permuted", task, label)
    orders = [torch.randperm(len(train_labels), generator=generator, device="cpu") for _ in range(permutations)]
    return Probe(task, label, train_items, train_labels, train_labels[torch.stack(orders)], test_items, test_labels)


def _sample(groups: Groups, label: str, wanted: int, share: float) -> tuple[Tensor, Tensor]:
    others = [items for name, items in sorted(groups.items()) if name != label]
    negative = [item for turn in zip_longest(*others) for item in turn if item is not None]
    positive = groups[label]
    size = min(wanted, math.floor(len(positive) / share), math.floor(len(negative) / (1 - share)))
    count = min(round(share * size), len(positive))
    if count in (0, size):
        size = count = 0  # one class alone asks nothing
    items = torch.tensor([*positive[:count], *negative[: size - count]], dtype=torch.int64, device="cpu")
    return items, torch.arange(len(items), device="cpu") < count


def mean_over_tasks(probes: Sequence[Probe], values: Sequence[float]) -> float:
    """Return the mean over tasks of the mean over each task's classes."""
    tasks: dict[str, list[float]] = {}
    for probe, value in zip(probes, values, strict=True):
        tasks.setdefault(probe.task, []).append(value)
    return fmean(fmean(task) for task in tasks.values())
