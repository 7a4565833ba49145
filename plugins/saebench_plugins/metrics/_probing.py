"""Balanced samples, mean codes of items, and probes: the parts of sparse probing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core import SparseAutoencoder, named_generator

__all__ = [
    "Fit",
    "Groups",
    "Pooled",
    "Probe",
    "draw_probe",
    "fit_probe",
    "fit_selected",
    "mean_over_tasks",
    "mean_rows",
    "pool_codes",
    "store_rows",
]

_CHUNK_ENTRIES: Final = 1 << 24
_ROWS_AT_ONCE: Final = 1 << 14
_FP32_BYTES: Final = 1 << 31

Groups = dict[str, list[int]]
"""The items of each class."""


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


def draw_probe(
    task: str,
    label: str,
    train: Groups,
    test: Groups,
    sizes: tuple[int, int],
    seed: int,
    permutations: int,
) -> Probe:
    """Draw as many negatives as positives, the negatives evenly from the other classes (as SAEBench does).

    Args:
        task: name of the task.
        label: the positive class.
        train: items of each class, in the order in which they are taken.
        test: the same for the test; disjoint from ``train``.
        sizes: wanted sizes of train and test set; smaller where a class has fewer items.
        seed: seed of the permuted labels.
        permutations: number of their orders.
    """
    train_items, train_labels = _balanced(train, label, sizes[0] // 2)
    test_items, test_labels = _balanced(test, label, sizes[1] // 2)
    generator = named_generator(seed, "sparse_probing permuted", task, label)
    orders = [torch.randperm(len(train_labels), generator=generator, device="cpu") for _ in range(permutations)]
    return Probe(task, label, train_items, train_labels, train_labels[torch.stack(orders)], test_items, test_labels)


def _balanced(groups: Groups, label: str, wanted: int) -> tuple[Tensor, Tensor]:
    others = [items for name, items in sorted(groups.items()) if name != label]
    negative = [item for turn in zip_longest(*others) for item in turn if item is not None]
    positive = groups[label]
    count = min(wanted, len(positive), len(negative))
    items = torch.tensor([*positive[:count], *negative[:count]], dtype=torch.int64)
    return items, torch.arange(2 * count) < count


@dataclass(frozen=True)
class Pooled:
    """Mean codes of items, sparse, on the CPU.

    Attributes:
        items: item of each entry; entries are sorted by latent.
        latents: latent of each entry.
        values: mean code, fp64.
        bounds: entries of latent ``j`` are those from ``bounds[j]`` to ``bounds[j + 1]``.
        n_items: number of items.
    """

    items: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    bounds: Int[Tensor, " bounds"]
    n_items: int

    def mean_difference(self, items: Int[Tensor, " some"], labels: Bool[Tensor, " some"]) -> Float[Tensor, " d_sae"]:
        """Return ``mean_positive - mean_negative`` of every latent over these items, fp64."""
        weights = torch.zeros(self.n_items, dtype=torch.float64)
        positive = labels.to(torch.float64)
        weights[items] = positive / positive.sum() - (1 - positive) / (1 - positive).sum()
        found = torch.bincount(self.latents, self.values * weights[self.items], minlength=len(self.bounds) - 1)
        return found.to(torch.float64)  # without a single code torch counts in whole numbers

    def ranked(self, items: Int[Tensor, " some"], labels: Bool[Tensor, " some"], count: int) -> list[int]:
        """Return the latents with the largest absolute mean difference; of equal ones the first."""
        size = self.mean_difference(items, labels).abs()
        return size.sort(descending=True, stable=True).indices[:count].tolist()

    def columns(self, latents: Sequence[int]) -> Float[Tensor, "items latents"]:
        """Return the features of a few latents, dense, fp64."""
        dense = torch.zeros(self.n_items, len(latents), dtype=torch.float64)
        for place, latent in enumerate(latents):
            part = slice(int(self.bounds[latent]), int(self.bounds[latent + 1]))
            dense[self.items[part], place] = self.values[part]
        return dense


@torch.no_grad()
def pool_codes(
    sae: SparseAutoencoder, activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]
) -> Pooled:
    """Encode rows once and average the codes of each item; an item without rows has no codes.

    Args:
        sae: encodes on its own device.
        activations: all rows, item by item.
        offsets: first row of each item, and the end, ``(n_items + 1,)``.
    """
    n_items, at_once = len(offsets) - 1, max(1, min(64, _CHUNK_ENTRIES // sae.d_sae))
    found = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))]
    for first in range(0, n_items, at_once):
        part = offsets[first : first + at_once + 1]
        rows = activations[int(part[0]) : int(part[-1])].to(sae.device, torch.float32)
        if len(rows):
            items, latents, values = _mean_codes(sae, rows, part.diff().to(sae.device))
            found.append((items.cpu() + first, latents.cpu(), values.cpu()))
    items, latents, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = latents.argsort(stable=True)
    ends = torch.bincount(latents, minlength=sae.d_sae).cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends])
    return Pooled(items[order], latents[order], values[order].to(torch.float64), bounds, n_items)


def _mean_codes(sae: SparseAutoencoder, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return item, latent and value of the mean codes that are not zero; dense only as ``(items, d_sae)``."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
    codes = sae.encode(rows)
    sums = torch.zeros(len(counts) * sae.d_sae, device=rows.device)
    sums.index_add_(0, owner[codes.selection.rows] * sae.d_sae + codes.selection.cols, codes.values)
    means = sums.view(len(counts), sae.d_sae) / counts.clamp(min=1)[:, None]
    items, latents = means.nonzero(as_tuple=True)
    return items, latents, means[items, latents]


def store_rows(batches: Iterable[Sequence[Float[Tensor, "_ d_in"]]], limit: int = _FP32_BYTES) -> tuple[Tensor, Tensor]:
    """Return the rows of all items end to end, on the CPU, and the offsets of the items.

    Rows that a bf16 model computed are kept in bf16, which loses nothing. Others are kept in fp32, and rounded to
    bf16 only if they would take more than ``limit`` bytes.
    """
    parts: list[Tensor] = []
    counts: list[int] = [0]
    dtype, size = torch.bfloat16, 0
    for items in batches:
        rows = torch.cat(list(items)).to("cpu", torch.float32)
        if size == 0 and not torch.equal(rows.to(torch.bfloat16).to(torch.float32), rows):
            dtype = torch.float32
        size += 4 * rows.numel()
        if dtype == torch.float32 and size > limit:
            dtype, parts = torch.bfloat16, [part.to(torch.bfloat16) for part in parts]
        parts.append(rows.to(dtype))
        counts.extend(len(item) for item in items)
    return torch.cat(parts), torch.tensor(counts, dtype=torch.int64).cumsum(0)


def mean_rows(activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]) -> Float[Tensor, "items d_in"]:
    """Return the mean row of each item, fp64; zeros for an item without rows."""
    counts = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    sums = torch.zeros(len(counts), activations.shape[1], dtype=torch.float64)
    for part, rows in zip(owner.split(_ROWS_AT_ONCE), activations.split(_ROWS_AT_ONCE), strict=True):  # type: ignore[no-untyped-call]
        sums.index_add_(0, part, rows.to("cpu", torch.float64))
    return sums / counts.clamp(min=1)[:, None]


class Fit(NamedTuple):
    """Test accuracy of a probe, and whether its optimiser ended by itself."""

    accuracy: float
    converged: bool


def fit_probe(features: Float[Tensor, "items k"], probe: Probe, labels: Bool[Tensor, " train"]) -> Fit:
    """Fit scikit-learn's logistic regression (L2, C = 1, at most 1000 steps) on raw features; test it.

    Args:
        features: features of all items.
        probe: which items train and test.
        labels: labels to train with: the probe's own, or one order of its permuted ones.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # returned as `converged` instead
        model.fit(features[probe.train].numpy(), labels.numpy())
    right = model.predict(features[probe.test].numpy()) == probe.test_labels.numpy()
    return Fit(float(right.mean()), bool(model.n_iter_.max() < model.max_iter))


def fit_selected(
    pooled: Pooled, probe: Probe, labels: Bool[Tensor, " train"], k: Sequence[int]
) -> tuple[list[Fit], int]:
    """Select latents by these labels, and fit a probe for each number of them; also return the first latent."""
    rank = pooled.ranked(probe.train, labels, max(k))
    return [fit_probe(pooled.columns(rank[:count]), probe, labels) for count in k], rank[0]


def mean_over_tasks(probes: Sequence[Probe], values: Sequence[float]) -> float:
    """Return the mean over tasks of the mean over each task's classes."""
    tasks: dict[str, list[float]] = {}
    for probe, value in zip(probes, values, strict=True):
        tasks.setdefault(probe.task, []).append(value)
    return fmean(fmean(task) for task in tasks.values())
