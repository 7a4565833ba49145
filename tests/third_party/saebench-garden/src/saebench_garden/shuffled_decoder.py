"""A baseline: a trained SAE whose decoder directions have their coordinates shuffled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    InputError,
    Json,
    Randomised,
    Recipe,
    Role,
    Shape,
    SparseAutoencoder,
    Start,
    hookimpl,
    named_generator,
    tensor_sha256,
)


class ShuffledDecoderConfig(ConstraintConfig):
    """Configuration of `ShuffledDecoder`."""

    type: Literal["shuffled_decoder"] = "shuffled_decoder"


def shuffle_of(drawn: Tensor) -> Int[Tensor, "d_sae d_in"]:
    """Return a permutation of the coordinates for every row.

    It follows from the directions as they were drawn, whose hash the certificate has: no further number has to be kept.
    """
    generator = named_generator("shuffled_decoder", tensor_sha256(drawn))
    return torch.rand(drawn.shape, generator=generator, device="cpu").argsort(dim=1).to(drawn.device)


class ShuffledDecoder(Constraint):
    """The trained twin with the coordinates of each decoder row permuted.

    A row keeps its norm and its numbers and loses its direction. Encoder, codes and L0 are the twin's.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"decoder"})
    needs: ClassVar[str | None] = "trained"
    trains: ClassVar[bool] = False

    def __init__(self, config: ShuffledDecoderConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Keep the directions as drawn, with norm one: `finish` and `certify` read the shuffle from them."""
        return replace(recipe, decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: there are no steps, and what is published is the twin's, whose hashes the certificate has."""
        return frozenset()

    def finish(self, sae: SparseAutoencoder, twin: SparseAutoencoder | None) -> SparseAutoencoder:
        """Return the twin with its decoder shuffled.

        Raises:
            InputError: if there is no twin.
        """
        if twin is None:
            raise InputError("shuffled_decoder starts from a trained twin, and none was given")
        rows = twin.w_dec.gather(1, shuffle_of(sae.w_dec))
        return SparseAutoencoder({**twin.tensors, "W_dec": rows}, twin.rule, twin.centring)

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the hash of the twin's decoder, which is this one with the shuffle undone."""
        rows = torch.empty_like(sae.w_dec)
        rows.scatter_(1, shuffle_of(start.w_dec), sae.w_dec)
        return {"unshuffled_w_dec_sha256": tensor_sha256(rows)}


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``shuffled_decoder``."""
    return [
        ConstraintSpec(
            config=ShuffledDecoderConfig,
            build=ShuffledDecoder,
            summary="A trained SAE with the coordinates of each decoder direction shuffled",
        )
    ]
