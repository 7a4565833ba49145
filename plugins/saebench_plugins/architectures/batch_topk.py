"""BatchTopK SAE (Bussmann et al. 2024): k latents a row on average over the batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    AuxK,
    BatchTopK,
    Objective,
    Recipe,
    Reconstruction,
    Shape,
    WeightedTerm,
    hookimpl,
)


class BatchTopKConfig(ArchitectureConfig):
    """Configuration of `BatchTopKArchitecture`."""

    later: ClassVar[frozenset[str]] = frozenset({"aux_k"})

    type: Literal["batch_topk"] = "batch_topk"
    aux_coefficient: NonNegativeFloat = Field(1 / 32, description="Weight of the loss that revives dead latents.")
    aux_k: PositiveInt | None = Field(
        None, description="Dead latents that the loss that revives them takes a row; null: half of `d_in`."
    )


class BatchTopKArchitecture(Architecture):
    """Trains on the ``k x rows`` largest positive pre-activations of a batch; infers by one global threshold."""

    def __init__(self, config: BatchTopKConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss; the threshold is calibrated on held-out rows after training."""
        terms = [WeightedTerm(Reconstruction())]
        if self.config.aux_coefficient:
            terms.append(WeightedTerm(AuxK(self.config.aux_k), self.config.aux_coefficient))
        return Recipe(BatchTopK(shape.l0), Objective(tuple(terms)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``batch_topk``."""
    return [
        ArchitectureSpec(
            config=BatchTopKConfig,
            build=BatchTopKArchitecture,
            summary="Keeps k latents a row on average; one global threshold in inference",
            source="Bussmann et al. 2024, arXiv 2412.06410",
        )
    ]
