"""Cuts the stream of a backbone into rows and batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.errors import PluginError
from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.context import Split

__all__ = ["inputs_of", "rebatch"]


def inputs_of(
    backbone: Backbone, site: str, split: Split, start: int, rows: int, device: torch.device
) -> Iterator[Float[Tensor, "rows d_in"]]:
    """Yield the rows of a stream as they come.

    Raises:
        PluginError: if the targets are not the inputs; they are refused rather than passed over.
    """
    for batch in backbone.stream(site, split, start, rows):
        if batch.targets is not batch.inputs:
            raise PluginError("the backbone gives targets that are not its inputs; only autoencoders are trained")
        yield batch.inputs.to(device)


def rebatch(
    backbone: Backbone, site: str, split: Split, rows: int, batch_size: int, device: torch.device
) -> Iterator[Float[Tensor, "rows d_in"]]:
    """Cut a stream from its start into batches of one size; the last may be smaller."""
    waiting: list[Tensor] = []
    held = 0
    for part in inputs_of(backbone, site, split, 0, rows, device):
        waiting.append(part)
        held += part.shape[0]
        if held < batch_size:
            continue
        joined = torch.cat(waiting)
        full = held // batch_size * batch_size
        yield from torch.split(joined[:full], batch_size)
        waiting, held = [joined[full:]], held - full
    if held:
        yield torch.cat(waiting)
