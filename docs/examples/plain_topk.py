"""TopK with the reconstruction loss alone: neither a pre-encoder bias nor a loss for dead latents."""

from typing import Literal

import saebench_core as sb


class PlainTopKConfig(sb.ArchitectureConfig):
    """Keys of the registry's entry; ``d_sae`` and ``expansion`` come from the base."""

    type: Literal["plain_topk"] = "plain_topk"


class PlainTopK(sb.Architecture):
    """Keeps the k largest pre-activations of each row."""

    def __init__(self, config: PlainTopKConfig) -> None:
        self.config = config

    def recipe(self, shape: sb.Shape) -> sb.Recipe:
        """Return rule and loss for these sizes."""
        objective = sb.Objective((sb.WeightedTerm(sb.Reconstruction()),))
        return sb.Recipe(sb.TopK(round(shape.l0)), objective, centring="none")


@sb.hookimpl
def register_architectures() -> list[sb.ArchitectureSpec]:
    """Offer ``plain_topk``."""
    return [sb.ArchitectureSpec(PlainTopKConfig, PlainTopK, "TopK with the reconstruction loss alone")]
