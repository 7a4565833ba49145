"""Mean, norm and covariance of activations, accumulated in fp64."""

from __future__ import annotations

import torch

from saebench_core.interfaces.constraint import Statistics
from saebench_core.interfaces.context import ActivationReader

__all__ = ["measure", "statistics_rows"]


def statistics_rows(d_in: int) -> int:
    """Return how many rows statistics are taken from at least."""
    return max(50_000, 20 * d_in)


def measure(reader: ActivationReader, rows: int) -> Statistics:
    """Return statistics of the first ``rows`` rows, accumulated in fp64."""
    total = torch.zeros(reader.d_in, dtype=torch.float64, device="cpu")
    second = torch.zeros(reader.d_in, reader.d_in, dtype=torch.float64, device="cpu")
    seen = 0
    for batch in reader.batches(8192):
        wide = batch[: rows - seen].to("cpu", torch.float64)
        total += wide.sum(0)
        second += wide.T @ wide
        seen += wide.shape[0]
        if seen >= rows:
            break
    mean = total / seen
    covariance = second / seen - torch.outer(mean, mean)
    return Statistics(seen, mean, float(second.diagonal().sum()) / seen, covariance)
