"""How well one or a few latents tell classes apart, by k-sparse linear probes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
    InputError,
    Json,
    LanguageModel,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    SparseAutoencoder,
    Subject,
    TableSource,
    TokenBatch,
    VisionModel,
    hookimpl,
    named_generator,
)

__all__ = ["SparseProbing", "SparseProbingConfig"]

_TEXTS_AT_ONCE: Final = 64
_CHUNK_ENTRIES: Final = 1 << 24
_FP32_BYTES: Final = 1 << 31
_FEWEST: Final = 10
"""Texts that a class must have; rarer ones are skipped and listed in the facts."""


class SparseProbingConfig(MetricConfig):
    """Logistic regression on the k latents whose means differ most between a class and the rest."""

    type: Literal["sparse_probing"] = "sparse_probing"
    k: tuple[PositiveInt, ...] = Field((1, 5), min_length=1, description="Numbers of latents in a probe.")
    tasks: tuple[TableSource, ...] = Field((), description="Labelled tables of texts; images bring their own labels.")
    train_size: int = Field(4000, ge=4, description="Training items of a probe, half of them positive.")
    test_size: int = Field(1000, ge=2, description="Test items of a probe, half of them positive.")
    max_tokens: PositiveInt = Field(128, description="Tokens of a text that are read.")
    seed: int = Field(42, description="Seed of the samples and of the permuted labels.")


@dataclass(frozen=True)
class Probe:
    """One binary question: which items it trains and tests on (indices), and their labels."""

    task: str
    label: str
    train: Int[Tensor, " train"]
    train_labels: Bool[Tensor, " train"]
    permuted: Bool[Tensor, " train"]
    test: Int[Tensor, " test"]
    test_labels: Bool[Tensor, " test"]


class Fit(NamedTuple):
    """Test accuracy of a probe, and whether the optimiser ended by itself."""

    accuracy: float
    converged: bool


@dataclass(frozen=True)
class Pooled:
    """Mean codes of items, sparse: entries sorted by latent, those of latent j from ``bounds[j]`` on."""

    items: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    bounds: Int[Tensor, " bounds"]
    n_items: int

    def mean_difference(self, items: Int[Tensor, " items"], labels: Bool[Tensor, " items"]) -> Float[Tensor, " d_sae"]:
        """Return ``mean_positive - mean_negative`` of every latent over these items, fp64."""
        weights = torch.zeros(self.n_items, dtype=torch.float64)
        positive = labels.to(torch.float64)
        weights[items] = positive / positive.sum() - (1 - positive) / (1 - positive).sum()
        return torch.bincount(self.latents, self.values * weights[self.items], minlength=len(self.bounds) - 1)

    def columns(self, latents: Sequence[int]) -> Float[Tensor, "items latents"]:
        """Return the features of a few latents, dense."""
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
    n_items, at_once = len(offsets) - 1, max(1, _CHUNK_ENTRIES // (sae.d_sae * 16))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, n_items, at_once):
        bounds = offsets[first : first + at_once + 1]
        rows = activations[int(bounds[0]) : int(bounds[-1])].to(sae.device, torch.float32)
        if not len(rows):
            continue
        counts = bounds.diff().to(sae.device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=sae.device), counts)
        codes = sae.encode(rows)
        means = torch.zeros(len(counts) * sae.d_sae, device=sae.device)  # items x d_sae, never rows x d_sae
        means.index_add_(0, owner[codes.selection.rows] * sae.d_sae + codes.selection.cols, codes.values)
        means = means.view(len(counts), sae.d_sae) / counts.clamp(min=1)[:, None]
        items, latents = means.nonzero(as_tuple=True)
        found.append((items.cpu() + first, latents.cpu(), means[items, latents].cpu()))
    empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    items, latents, values = (torch.cat(parts) for parts in zip(empty, *found, strict=True))
    order = latents.argsort(stable=True)
    ends = torch.bincount(latents, minlength=sae.d_sae).cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends])
    return Pooled(items[order], latents[order], values[order].to(torch.float64), bounds, n_items)


def fit_probe(
    train: Float[Tensor, "train k"], labels: Bool[Tensor, " train"],
    test: Float[Tensor, "test k"], test_labels: Bool[Tensor, " test"],
) -> Fit:  # fmt: skip
    """Fit scikit-learn's logistic regression (L2, C = 1, at most 1000 steps) on raw features; return its test accuracy."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=1.0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged` instead
        probe.fit(train.numpy(), labels.numpy())
    right = probe.predict(test.numpy()) == test_labels.numpy()
    return Fit(float(right.mean()), bool(probe.n_iter_.max() < probe.max_iter))


def draw_probe(
    task: str, label: str, labels: Sequence[str], sizes: tuple[int, int], seed: int, pools: Mapping[str, Tensor] | None = None
) -> Probe:
    raise NotImplementedError
