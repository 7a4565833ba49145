"""Reconstruction: how much of the activations comes back, and with how many latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
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
    Split,
    Subject,
    hookimpl,
)

_BATCH = 4096
_DENSITY_EDGES = tuple(float(edge) for edge in range(-7, 1))
_SOURCE = "Sanity Checks for SAEs, eq. 5"
_PEERS = "SAEBench core evaluation"


class ReconstructionConfig(MetricConfig):
    """Configuration of `ReconstructionMetric`."""

    type: Literal["reconstruction"] = "reconstruction"
    rows: PositiveInt = Field(65536, description="Evaluation rows; fewer where the split has fewer.")


class ReconstructionMetric(Metric):
    """Explained variance as a ratio of sums over the whole evaluation set, accumulated in fp64."""

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        return {
            "explained_variance": ScoreInfo(
                "higher",
                "share",
                None,
                1.0,
                "both",
                "1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2",
                _SOURCE,
                headline=True,
            ),
            "mse": ScoreInfo(
                "lower", "squared activation", 0.0, None, "both", "mean over rows of ||x - x_hat||^2", _SOURCE
            ),
            "cosine": ScoreInfo("higher", "cosine", -1.0, 1.0, "both", "mean over rows of cos(x, x_hat)", _PEERS),
            "l0": ScoreInfo(
                "none", "latents", 0.0, None, "encoder", "mean over rows of #(z != 0)", _PEERS, headline=True
            ),
            "alive": ScoreInfo(
                "higher",
                "share",
                0.0,
                1.0,
                "encoder",
                "share of latents that fire at least once in the set",
                _PEERS,
            ),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Applies everywhere."""
        return None

    def rows(self) -> Mapping[Split, int]:
        """Return the evaluation rows."""
        return {"evaluation": self.config.rows}

    def prepare(self, context: MetricContext) -> Prepared:
        """Return mean and variance of the evaluation rows; the floor reconstructs the mean, the ceiling everything."""
        reader = context.activations("evaluation", self.config.rows)
        total = torch.zeros(reader.d_in, dtype=torch.float64, device=context.device)
        square = 0.0
        for x in reader.batches(_BATCH):
            wide = x.double()
            total += wide.sum(0)
            square += float(wide.square().sum())
        mean = total / reader.rows
        variance = square / reader.rows - float(mean.square().sum())
        cosine = 0.0
        for x in reader.batches(_BATCH):
            cosine += float(torch.nn.functional.cosine_similarity(x.double(), mean[None], dim=1).sum())
        return Prepared(
            tensors={"mean": mean},
            facts={"rows": reader.rows, "variance": variance},
            floors={"explained_variance": 0.0, "mse": variance, "cosine": cosine / reader.rows},
            ceilings={"explained_variance": 1.0, "mse": 0.0, "cosine": 1.0},
        )

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Return the five scores, and each latent's firing frequency and decoder norm."""
        sae, reader = subject.sae, context.activations("evaluation", self.config.rows)
        sums = _Sums(sae)
        for x in reader.batches(_BATCH):
            sums.add(x)
        rows, variance = sums.rows, float(str(prepared.facts["variance"]))
        scores: dict[str, Score | NotApplicable] = {
            "mse": Score(sums.error / rows, rows),
            "cosine": Score(sums.cosine / rows, rows),
            "l0": Score(sums.active / rows, rows),
            "alive": Score(float((sums.fires > 0).double().mean()), sae.d_sae),
            "explained_variance": Score(1 - sums.error / rows / variance, rows)
            if variance > 0
            else NotApplicable("the evaluation activations do not vary"),
        }
        return Scored(scores, _items(sums.fires, rows, sae))


class _Sums:
    """Running sums over batches, in fp64."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self.rows = 0
        self.error = self.cosine = self.active = 0.0
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)

    def add(self, x: Tensor) -> None:
        """Add a batch of activations ``(rows, d_in)``."""
        codes = self.sae.encode(x)
        reconstruction = self.sae.decode(codes).double()
        self.rows += x.shape[0]
        self.error += float((x.double() - reconstruction).square().sum())
        self.cosine += float(torch.nn.functional.cosine_similarity(x.double(), reconstruction, dim=1).sum())
        fired = codes.selection.cols[codes.values != 0]
        self.active += float(fired.numel())
        self.fires += torch.bincount(fired, minlength=self.sae.d_sae)


def _items(fires: Tensor, rows: int, sae: SparseAutoencoder) -> dict[str, list[Any]]:
    frequency = fires.double() / rows
    edges = torch.tensor(_DENSITY_EDGES, dtype=torch.float64, device=fires.device)
    bins = torch.bucketize(frequency.clamp(min=1e-300).log10(), edges)
    return {
        "latent": list(range(sae.d_sae)),
        "frequency": frequency.tolist(),
        "log10_frequency_bin": bins.tolist(),
        "decoder_norm": sae.w_dec.norm(dim=1).tolist(),
        "encoder_decoder_cosine": torch.nn.functional.cosine_similarity(sae.w_enc.T, sae.w_dec, dim=1).tolist(),
    }


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer ``reconstruction``."""
    return [
        MetricSpec(
            config=ReconstructionConfig,
            build=ReconstructionMetric,
            summary="Explained variance, squared error, cosine, realised L0, alive latents, densities",
            source=_SOURCE,
        )
    ]
