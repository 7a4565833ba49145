"""What metrics against known features share: where they apply, rows with their true codes, and what fires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core import Backbone, Codes, GroundTruth, MetricContext, NotApplicable, PluginError

BATCH: Final = 4096
_SILENT: Final = 1e-5
"""A code below this share of the row's norm does not fire: a latent that should be at zero is off it by rounding."""

Fired = tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]
"""Rows and columns of the entries that fire."""


def unknown(backbone: Backbone) -> NotApplicable | None:
    """Say that a backbone does not know its features, or None if it does."""
    if isinstance(backbone, GroundTruth):
        return None
    return NotApplicable("the backbone's true features are not known")


def truth_of(context: MetricContext, metric: str) -> GroundTruth:
    """Return the backbone as one that knows its features.

    Raises:
        PluginError: if it does not.
    """
    if not isinstance(context.backbone, GroundTruth):
        raise PluginError(f"{metric} was prepared for a backbone without known features")
    return context.backbone


def frequency_groups(probabilities: Float[Tensor, " n_features"], count: int) -> Int[Tensor, " n_features"]:
    """Return every feature's group of ``count`` of equal size by frequency, from 0 for the rarest."""
    rank = torch.argsort(torch.argsort(probabilities, stable=True), stable=True)
    return rank * count // probabilities.numel()


def times_fired(truth: GroundTruth, rows: int, parts: int = 1) -> Int[Tensor, "parts n_features"]:
    """Return in how many evaluation rows each feature is active, on the CPU; row i is of part ``i mod parts``."""
    count = truth.probabilities().numel()
    found = torch.zeros(parts * count, dtype=torch.int64)
    for start in range(0, rows, BATCH):
        codes = truth.codes("evaluation", start, min(BATCH, rows - start))
        at, cols = fired_features(codes, found.device)
        found += torch.bincount((at + start) % parts * count + cols, minlength=parts * count)
    return found.view(parts, count)


def evaluated(context: MetricContext, truth: GroundTruth, rows: int) -> Iterator[tuple[Tensor, Codes]]:
    """Yield evaluation rows ``(part, d_in)`` with their true codes."""
    start = 0
    for x in context.activations("evaluation", rows).batches(BATCH):
        yield x, truth.codes("evaluation", start, x.shape[0])
        start += x.shape[0]


def fired_latents(codes: Codes, x: Float[Tensor, "rows d_in"]) -> Fired:
    """Return where latents fire on rows; below 1e-5 of a row's norm they do not."""
    active = codes.values.abs() > _SILENT * torch.linalg.vector_norm(x.double(), dim=1)[codes.selection.rows]
    return codes.selection.rows[active], codes.selection.cols[active]


def fired_features(truth: Codes, device: torch.device) -> Fired:
    """Return where features fire."""
    there = truth.values != 0
    return truth.selection.rows[there].to(device), truth.selection.cols[there].to(device)
