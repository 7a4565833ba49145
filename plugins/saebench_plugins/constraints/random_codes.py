"""Random Codes: a trained twin's frequencies and strengths, on rows that have nothing to do with the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Final, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from saebench_core import (
    ActivationReader,
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Export,
    InputError,
    PreActivations,
    Randomised,
    Recipe,
    Role,
    Rule,
    Selected,
    Selection,
    Shape,
    SparseAutoencoder,
    TensorInfo,
    derive_seed,
    hookimpl,
    named_generator,
    tensor_sha256,
)

_BATCH: Final = 4096
_SALTS: Final = 1 << 24
"""Whole numbers below this are exact in fp32, in which an SAE's tensors are saved."""


@final
@dataclass(frozen=True)
class RandomPattern(Rule):
    """Each row fires one of so many patterns, chosen by a hash of its numbers; values are a latent's mean strength.

    In the table of patterns every latent is in as many as its frequency says, at places that a generator draws. A row's
    codes depend on the row alone, and equal rows have equal codes, but nothing in them tells what the row is.

    Attributes:
        patterns: number of patterns, a power of two; frequencies are met to one in so many.
    """

    patterns: int = 4096

    def tensors(self) -> Mapping[str, TensorInfo]:
        """How often a latent fires, how strongly, and the number that table and hash are drawn by."""
        return {
            "frequency": TensorInfo("threshold", ("d_sae",), scales=False, estimated=True),
            "magnitude": TensorInfo("other", ("d_sae",), estimated=True),
            "salt": TensorInfo("other", (), scales=False, estimated=True),
        }

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select as in inference."""
        return self.select_inference(pre, tensors)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select the latents of each row's pattern."""
        salt, frequency = int(tensors["salt"]), tensors["frequency"]
        found = _table(self.patterns, salt, frequency.detach().cpu().numpy().tobytes())
        latents, bounds = (tensor.to(frequency.device) for tensor in found)
        pattern = _hash(pre.centred, salt) % self.patterns
        widths = bounds.diff()[pattern]
        rows = torch.arange(pre.n_rows, device=pattern.device).repeat_interleave(widths)
        first = (bounds[:-1][pattern] - (widths.cumsum(0) - widths)).repeat_interleave(widths)
        cols = latents[first + torch.arange(rows.numel(), device=pattern.device)]
        return Selected(Selection(rows, cols, pre.n_rows, pre.d_sae), tensors["magnitude"][cols])

    def activate(
        self, pre: Float[Tensor, " entries"], selection: Selection, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, " entries"]:
        """Return the strengths of the latents."""
        return tensors["magnitude"].index_select(0, selection.cols)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write under a name of its own: no other library has such codes."""
        return Export("random_codes", {"patterns": self.patterns}, {name: tensors[name] for name in self.tensors()})


@lru_cache(maxsize=4)
def _table(patterns: int, salt: int, frequencies: bytes) -> tuple[Int[Tensor, " entries"], Int[Tensor, " bounds"]]:
    """Return the latents of all patterns, pattern by pattern, and where each pattern begins.

    Args:
        patterns: how many, a power of two.
        salt: the table is drawn by it.
        frequencies: of the latents, fp32.
    """
    frequency = torch.frombuffer(bytearray(frequencies), dtype=torch.float32)
    d_sae, draws = frequency.numel(), named_generator("random codes", salt)
    uniform = torch.rand(d_sae, generator=draws, dtype=torch.float64, device="cpu")
    counts = (frequency.double() * patterns + uniform).long().clamp(0, patterns)
    start = torch.randint(patterns, (d_sae,), generator=draws, device="cpu")
    stride = 2 * torch.randint(patterns // 2, (d_sae,), generator=draws, device="cpu") + 1
    latents = torch.arange(d_sae, device="cpu").repeat_interleave(counts)
    number = torch.arange(latents.numel(), device="cpu") - (counts.cumsum(0) - counts)[latents]
    pattern = (start[latents] + stride[latents] * number) % patterns  # odd strides meet no place twice
    pattern, order = torch.sort(pattern, stable=True)
    bounds = torch.zeros(patterns + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(torch.bincount(pattern, minlength=patterns), 0, out=bounds[1:])
    return latents[order], bounds


def _hash(rows: Float[Tensor, "rows d_in"], salt: int) -> Int[Tensor, " rows"]:
    """Return a number for each row, not below zero, that all bits of its numbers decide."""
    draws = named_generator("random codes", salt, "hash")
    odd = 2 * torch.randint(1 << 40, (rows.shape[1],), generator=draws, device="cpu") + 1
    bits = (rows + 0.0).contiguous().view(torch.int32).long() + 1  # of minus zero, zero
    mixed = (bits * odd.to(rows.device)).sum(1)
    return (mixed ^ (mixed >> 31)).mul(0x9E3779B1).bitwise_right_shift(20) & 0xFFFFFFF


class RandomCodesConfig(ConstraintConfig):
    """Configuration of `RandomCodes`."""

    type: Literal["random_codes"] = "random_codes"
    log2_patterns: int = Field(
        12, ge=4, le=16, description="Logarithm of the number of patterns; frequencies are met to one in so many."
    )


class RandomCodes(Constraint):
    """The trained twin's decoder under codes that keep its L0, frequencies and mean strengths, and say nothing.

    Whatever reads codes should fall to its floor; the decoder is the trained one.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"codes"})
    needs: ClassVar[str | None] = "trained"
    trains: ClassVar[bool] = False

    def __init__(self, config: RandomCodesConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Put the random patterns in the rule's place; keep the norms as drawn, one: the twin has its own."""
        return replace(recipe, rule=RandomPattern(1 << self.config.log2_patterns), decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: of the draw nothing is kept, and the twin's tensors are in the certificate."""
        return frozenset()

    def finish(self, sae: SparseAutoencoder, twin: SparseAutoencoder | None) -> SparseAutoencoder:
        """Return the twin's weights under the random rule."""
        if twin is None:
            raise InputError("random_codes takes its frequencies from a trained twin, and none was given")
        kept = {name: twin.tensors[name] for name in ("W_enc", "W_dec", "b_dec")}
        own = {name: torch.zeros_like(sae.tensors[name]) for name in sae.rule.tensors()}
        own["salt"].fill_(derive_seed("random codes", tensor_sha256(sae.w_dec)) % _SALTS)
        return SparseAutoencoder({**kept, **own, "b_enc": twin.encoder_bias}, sae.rule, twin.centring)

    def calibrate(
        self, sae: SparseAutoencoder, twin: SparseAutoencoder | None, rows: ActivationReader
    ) -> SparseAutoencoder:
        """Count how often and how strongly the twin's latents fire on the held-out rows."""
        if twin is None:
            raise InputError("random_codes takes its frequencies from a trained twin, and none was given")
        fires = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
        total = torch.zeros_like(fires)
        for batch in rows.batches(_BATCH):
            codes = twin.encode(batch)
            fires.index_add_(0, codes.selection.cols, (codes.values != 0).double())
            total.index_add_(0, codes.selection.cols, codes.values.double())
        sae.tensors["frequency"].copy_(fires / rows.rows)
        sae.tensors["magnitude"].copy_(total / fires.clamp(min=1))
        return sae


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``random_codes``."""
    return [
        ConstraintSpec(
            config=RandomCodesConfig,
            build=RandomCodes,
            summary="A trained decoder under random codes with the twin's L0, frequencies and strengths",
        )
    ]
