"""From cells to tasks: each once, in an order in which what a task needs comes before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from saebench_core.catalog import Catalog
from saebench_core.interfaces.backbone import BackboneConfig
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.metric import Metric, MetricConfig, Work
from saebench_core.plan.costs import NOMINAL, Machine, activations_cost, load_cost, metric_cost, score_cost, train_cost
from saebench_core.plan.graph import Plan, Product, Task
from saebench_core.plan.keys import (
    Environment,
    activations_product,
    backbone_identity,
    loaded_product,
    metric_product,
    score_product,
    stream_key,
    trained_product,
)
from saebench_core.plan.order import groups, twin_of, with_twins
from saebench_core.registry import Cell, Entry, Registry

__all__ = ["make_plan"]


def make_plan(
    registry: Registry,
    catalog: Catalog,
    environment: Environment,
    cells: Sequence[Cell] | None = None,
    machine: Machine = NOMINAL,
) -> Plan:
    """Return the tasks that the cells need.

    Args:
        registry: validated registry.
        catalog: for twins that a constraint starts from.
        environment: what of the machine enters product keys.
        cells: a part of the registry's active cells; all by default.
        machine: what estimates go by.
    """
    return _Planner(registry, catalog, environment, machine).plan(registry.active if cells is None else tuple(cells))


class _Planner:
    def __init__(self, registry: Registry, catalog: Catalog, environment: Environment, machine: Machine) -> None:
        self.registry = registry
        self.catalog = catalog
        self.environment = environment
        self.machine = machine
        self._tasks: list[Task] = []
        self._shared: dict[tuple[str, ...], Task] = {}
        self._saes: dict[str, tuple[Task, Product]] = {}
        self._backbones: dict[str, dict[str, Any]] = {}
        self._twins: dict[str, Product] = {}
        self._measured: dict[str, Product] = {}
        self._prepared: set[str] = set()
        self._works: dict[tuple[str, str], Work] = {}

    def plan(self, cells: tuple[Cell, ...]) -> Plan:
        everything = with_twins(cells, self.catalog)
        for cell in everything:
            if cell.measured:
                self._measure(cell)
        for cell in cells:  # a metric without its key, data or package fails before hours of training
            for metric in self.registry.metrics_of(cell):
                self._metric(metric, cell.backbone, cell.site)
        for group in groups(tuple(cell for cell in everything if not cell.loaded), self.catalog):
            self._train(group)
        seeds = _by_seed(cells)
        scores = {
            (cell.cell_id, metric.name): self._score(cell, metric, seeds[_but_for_seed(cell)])
            for cell in cells
            for metric in self.registry.metrics_of(cell)
        }
        return Plan(
            self.registry,
            cells,
            tuple(self._tasks),
            self._saes,
            scores,
            self._backbones,
            self._twins,
            self._measured,
        )

    def _add(self, task: Task) -> Task:
        self._tasks.append(task)
        return task

    def _once(self, make: Callable[[], Task], *name: str) -> Task:
        """Return the task of this name, which the first that asks adds."""
        if name not in self._shared:
            self._shared[name] = self._add(make())
        return self._shared[name]

    def _backbone(self, entry: Entry[BackboneConfig]) -> dict[str, Any]:
        if entry.name not in self._backbones:
            regenerates = self.registry.descriptions[entry.name].regenerates
            self._backbones[entry.name] = backbone_identity(entry, self.environment, regenerates)
        return self._backbones[entry.name]

    def _preparation(self, entry: Entry[BackboneConfig]) -> int:
        """Return what a backbone's preparation stores, to the first task that asks."""
        if entry.name in self._prepared:
            return 0
        self._prepared.add(entry.name)
        return self.registry.descriptions[entry.name].disk_bytes

    def _activations(self, entry: Entry[BackboneConfig], site: str, split: Split, rows: int) -> Task:
        def make() -> Task:
            product = activations_product(self._backbone(entry), site, split, rows)
            description = self.registry.descriptions[entry.name]
            estimate = activations_cost(description, site, rows, self._preparation(entry), self.machine)
            label = f"activations | {entry.name} | {site} | {split}, {rows:,} rows"
            return Task("activations", label, (product,), (), (), entry, site, split, rows, estimate=estimate)

        return self._once(make, "activations", entry.name, site, split, str(rows))

    def _measure(self, cell: Cell) -> None:
        """See to the loaded SAE whose L0 a cell has."""
        loaded = cell.reference.of if cell.reference else cell
        task = self._load(loaded)
        self._saes[loaded.cell_id] = (task, task.products[0])
        self._measured[cell.cell_id] = task.products[0]

    def _load(self, cell: Cell) -> Task:
        """Return the task that reads a loaded SAE and measures its L0, which nothing before it can know."""

        def make() -> Task:
            product = loaded_product(cell, self._backbone(cell.backbone), self.catalog)
            needs: tuple[Task, ...] = ()
            if not self.registry.descriptions[cell.backbone.name].regenerates:
                rows = cell.training.evaluation_rows
                needs = (self._activations(cell.backbone, cell.site, "evaluation", rows),)
            label = f"load | {cell.backbone.name} | {cell.site} | {cell.architecture.name}"
            return Task(
                "load",
                label,
                (product,),
                needs,
                (cell,),
                cell.backbone,
                cell.site,
                estimate=load_cost(cell, self.machine),
            )

        return self._once(make, "load", cell.cell_id)

    def _train(self, group: tuple[Cell, ...]) -> None:
        first = group[0]
        description = self.registry.descriptions[first.backbone.name]
        streamed = first.training.activations == "streamed"
        needs = [] if description.regenerates else self._stored_rows(first, streamed)
        stream = stream_key(self._backbone(first.backbone))
        products = []
        for cell in group:
            product, before = self._trained(cell, stream)
            products.append(product)
            needs.extend(before)
        names = ", ".join(sorted({cell.architecture.name for cell in group}))
        label = f"train | {first.backbone.name} | {first.site} | {names} | s{first.seed} | {len(group)} SAEs"
        label += " | streamed" if streamed else ""
        estimate = train_cost(group, description, not description.regenerates and not streamed, self.machine)
        made = tuple(products)
        task = self._add(Task("train", label, made, tuple(needs), group, first.backbone, first.site, estimate=estimate))
        self._saes.update({cell.cell_id: (task, product) for cell, product in zip(group, made, strict=True)})

    def _stored_rows(self, cell: Cell, streamed: bool) -> list[Task]:
        settings = cell.training
        rows: dict[Split, int] = {
            "train": settings.total_rows,
            "calibration": settings.calibration_rows,
            "evaluation": settings.evaluation_rows,
        }
        if streamed:
            del rows["train"]
        return [self._activations(cell.backbone, cell.site, split, count) for split, count in rows.items()]

    def _trained(self, cell: Cell, stream: str) -> tuple[Product, list[Task]]:
        """Return a cell's product, and the tasks of the SAEs that it needs."""
        needs: list[Task] = []

        def product_of(other: Cell | None) -> Product | None:
            if other is None:
                return None
            task, product = self._saes[other.cell_id]
            needs.append(task)
            return product

        twin = product_of(twin_of(cell, self.catalog))
        if twin is not None:
            self._twins[cell.cell_id] = twin
        beside = product_of(cell.reference.of if cell.reference else None)
        return trained_product(cell, stream, twin, beside), needs

    def _work(self, metric: Entry[MetricConfig], backbone: Entry[BackboneConfig]) -> Work:
        """Return what a metric has computed; asked once, for it may have to look tables up."""
        place = (metric.name, backbone.name)
        if place not in self._works:
            self._works[place] = cast(Metric, metric.instance).work(self.registry.descriptions[backbone.name])
        return self._works[place]

    def _metric(self, metric: Entry[MetricConfig], backbone: Entry[BackboneConfig], site: str) -> Task:
        def make() -> Task:
            instance = cast(Metric, metric.instance)
            product = metric_product(metric, site, self._backbone(backbone))
            description = self.registry.descriptions[backbone.name]
            needs = tuple(
                self._activations(backbone, site, split, rows)
                for split, rows in instance.rows().items()
                if not description.regenerates
            )
            stored = instance.stored_bytes(description, site) + self._preparation(backbone)
            label = f"prepare | {metric.name} | {backbone.name} | {site}"
            estimate = metric_cost(description, stored, self._work(metric, backbone), self.machine)
            return Task("metric", label, (product,), needs, (), backbone, site, metric=metric, estimate=estimate)

        return self._once(make, "metric", metric.name, backbone.name, site)

    def _score(self, cell: Cell, metric: Entry[MetricConfig], seeds: Sequence[Cell]) -> Task:
        train, sae = self._saes[cell.cell_id]
        others = [other for other in seeds if other is not cell] if metric.instance.compares_seeds else []
        beside = tuple((other, self._saes[other.cell_id][1]) for other in others)
        prepared = self._metric(metric, cell.backbone, cell.site)
        description = self.registry.descriptions[cell.backbone.name]
        return self._add(
            Task(
                "score",
                f"score | {metric.name} | {cell.label}",
                (score_product(sae, prepared.products[0], {other.seed: product for other, product in beside}),),
                (train, prepared, *(self._saes[other.cell_id][0] for other in others)),
                (cell,),
                cell.backbone,
                cell.site,
                metric=metric,
                beside=beside,
                estimate=score_cost(cell, description, self._work(metric, cell.backbone), self.machine),
            )
        )


def _but_for_seed(cell: Cell) -> str:
    """Return what a cell shares with the same cell under other seeds."""
    return replace(cell, seed=0).cell_id


def _by_seed(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(_but_for_seed(cell), []).append(cell)
    return found
