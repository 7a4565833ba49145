"""Cells to a graph of tasks with product keys and cost estimates; nothing is computed here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, cast, final

from saebench_core.catalog import Catalog
from saebench_core.errors import PluginError
from saebench_core.interfaces.backbone import Backbone, BackboneConfig, BackboneDescription
from saebench_core.interfaces.constraint import Constraint
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.loaded import LoadedArchitecture
from saebench_core.interfaces.metric import Metric, MetricConfig
from saebench_core.registry import Cell, Entry, Registry
from saebench_core.store import Store, canonical_json, content_key

__all__ = ["Environment", "Estimate", "Plan", "Product", "Task", "make_plan"]

Kind = Literal["activations", "metric", "load", "train", "score"]

_CORE: Final[Mapping[Kind, tuple[str, ...]]] = {
    "activations": ("activations", "interfaces/backbone.py", "kernels", "randomness.py", "sources"),
    "metric": (
        "activations", "interfaces/metric.py", "interfaces/backbone.py", "kernels", "randomness.py", "sources",
        "tasks/score.py",
    ),
    "load": (
        "activations", "formats", "kernels", "rules", "sae.py", "interfaces/loaded.py",
        "training/certificate.py", "tasks/load.py",
    ),
    "train": (
        "activations", "kernels", "rules", "objectives", "sae.py", "randomness.py",
        "interfaces/architecture.py", "interfaces/constraint.py", "training", "tasks/train.py", "tasks/finish.py",
        "tasks/references.py",
    ),
    "score": ("kernels", "rules", "sae.py", "interfaces/metric.py", "randomness.py", "tasks/score.py"),
}  # fmt: skip
"""Core modules, and folders of them, that shape a product; an edit of one makes its products anew."""


@lru_cache(maxsize=8)
def core_digest(kind: Kind) -> str:
    """Return the hash of the core modules that shape products of a kind."""
    root = Path(str(files("saebench_core")))
    digest = hashlib.sha256()
    for name in _CORE[kind]:
        place = root / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@final
@dataclass(frozen=True)
class Environment:
    """What of the machine shapes numbers: device kind, number format of backbones, torch version."""

    device: str
    backbone_dtype: str
    torch: str

    @classmethod
    def current(cls, device: str, backbone_dtype: str) -> Environment:
        """Return the environment of this process; torch's version is read without importing it."""
        return cls(device, backbone_dtype, version("torch"))


@final
@dataclass(frozen=True)
class Estimate:
    """Expected cost on this machine."""

    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0


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
    estimate: Estimate = Estimate()

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
        """Return summed time and disk, and the largest memory."""
        chosen = [task.estimate for task in tasks]
        return Estimate(
            sum(estimate.seconds for estimate in chosen),
            max((estimate.memory_bytes for estimate in chosen), default=0),
            sum(estimate.disk_bytes for estimate in chosen),
        )


def make_plan(
    registry: Registry, catalog: Catalog, environment: Environment, cells: Sequence[Cell] | None = None
) -> Plan:
    """Return the tasks that the cells need.

    Args:
        registry: validated registry.
        catalog: for twins that a constraint starts from.
        environment: what of the machine enters product keys.
        cells: a part of the registry's active cells; all by default.
    """
    return _Planner(registry, catalog, environment).plan(registry.active if cells is None else tuple(cells))


class _Planner:
    def __init__(self, registry: Registry, catalog: Catalog, environment: Environment) -> None:
        self.registry = registry
        self.catalog = catalog
        self.environment = environment
        self.tasks: list[Task] = []
        self._shared: dict[tuple[str, ...], Task] = {}
        self._backbones: dict[str, dict[str, Any]] = {}
        self._twins: dict[str, Product] = {}
        self._measured: dict[str, Product] = {}
        self._prepared: set[str] = set()

    def plan(self, cells: tuple[Cell, ...]) -> Plan:
        train: dict[str, tuple[Task, Product]] = {}
        scores: dict[tuple[str, str], Task] = {}
        for cell in cells:
            self._depth(cell)
        everything = self._with_twins(cells)
        for cell in everything:
            if cell.measured:
                itself = cell.reference.of if cell.reference else cell
                task = self._load(itself)
                train[itself.cell_id] = (task, task.products[0])
                self._measured[cell.cell_id] = task.products[0]
        for group in self._groups(tuple(cell for cell in everything if not cell.loaded)):
            task = self._train(group, train)
            for cell, product in zip(group, task.products, strict=True):
                train[cell.cell_id] = (task, product)
        for cell in cells:
            for metric in self.registry.metrics_of(cell):
                scores[cell.cell_id, metric.name] = self._score(cell, metric, *train[cell.cell_id])
        return Plan(
            self.registry, cells, tuple(self.tasks), train, scores, self._backbones, self._twins, self._measured
        )

    def _add(self, task: Task) -> Task:
        self.tasks.append(task)
        return task

    def _with_twins(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        """Return the cells, and before each the twin that its constraint starts from, if it is not among them."""
        known = {cell.cell_id for cell in cells}
        result: list[Cell] = []
        for cell in cells:
            twin = self._twin(cell)
            while twin is not None and twin.cell_id not in known:
                known.add(twin.cell_id)
                result.insert(0, twin)
                twin = self._twin(twin)
        return (*result, *cells)

    def _depth(self, cell: Cell) -> int:
        """Return how many SAEs must be trained before this one.

        Raises:
            PluginError: if constraints need one another in a circle.
        """
        seen: list[str] = []
        one: Cell | None = cell
        while one is not None:
            if one.constraint.type in seen:
                circle = " -> ".join([*seen, one.constraint.type])
                raise PluginError(f"constraints need one another in a circle: {circle}")
            seen.append(one.constraint.type)
            one = self._twin(one)
        return len(seen) - 1

    def _groups(self, cells: tuple[Cell, ...]) -> Iterator[tuple[Cell, ...]]:
        """Yield the cells that see the same stream; twins that others start from come in groups before them.

        References of a loaded SAE are a group of their own: where it cannot be read, the other cells go on.
        """
        waiting: dict[tuple[int, str, str, str, str, str], list[Cell]] = {}
        for cell in cells:
            training = canonical_json(cell.training.model_dump(mode="json"))
            beside = cell.reference.of.cell_id if cell.reference else ""
            key = (self._depth(cell), cell.backbone.name, cell.site, str(cell.seed), training, beside)
            waiting.setdefault(key, []).append(cell)
        for key in sorted(waiting, key=lambda key: key[0]):
            yield tuple(waiting[key])

    def _twin(self, cell: Cell) -> Cell | None:
        needs = cast(Constraint, cell.constraint.instance).needs
        if needs is None:
            return None
        if cell.reference is not None:
            return cell.reference.of
        plugin = self.catalog.get("constraint", needs)
        config = plugin.spec.config.model_validate({"type": needs, "init": cell.constraint.config.init})
        return replace(cell, constraint=Entry(needs, cast(Any, config), plugin))

    def _backbone_identity(self, entry: Entry[BackboneConfig]) -> dict[str, Any]:
        if entry.name not in self._backbones:
            regenerates = self.registry.descriptions[entry.name].regenerates
            self._backbones[entry.name] = {
                **self._entry_identity(entry),
                "fingerprint": dict(cast(Backbone, entry.instance).fingerprint()),
                "device": self.environment.device,
                "dtype": None if regenerates else self.environment.backbone_dtype,
                "torch": self.environment.torch,
            }
        return self._backbones[entry.name]

    def _entry_identity(self, entry: Entry[Any]) -> dict[str, Any]:
        return {"entry": entry.identity, "plugin": entry.plugin.identity()}

    def _activations(self, entry: Entry[BackboneConfig], site: str, split: Split, rows: int) -> Task:
        shared = ("activations", entry.name, site, split, str(rows))
        if shared not in self._shared:
            product = activations_product(self._backbone_identity(entry), site, split, rows)
            description = self.registry.descriptions[entry.name]
            estimate = Estimate(
                rows * description.seconds_per_row,
                description.memory_bytes,
                rows * description.sites[site] * 4 + self._preparation(entry),
            )
            label = f"activations | {entry.name} | {site} | {split}, {rows:,} rows"
            task = Task("activations", label, (product,), (), (), entry, site, split, rows, estimate=estimate)
            self._shared[shared] = self._add(task)
        return self._shared[shared]

    def _preparation(self, entry: Entry[BackboneConfig]) -> int:
        """Return what a backbone's preparation stores, to the first task that asks."""
        if entry.name in self._prepared:
            return 0
        self._prepared.add(entry.name)
        return self.registry.descriptions[entry.name].disk_bytes

    def _load(self, cell: Cell) -> Task:
        """Return the task that reads a loaded SAE and measures its L0, which nothing before it can know."""
        shared = ("load", cell.cell_id)
        if shared not in self._shared:
            rows = cell.training.evaluation_rows
            stored = not self.registry.descriptions[cell.backbone.name].regenerates
            identity = {
                "cell": cell.identity,
                "backbone": self._backbone_identity(cell.backbone),
                "architecture": cell.architecture.plugin.identity(),
                "fingerprint": dict(cast(LoadedArchitecture, cell.architecture.instance).fingerprint()),
                "core": core_digest("load"),
                "activations": core_digest("activations"),
            }
            needs = [self._activations(cell.backbone, cell.site, "evaluation", rows)] if stored else []
            label = f"load | {cell.backbone.name} | {cell.site} | {cell.architecture.name}"
            estimate = Estimate(
                1.0 + 2.0 * rows * cell.d_in * cell.d_sae / _FLOPS, 3 * sae_bytes(cell), sae_bytes(cell)
            )
            product = Product.of("sae", identity)
            task = Task("load", label, (product,), tuple(needs), (cell,), cell.backbone, cell.site, estimate=estimate)
            self._shared[shared] = self._add(task)
        return self._shared[shared]

    def _train(self, group: tuple[Cell, ...], train: Mapping[str, tuple[Task, Product]]) -> Task:
        first = group[0]
        backbone = self._backbone_identity(first.backbone)
        stored = not self.registry.descriptions[first.backbone.name].regenerates
        settings = first.training
        rows: dict[Split, int] = {
            "train": settings.total_rows,
            "calibration": settings.calibration_rows,
            "evaluation": settings.evaluation_rows,
        }
        streamed = settings.activations == "streamed"
        if streamed:
            del rows["train"]
        needs = [self._activations(first.backbone, first.site, split, count) for split, count in rows.items() if stored]
        shared = {"backbone": backbone, "core": core_digest("train"), "activations": core_digest("activations")}
        key = content_key(shared)
        products = []
        for cell in group:
            twin = self._twin(cell)
            if twin is not None:
                needs.append(train[twin.cell_id][0])
                self._twins[cell.cell_id] = train[twin.cell_id][1]
            identity = {
                "cell": cell.identity,
                "stream": key,
                "architecture": cell.recipe.plugin.identity(),
                "constraint": cell.constraint.plugin.identity(),
                "twin": train[twin.cell_id][1].key if twin else None,
            }
            if cell.reference is not None:
                beside = train[cell.reference.of.cell_id]
                identity["beside"] = beside[1].key
                needs.append(beside[0])
            products.append(Product.of("sae", identity))
        names = sorted({cell.architecture.name for cell in group})
        label = f"train | {first.backbone.name} | {first.site} | {', '.join(names)} | s{first.seed} | {len(group)} SAEs"
        label += " | streamed" if streamed else ""
        return self._add(
            Task(
                "train",
                label,
                tuple(products),
                tuple(needs),
                group,
                first.backbone,
                first.site,
                estimate=_train_cost(group, self.registry.descriptions[first.backbone.name], stored and not streamed),
            )
        )

    def _metric(self, metric: Entry[MetricConfig], cell: Cell) -> Task:
        shared = ("metric", metric.name, cell.backbone.name, cell.site)
        if shared not in self._shared:
            instance = cast(Metric, metric.instance)
            identity = {
                **self._entry_identity(metric),
                "version": instance.version,
                "fingerprint": dict(instance.fingerprint()),
                "backbone": self._backbone_identity(cell.backbone),
                "site": cell.site,
                "core": core_digest("metric"),
            }
            label = f"prepare | {metric.name} | {cell.backbone.name} | {cell.site}"
            product = Product.of("metric", identity)
            description = self.registry.descriptions[cell.backbone.name]
            needs = tuple(
                self._activations(cell.backbone, cell.site, split, rows)
                for split, rows in instance.rows().items()
                if not description.regenerates
            )
            disk = instance.stored_bytes(description, cell.site) + self._preparation(cell.backbone)
            estimate = Estimate(1.0 if description.regenerates else 15.0, description.memory_bytes, disk)
            task = Task(
                "metric", label, (product,), needs, (), cell.backbone, cell.site, metric=metric, estimate=estimate
            )
            self._shared[shared] = self._add(task)
        return self._shared[shared]

    def _score(self, cell: Cell, metric: Entry[MetricConfig], train: Task, sae: Product) -> Task:
        prepared = self._metric(metric, cell)
        identity = {"sae": sae.key, "metric": prepared.products[0].key, "core": core_digest("score")}
        return self._add(
            Task(
                "score",
                f"score | {metric.name} | {cell.label}",
                (Product.of("score", identity),),
                (train, prepared),
                (cell,),
                cell.backbone,
                cell.site,
                metric=metric,
                estimate=Estimate(self._score_seconds(cell), 2 * sae_bytes(cell), 1 << 18),
            )
        )

    def _score_seconds(self, cell: Cell) -> float:
        """Return a guess: what a score takes depends on the metric, most of all on whether it runs the backbone."""
        return 0.1 if self.registry.descriptions[cell.backbone.name].regenerates else 1.5


def activations_product(backbone: Mapping[str, Any], site: str, split: Split, rows: int) -> Product:
    """Return the product that holds a split's first rows."""
    identity = {"backbone": backbone, "site": site, "split": split, "rows": rows, "core": core_digest("activations")}
    return Product.of("activations", identity)


def sae_bytes(cell: Cell) -> int:
    """Return the size of an SAE's weights in fp32."""
    return 4 * (2 * cell.d_in * cell.d_sae + 2 * cell.d_sae + cell.d_in)


_PRODUCTS_A_STEP: Final = 1.3
_FLOPS: Final = 1.5e11
_STEP_OVERHEAD: Final = 8e-3


def _train_cost(group: Sequence[Cell], backbone: BackboneDescription, stored: bool) -> Estimate:
    """Return the cost of a group: a step is a few encoder products and a constant, at rough rates for 2 cores.

    Where rows are not stored, each group has the backbone's time once more, and its memory.
    """
    settings, d_in = group[0].training, group[0].d_in
    seconds = 0.0 if stored else settings.total_rows * backbone.seconds_per_row
    memory = 0 if stored else backbone.memory_bytes
    if settings.activations == "streamed":
        memory += 4 * d_in * min(settings.buffer_rows, settings.total_rows)
    for cell in group:
        if not cast(Constraint, cell.constraint.instance).trains:
            continue
        product = 2.0 * cell.training.batch_size * cell.d_in * cell.d_sae / _FLOPS
        seconds += cell.training.total_steps * (_PRODUCTS_A_STEP * product + _STEP_OVERHEAD)
    batch = max(cell.training.batch_size * cell.d_sae * 4 * 3 for cell in group)
    return Estimate(seconds, 5 * sum(map(sae_bytes, group)) + batch + memory, sum(map(sae_bytes, group)))
