"""A small context for tests of plugins: a store in a folder, one backbone, one site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.entry import Json
from saebench_core.randomness import named_generator
from saebench_core.rules import Rule
from saebench_core.sae_files import inference_rule
from saebench_core.store import Store, content_key


@dataclass
class FakeReader:
    """Activations that lie in memory."""

    values: torch.Tensor

    @property
    def rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.values.shape[1])

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        yield from self.values.split(batch_size)


@dataclass
class FakeContext:
    """`Context` and `MetricContext` over a temporary folder.

    Attributes:
        root: folder of the store.
        given: the backbone, prepared at first use; None for a context of the backbone itself.
        site: the site that is scored.
        seed: seed of the backbone.
        device: where tensors are made.
        backbone_dtype: number format of model backbones.
        built: the configurations of the products that were really built, in order.
        reports: what was reported as progress.
    """

    root: Path
    given: Backbone | None = None
    site: str = "values"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backbone_dtype: torch.dtype = torch.float32
    built: list[Mapping[str, Json]] = field(default_factory=list)
    reports: list[tuple[str, int, int]] = field(default_factory=list)
    _prepared: bool = False

    def progress(self, label: str, done: int, total: int) -> None:
        self.reports.append((label, done, total))

    def generator(self, role: str) -> torch.Generator:
        return named_generator(self.seed, role)

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        return self._made({"site": self.site}, config, build)

    def backbone_product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        return self._made({}, config, build)

    def _made(self, where: Mapping[str, Json], config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        def record_and_build(folder: Path) -> None:
            self.built.append(config)
            build(folder)

        identity = {**where, "own": dict(config)}
        return Store(self.root).make("product", content_key(identity), identity, record_and_build)

    def record(self, asked: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        return Store(self.root).make("record", content_key(dict(asked)), dict(asked), build)

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        return inference_rule(config)

    @property
    def backbone(self) -> Backbone:
        assert self.given is not None, "this context was made without a backbone"
        if not self._prepared:
            self.given.prepare(self)
            self._prepared = True
        return self.given

    def activations(self, split: Split, rows: int) -> FakeReader:
        available = self.backbone.rows_available(self.site, split)
        rows = rows if available is None else min(rows, available)
        batches = [batch.inputs for batch in self.backbone.stream(self.site, split, 0, rows)]
        return FakeReader(torch.cat(batches))


def at_home(model, *names):
    """Let some of a model's methods make their tensors on the CPU, whatever the default device is."""

    def wrapped(own):
        def method(*args, **kwargs):
            with torch.device("cpu"):
                return own(*args, **kwargs)

        return method

    for name in names:
        setattr(model, name, wrapped(getattr(model, name)))
    return model
