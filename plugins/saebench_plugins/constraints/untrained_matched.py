"""Untrained, matched: weights as drawn, every latent firing as often as that of a trained twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Int
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    ActivationReader,
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    InputError,
    JumpReLU,
    Randomised,
    Recipe,
    Role,
    Shape,
    SparseAutoencoder,
    hookimpl,
)

_BATCH: Final = 4096
_BLOCK_ENTRIES: Final = 1 << 25
"""Pre-activations that are held at a time while thresholds are looked for."""


class UntrainedMatchedConfig(ConstraintConfig):
    """Configuration of `UntrainedMatched`."""

    type: Literal["untrained_matched"] = "untrained_matched"
    rows: PositiveInt = Field(65536, description="Calibration rows on which frequencies are counted and matched.")


class UntrainedMatched(Constraint):
    """Weights stay as drawn; a threshold gives each latent the frequency of the twin's latent of the same number.

    So L0 and the whole distribution of frequencies are the twin's, where `untrained` matches the L0 alone. Ties, and
    frequencies that only a threshold below zero would give, are matched as far as they can be.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"encoder", "decoder"})
    needs: ClassVar[str | None] = "trained"
    trains: ClassVar[bool] = False

    def __init__(self, config: UntrainedMatchedConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Give every latent a threshold of its own; keep the norms as drawn, one."""
        return replace(recipe, rule=JumpReLU(), decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze every weight and bias; thresholds are set from data."""
        return frozenset(name for name, role in roles.items() if role != "threshold")

    def calibrate(
        self, sae: SparseAutoencoder, twin: SparseAutoencoder | None, rows: ActivationReader
    ) -> SparseAutoencoder:
        """Set each threshold to the order statistic that as many rows exceed as fire the twin's latent."""
        if twin is None:
            raise InputError("untrained_matched takes its frequencies from a trained twin, and none was given")
        batches = list(self._batches(rows))
        counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        for batch in batches:
            codes = twin.encode(batch)
            counts += torch.bincount(codes.selection.cols[codes.values != 0], minlength=sae.d_sae)
        x = torch.cat(batches) - sae.centre()
        order = counts.argsort()  # latents of one block fire about as often
        for latents in torch.split(order, max(1, _BLOCK_ENTRIES // x.shape[0])):
            sae.tensors["threshold"][latents] = _thresholds(sae, x, latents, counts[latents])
        return sae

    def _batches(self, rows: ActivationReader) -> Iterator[Tensor]:
        left = self.config.rows
        for batch in rows.batches(_BATCH):
            yield batch[:left]
            left -= batch.shape[0]
            if left <= 0:
                return


def _thresholds(
    sae: SparseAutoencoder, x: Tensor, latents: Int[Tensor, " latents"], counts: Int[Tensor, " latents"]
) -> Tensor:
    """Return, for each latent, the value that exactly so many rows exceed, ties aside; not below zero."""
    pre = (x @ sae.w_enc[:, latents] + sae.encoder_bias[latents]).T
    most = min(int(counts.max()) + 1, x.shape[0])
    largest = pre.topk(most, dim=1).values
    found = largest.gather(1, counts.clamp(max=most - 1)[:, None]).squeeze(1)
    return found.clamp(min=0)


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``untrained_matched``."""
    return [
        ConstraintSpec(
            config=UntrainedMatchedConfig,
            build=UntrainedMatched,
            summary="As drawn, each latent's threshold set to the frequency of a trained twin's",
            source="after Sanity Checks for SAEs, appendix G",
        )
    ]
