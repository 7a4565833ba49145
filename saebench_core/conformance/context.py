"""The context that the kit hands to a plugin: a temporary store, and rows that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.catalog import Catalog
from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.entry import Json
from saebench_core.randomness import named_generator
from saebench_core.rules import Rule
from saebench_core.store import Store, content_key

__all__ = ["KitContext", "MemoryReader"]


@final
@dataclass(frozen=True)
class MemoryReader:
    """Rows in memory, cut as somebody asks, or finer.

    Attributes:
        values: the rows.
        finest: most rows of a batch, whatever is asked for; None for what is asked for.
    """

    values: Float[Tensor, "rows d_in"]
    finest: int | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.values.shape[0])

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return int(self.values.shape[1])

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows in order."""
        size = batch_size if self.finest is None else min(batch_size, self.finest)
        for part in torch.split(self.values, size):
            yield part.clone()


@final
@dataclass
class KitContext:
    """`Context` and `MetricContext` over a temporary folder.

    Attributes:
        folder: of the store.
        given: the backbone, prepared at first use; None for a context of the backbone itself.
        site: the site that is scored.
        catalog: where rules of saved SAEs are looked up.
        role: what generators are drawn for beside the roles that a plugin names.
        finest: most rows of a batch.
        asked: rows of each split that were asked for.
    """

    folder: Path
    given: Backbone | None = None
    site: str = ""
    catalog: Catalog | None = None
    role: str = "kit"
    finest: int | None = None
    asked: dict[Split, int] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backbone_dtype: torch.dtype = torch.float32
    _prepared: bool = False

    def progress(self, label: str, done: int, total: int) -> None:
        """Report to nobody."""

    def generator(self, role: str) -> torch.Generator:
        """Return a fresh generator for a role."""
        return named_generator(self.role, role)

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return a product, made if the folder does not have it."""
        return self.backbone_product({"site": self.site, "own": dict(config)}, build)

    def backbone_product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return a product that sites share, made if the folder does not have it."""
        return Store(self.folder).make("product", content_key(dict(config)), dict(config), build)

    def record(self, asked: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return what came from outside, got if the folder does not have it."""
        return Store(self.folder).make("record", content_key(dict(asked)), dict(asked), build)

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        """Return the rule of a saved SAE."""
        return (self.catalog or Catalog([], [])).rule_of(config)

    @property
    def backbone(self) -> Backbone:
        """The backbone, prepared at first use.

        Raises:
            RuntimeError: if this context has none.
        """
        if self.given is None:
            raise RuntimeError("this context has no backbone")
        if not self._prepared:
            self.given.prepare(self)
            self._prepared = True
        return self.given

    def activations(self, split: Split, rows: int) -> MemoryReader:
        """Return the first rows of a split."""
        self.asked[split] = max(rows, self.asked.get(split, 0))
        available = self.backbone.rows_available(self.site, split)
        count = rows if available is None else min(rows, available)
        parts = [batch.inputs for batch in self.backbone.stream(self.site, split, 0, count)]
        return MemoryReader(torch.cat(parts), self.finest)
