"""Third-party distributions as pip leaves them behind: a dist-info with entry points, and modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from saebench_core.catalog import Catalog, LoadFailure

ARCHITECTURE = """
from typing import Literal

from saebench_core import (
    Architecture, ArchitectureConfig, ArchitectureSpec, Objective, Recipe, Reconstruction, TopK, WeightedTerm, hookimpl
)


class Config(ArchitectureConfig):
    type: Literal["NAME"] = "NAME"


class Mine(Architecture):
    def __init__(self, config):
        self.config = config

    def recipe(self, shape):
        return Recipe(TopK(round(shape.l0)), Objective((WeightedTerm(Reconstruction()),)))


@hookimpl
def register_architectures():
    return [ArchitectureSpec(config=Config, build=Mine, summary="a test's own")]
"""

METRIC = """
from typing import Literal

from saebench_core import Metric, MetricConfig, MetricSpec, Prepared, Score, ScoreInfo, Scored, hookimpl


class Config(MetricConfig):
    type: Literal["NAME"] = "NAME"


class Mine(Metric):
    def __init__(self, config):
        self.config = config

    def scores(self):
        return {"value": ScoreInfo("higher", "share", 0.0, 1.0, "both", "one half", "a test")}

    def applicable(self, backbone):
        return None

    def prepare(self, context):
        return Prepared()

    def score(self, subject, prepared, context):
        return Scored({"value": Score(0.5, 1)})


@hookimpl
def register_metrics():
    return [MetricSpec(config=Config, build=Mine, summary="a test's own")]
"""


class Site:
    """A folder for ``sys.path`` that holds distributions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        distribution: str,
        modules: Mapping[str, str],
        points: Mapping[str, str] | None = None,
        version: str = "1.0",
        requires: Sequence[str] = (),
    ) -> None:
        """Install a distribution: sources by dotted module name, and what its entry points name.

        By default there is one entry point, ``plugin``, which names the first module.
        """
        for name, source in modules.items():
            path = self.root.joinpath(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        points = {"plugin": next(iter(modules))} if points is None else points
        info = self.root / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needs}")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[saebench]\n{lines}")
        importlib.invalidate_caches()

    def forget(self) -> None:
        """Drop this folder's modules from the process."""
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(str(self.root)):
                del sys.modules[name]


def architecture(name: str) -> str:
    """Return the source of a plugin with one architecture."""
    return ARCHITECTURE.replace("NAME", name)


def metric(name: str) -> str:
    """Return the source of a plugin with one metric."""
    return METRIC.replace("NAME", name)


CORE_ARCHITECTURES = {
    "batch_topk", "gated", "jumprelu", "matryoshka", "ortsae", "p_anneal", "pretrained", "relu", "topk",
}  # fmt: skip
"""What comes with the core."""


def the_failure(catalog: Catalog, distribution: str = "broken-dist") -> LoadFailure:
    """Return the one load failure of a distribution; the core's own plugins are not harmed by it."""
    found = [failure for failure in catalog.failures if failure.distribution == distribution]
    assert len(found) == 1, catalog.failures
    assert set(catalog.names("architecture")) >= CORE_ARCHITECTURES, "the others are not harmed"
    return found[0]
