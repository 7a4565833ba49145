"""What tasks are expected to cost, by how fast a machine makes products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from saebench_core.interfaces.backbone import BackboneDescription
from saebench_core.interfaces.constraint import Constraint
from saebench_core.interfaces.metric import Work
from saebench_core.plan.graph import Estimate
from saebench_core.registry import Cell
from saebench_core.training.fitting import kept_bytes, parts_that_fit, passing_bytes

__all__ = [
    "NOMINAL",
    "Machine",
    "activations_cost",
    "load_cost",
    "metric_cost",
    "sae_bytes",
    "score_cost",
    "train_cost",
]

_PRODUCTS_A_STEP: Final = 0.8
_STEP_OVERHEAD: Final = 12e-3
"""Seconds a step, whatever its size: of a nominal thread, and of a faster one, for little of it is arithmetic."""
_CHECKPOINT: Final = 3
"""Times an SAE's weights: they and two moments each."""


class Gpu(NamedTuple):
    """A GPU that a plan is made for.

    Attributes:
        name: for people.
        fp32: operations a second of fp32 products without tensor cores, in which SAEs are trained.
        bf16: of dense bf16 products, in which a backbone may run.
        memory_bytes: what it has.
    """

    name: str
    fp32: float
    bf16: float
    memory_bytes: int


class Machine(NamedTuple):
    """What estimates go by.

    Attributes:
        thread_flops: operations a second of an fp32 product, of one thread.
        threads: that share a product.
        gpu: what the plan is for, in place of this machine.
        backbone_dtype: number format of backbones there, where theirs does not say.
    """

    thread_flops: float
    threads: int
    gpu: Gpu | None = None
    backbone_dtype: str = "fp32"

    @property
    def flops(self) -> float:
        """Operations a second of an fp32 product."""
        return self.thread_flops * self.threads

    def seconds_per_row(self, backbone: BackboneDescription) -> float:
        """Return the time of a row of activations: the backbone's own estimate for this machine, or by its size."""
        if self.gpu is None or backbone.flops_per_row is None:
            return backbone.seconds_per_row
        dtype = backbone.facts.get("dtype", "auto")
        return backbone.flops_per_row / (
            self.gpu.bf16 if (self.backbone_dtype if dtype == "auto" else dtype) == "bf16" else self.gpu.fp32
        )


NOMINAL: Final = Machine(9e10, 2)
"""Two cores of a server."""


def sae_bytes(cell: Cell) -> int:
    """Return the size of an SAE's weights in fp32."""
    return 4 * (2 * cell.d_in * cell.d_sae + 2 * cell.d_sae + cell.d_in)


def activations_cost(
    backbone: BackboneDescription, site: str, rows: int, preparation: int, machine: Machine
) -> Estimate:
    """Return the cost of rows, and of what the backbone's preparation stores with them."""
    disk = rows * backbone.sites[site] * 4 + preparation
    return Estimate(rows * machine.seconds_per_row(backbone), backbone.memory_bytes, disk)


def load_cost(cell: Cell, machine: Machine) -> Estimate:
    """Return the cost of reading an SAE and encoding the evaluation rows once."""
    seconds = 1.0 + 2.0 * cell.training.evaluation_rows * cell.d_in * cell.d_sae / machine.flops
    return Estimate(seconds, 3 * sae_bytes(cell), sae_bytes(cell))


def train_cost(group: Sequence[Cell], backbone: BackboneDescription, stored: bool, machine: Machine) -> Estimate:
    """Return the cost of a group: a step is a few encoder products and a constant.

    Where rows are not stored, each group has the backbone's time once more, and its memory.
    """
    settings, d_in = group[0].training, group[0].d_in
    seconds = 0.0
    overhead = _STEP_OVERHEAD * max(1.0, NOMINAL.thread_flops / machine.thread_flops)
    memory = 0 if stored else backbone.memory_bytes
    if settings.activations == "streamed":
        memory += 4 * d_in * min(settings.buffer_rows, settings.total_rows)
    for cell in group:
        if not _trains(cell):
            continue
        product = 2.0 * cell.training.batch_size * cell.d_in * cell.d_sae / machine.flops
        seconds += cell.training.total_steps * (_PRODUCTS_A_STEP * product + overhead)
    each = [kept_bytes(cell.d_in, cell.d_sae, _trains(cell)) for cell in group]
    passing = max(passing_bytes(cell.d_in, cell.d_sae) for cell in group)
    parts: list[Sequence[int]] = [each]
    if machine.gpu is not None:  # a group that does not fit is cut, and rows that are not stored are made for each part
        parts = parts_that_fit(each, max(each), passing + memory, machine.gpu.memory_bytes)
    seconds += 0.0 if stored else len(parts) * settings.total_rows * machine.seconds_per_row(backbone)
    needed = max(map(sum, parts)) + passing
    kept = [_CHECKPOINT * sae_bytes(cell) for cell in group if _trains(cell)]
    scratch = sum(kept) + max(kept, default=0)  # a new checkpoint stands beside the old one
    return Estimate(seconds, needed + memory, sum(map(sae_bytes, group)), scratch)


def _trains(cell: Cell) -> bool:
    return cast(Constraint, cell.constraint.instance).trains


def metric_cost(backbone: BackboneDescription, stored: int, work: Work, machine: Machine) -> Estimate:
    """Return the cost of a metric's inputs, of which that many bytes are stored."""
    seconds = (1.0 if backbone.regenerates else 15.0) + work.prepared * machine.seconds_per_row(backbone)
    return Estimate(seconds, backbone.memory_bytes, stored)


def score_cost(cell: Cell, backbone: BackboneDescription, work: Work, machine: Machine) -> Estimate:
    """Return the cost of a score: what it has the backbone compute and the SAE encode, and a guess for the rest."""
    seconds = 0.1 if backbone.regenerates else 1.5
    seconds += work.scored * machine.seconds_per_row(backbone)
    seconds += 2.0 * work.encoded * cell.d_in * cell.d_sae / machine.flops
    held = 2 * sae_bytes(cell) + (backbone.memory_bytes if work.scored else 0)
    return Estimate(seconds, held, 1 << 18, questions=work.asked)
