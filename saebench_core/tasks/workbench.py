"""What tasks work with: store, device, one loaded backbone, and the contexts that plugins see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch

from saebench_core.activations import LiveReader, StoredReader, collect
from saebench_core.catalog import Catalog, Plugin
from saebench_core.interfaces.backbone import Backbone, BackboneConfig, Precomputed
from saebench_core.interfaces.context import Progress, Split
from saebench_core.interfaces.entry import Json
from saebench_core.plan import Environment, Product, activations_product, core_digest
from saebench_core.randomness import named_generator
from saebench_core.registry import Entry
from saebench_core.rules import Rule
from saebench_core.sae import SparseAutoencoder
from saebench_core.store import Store
from saebench_core.training.checkpoints import FOLDER, Checkpoints

__all__ = ["PluginContext", "ScoringContext", "Workbench", "pick_device", "pick_dtype"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return the device that a setting names: ``auto`` takes cuda where there is one, else cpu.

    Not mps: it has no fp64, in which sums are accumulated.
    """
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` takes bf16 where the processor has instructions for it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


@final
class Workbench:
    """Tools of the tasks of one run; holds at most one loaded backbone."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        environment: Environment,
        device: torch.device,
        progress: Progress,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        self.store = store
        self.catalog = catalog
        self.environment = environment
        self.device = device
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = _one_at_a_time(progress)
        self._loaded: tuple[str, Backbone] | None = None
        self._counted: dict[str, dict[int, int]] = {}

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Number format that backbones run in."""
        return _DTYPES[self.environment.backbone_dtype]

    def backbone(self, entry: Entry[BackboneConfig]) -> Backbone:
        """Return the prepared backbone of an entry; the one loaded before makes room."""
        if self._loaded is None or self._loaded[0] != entry.name:
            self._loaded = None
            backbone = cast(Backbone, entry.plugin.spec.build(entry.config))
            backbone.prepare(PluginContext(self, entry.config.seed, entry.plugin))
            self._loaded = (entry.name, backbone)
        return self._loaded[1]

    def checkpoints(self, keys: Mapping[str, str]) -> Checkpoints:
        """Return what keeps SAEs in training, by the keys of their products."""
        return Checkpoints(self.store.root.parent / FOLDER, keys, self.checkpoint_seconds)

    def counted_windows(self, source: str) -> dict[int, int]:
        """Return the rows that windows of a streamed source were found to have, for all groups that stream it."""
        return self._counted.setdefault(source, {})

    def load_sae(self, folder: Path) -> SparseAutoencoder:
        """Return a saved SAE on the device; its rule may be a plugin's."""
        return self.catalog.load_sae(folder, str(self.device))

    def make(self, product: Product, build: Callable[[Path], None]) -> Path:
        """Return a product's folder, building it if it is not there."""
        return self.store.make(product.kind, product.key, product.identity, build)

    def reader(
        self, entry: Entry[BackboneConfig], identity: Mapping[str, Any], site: str, split: Split, rows: int
    ) -> LiveReader | StoredReader:
        """Return a split's first rows: drawn again where that is cheap, else stored once and mapped.

        Args:
            entry: backbone.
            identity: the backbone's part of product keys.
            site: place that is read.
            split: part of the data.
            rows: how many; fewer where the split has fewer.
        """
        if cast(Backbone, entry.instance).describe().regenerates:
            return self.live(entry, identity, site, split, rows)
        product = activations_product(identity, site, split, rows)

        def build(folder: Path) -> None:
            backbone = self.backbone(entry)
            available = backbone.rows_available(site, split)
            count = rows if available is None else min(rows, available)
            collect(backbone, site, split, count, folder, self.progress)

        return StoredReader(self.make(product, build), self.device)

    def live(
        self, entry: Entry[BackboneConfig], identity: Mapping[str, Any], site: str, split: Split, rows: int
    ) -> LiveReader | StoredReader:
        """Return a split's first rows as the backbone gives them, storing nothing; arguments as `reader`."""
        backbone, description = self.backbone(entry), cast(Backbone, entry.instance).describe()
        if isinstance(backbone, Precomputed):
            return StoredReader(backbone.folder(site, split), self.device, rows)
        available = backbone.rows_available(site, split)
        count = rows if available is None else min(rows, available)
        return LiveReader(backbone, site, split, count, description.sites[site], self.device)


def _one_at_a_time(progress: Progress) -> Progress:
    """Return a progress that threads may call at any time; listeners hear one call after the other."""
    lock = threading.Lock()

    def report(label: str, done: int, total: int) -> None:
        with lock:
            progress(label, done, total)

    return report


@dataclass(frozen=True)
class PluginContext:
    """`Context` of a plugin at work."""

    bench: Workbench
    seed: int
    plugin: Plugin

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""
        return self.bench.device

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Number format that model backbones run in."""
        return self.bench.backbone_dtype

    @property
    def progress(self) -> Progress:
        """Where to report progress."""
        return self.bench.progress

    def generator(self, role: str) -> torch.Generator:
        """Return a fresh generator for a role."""
        return named_generator(self.seed, self.plugin.kind, self.plugin.name, role)

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return a product of the plugin's own, made if it is not there."""
        environment = self.bench.environment
        identity = {
            "config": dict(config),
            "plugin": self.plugin.identity(),
            "name": self.plugin.name,
            "device": environment.device,
            "torch": environment.torch,
            "core": core_digest("activations"),
        }
        return self.bench.make(Product.of("derived", identity), build)

    def record(self, asked: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return what came from outside, got if it is not there."""
        return self.bench.make(Product.of("record", {"plugin": self.plugin.name, "asked": dict(asked)}), build)

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        """Return the rule of a saved SAE's configuration, which may be another plugin's."""
        return self.bench.catalog.rule_of(config)


@final
@dataclass(frozen=True)
class ScoringContext:
    """`MetricContext`: a plugin's context with one backbone and one site."""

    base: PluginContext
    entry: Entry[BackboneConfig]
    identity: Mapping[str, Any]
    site: str

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""
        return self.base.device

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Number format that model backbones run in."""
        return self.base.backbone_dtype

    @property
    def progress(self) -> Progress:
        """Where to report progress."""
        return self.base.progress

    def generator(self, role: str) -> torch.Generator:
        """Return a fresh generator for a role."""
        return self.base.generator(role)

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return a product of the metric's own for this backbone and site, made if it is not there."""
        return self._product({"site": self.site}, config, build)

    def backbone_product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return a product of the metric's own for this backbone, made if it is not there."""
        return self._product({}, config, build)

    def _product(self, where: Mapping[str, Json], config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        of: dict[str, Json] = {"backbone": dict(self.identity), **where, "scoring": core_digest("score")}
        return self.base.product({**of, "own": dict(config)}, build)

    def record(self, asked: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return what came from outside, got if it is not there."""
        return self.base.record(asked, build)

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        """Return the rule of a saved SAE's configuration, which may be another plugin's."""
        return self.base.rule_of(config)

    @property
    def backbone(self) -> Backbone:
        """The backbone, prepared at first use."""
        return self.base.bench.backbone(self.entry)

    def activations(self, split: Split, rows: int) -> LiveReader | StoredReader:
        """Return the first rows of a split, computed once for all cells."""
        return self.base.bench.reader(self.entry, self.identity, self.site, split, rows)
