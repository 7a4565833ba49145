"""The graph of a registry: tasks with what they make, what they need and what they are expected to cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from saebench_core.interfaces.backbone import BackboneConfig
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.metric import MetricConfig
from saebench_core.registry import Cell, Entry, Registry
from saebench_core.store import Store, content_key

__all__ = ["Estimate", "Kind", "Plan", "Product", "Task"]

Kind = Literal["activations", "metric", "load", "train", "score"]


@final
@dataclass(frozen=True)
class Estimate:
    """Expected cost on this machine.

    Attributes:
        seconds: of work.
        memory_bytes: held at once.
        disk_bytes: stored, and kept.
        scratch_bytes: stored while the work is going on.
        questions: to servers; how long they take is not known.
    """

    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    scratch_bytes: int = 0
    questions: int = 0


@final
@dataclass(frozen=True)
class Product:
    """A product's place in the store, and what its key was made from."""

    kind: str
    key: str
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, kind: str, identity: Mapping[str, Any]) -> Product:
        """Return the product with the key of this identity."""
        return cls(kind, content_key(identity), identity)


@final
@dataclass(frozen=True, eq=False)
class Task:
    """One unit of work.

    Attributes:
        kind: what it does.
        label: for people, unique in a plan.
        products: what it makes; a train task makes one SAE a cell.
        needs: tasks that must be done before.
        cells: cells that depend on it.
        backbone: entry whose activations are concerned.
        site: its site.
        split: for activations.
        rows: for activations.
        metric: for metric and score.
        beside: for a score that compares seeds, the same cell under the other ones, with their SAEs.
        estimate: expected cost.
    """

    kind: Kind
    label: str
    products: tuple[Product, ...]
    needs: tuple[Task, ...]
    cells: tuple[Cell, ...]
    backbone: Entry[BackboneConfig]
    site: str
    split: Split | None = None
    rows: int = 0
    metric: Entry[MetricConfig] | None = None
    beside: tuple[tuple[Cell, Product], ...] = ()
    estimate: Estimate = Estimate()

    def left(self, store: Store) -> int:
        """Return how many products are not there."""
        return sum(not store.has(product.kind, product.key) for product in self.products)

    def done(self, store: Store) -> bool:
        """Say whether all products are there."""
        return all(store.has(product.kind, product.key) for product in self.products)


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """The graph of a registry.

    Attributes:
        registry: what was planned.
        cells: the cells concerned, in order.
        tasks: in an order that respects `Task.needs`.
        train: the task and the product of every cell's SAE.
        scores: by cell id and metric name.
        identities: every backbone's part of product keys, by entry name.
        twins: the SAE that a cell's constraint starts from, by cell id.
        measured: the loaded SAE whose L0 a cell has, by cell id.
    """

    registry: Registry
    cells: tuple[Cell, ...]
    tasks: tuple[Task, ...]
    train: Mapping[str, tuple[Task, Product]]
    scores: Mapping[tuple[str, str], Task]
    identities: Mapping[str, Mapping[str, Any]]
    twins: Mapping[str, Product]
    measured: Mapping[str, Product]

    def waiting(self, store: Store) -> list[Task]:
        """Return the tasks whose products are not all there."""
        return [task for task in self.tasks if not task.done(store)]

    def total(self, tasks: Iterable[Task]) -> Estimate:
        """Return summed time, disk and questions, and the largest memory and scratch."""
        chosen = [task.estimate for task in tasks]
        return Estimate(
            sum(estimate.seconds for estimate in chosen),
            max((estimate.memory_bytes for estimate in chosen), default=0),
            sum(estimate.disk_bytes for estimate in chosen),
            max((estimate.scratch_bytes for estimate in chosen), default=0),
            sum(estimate.questions for estimate in chosen),
        )
