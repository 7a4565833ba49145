"""What keys of products are made from: configurations, plugins, the machine, and the core's own sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast, final

from saebench_core.catalog import Catalog
from saebench_core.interfaces.backbone import Backbone, BackboneConfig
from saebench_core.interfaces.context import Split
from saebench_core.interfaces.loaded import LoadedArchitecture
from saebench_core.interfaces.metric import Metric, MetricConfig
from saebench_core.plan.graph import Kind, Product
from saebench_core.registry import Cell, Entry
from saebench_core.store import content_key

__all__ = [
    "Environment",
    "activations_product",
    "backbone_identity",
    "core_digest",
    "loaded_product",
    "metric_product",
    "score_product",
    "stream_key",
    "trained_product",
]

_CORE: Final[Mapping[Kind, tuple[str, ...]]] = {
    "activations": ("activations", "interfaces/backbone.py", "kernels", "randomness.py", "sources"),
    "metric": (
        "activations", "interfaces/metric.py", "interfaces/backbone.py", "kernels", "randomness.py", "sources",
        "tasks/score.py",
    ),
    "load": (
        "activations", "formats", "kernels", "rules", "sae.py", "sae_files.py", "interfaces/loaded.py",
        "training/certificate.py", "tasks/load.py", "catalog/listing.py",
    ),
    "train": (
        "activations", "geometry.py", "kernels", "rules", "objectives", "sae.py", "sae_files.py", "randomness.py",
        "interfaces/architecture.py", "interfaces/constraint.py", "pursuit.py", "training", "tasks/train.py",
        "tasks/finish.py", "tasks/references.py",
    ),
    "score": (
        "catalog/listing.py", "kernels", "rules", "sae.py", "sae_files.py", "interfaces/metric.py", "randomness.py",
        "pursuit.py", "tasks/score.py",
    ),
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


def backbone_identity(entry: Entry[BackboneConfig], environment: Environment, regenerates: bool) -> dict[str, Any]:
    """Return a backbone's part of keys; one that draws its rows again knows no number format."""
    return {
        **_entry_identity(entry),
        "fingerprint": dict(cast(Backbone, entry.instance).fingerprint()),
        "device": environment.device,
        "dtype": None if regenerates else environment.backbone_dtype,
        "torch": environment.torch,
    }


def _entry_identity(entry: Entry[Any]) -> dict[str, Any]:
    return {"entry": entry.identity, "plugin": entry.plugin.identity()}


def activations_product(backbone: Mapping[str, Any], site: str, split: Split, rows: int) -> Product:
    """Return the product that holds a split's first rows."""
    identity = {"backbone": backbone, "site": site, "split": split, "rows": rows, "core": core_digest("activations")}
    return Product.of("activations", identity)


def loaded_product(cell: Cell, backbone: Mapping[str, Any], catalog: Catalog) -> Product:
    """Return the product of an SAE that is read from files.

    Raises:
        InputError: if a plugin whose rule it has is not installed.
    """
    architecture = cast(LoadedArchitecture, cell.architecture.instance)
    identity = {
        "cell": cell.identity,
        "backbone": backbone,
        "architecture": cell.architecture.plugin.identity(),
        "fingerprint": dict(architecture.fingerprint()),
        "plugins": {kind: catalog.get(kind, name).identity() for kind, name in architecture.plugins().items()},
        "core": core_digest("load"),
        "activations": core_digest("activations"),
    }
    return Product.of("sae", identity)


def stream_key(backbone: Mapping[str, Any]) -> str:
    """Return what all cells of a training group share of their keys."""
    return content_key({"backbone": backbone, "core": core_digest("train"), "activations": core_digest("activations")})


def trained_product(cell: Cell, stream: str, twin: Product | None, beside: Product | None) -> Product:
    """Return the product of an SAE that is trained.

    Args:
        cell: the SAE's.
        stream: from `stream_key`.
        twin: the SAE that its constraint starts from.
        beside: the loaded SAE that it is a reference of.
    """
    identity = {
        "cell": cell.identity,
        "stream": stream,
        "architecture": cell.recipe.plugin.identity(),
        "constraint": cell.constraint.plugin.identity(),
        "twin": twin.key if twin else None,
    }
    return Product.of("sae", identity | ({"beside": beside.key} if beside else {}))


def metric_product(metric: Entry[MetricConfig], site: str, backbone: Mapping[str, Any]) -> Product:
    """Return the product that holds a metric's inputs, floors and ceilings."""
    instance = cast(Metric, metric.instance)
    identity = {
        **_entry_identity(metric),
        "version": instance.version,
        "fingerprint": dict(instance.fingerprint()),
        "backbone": backbone,
        "site": site,
        "core": core_digest("metric"),
    }
    return Product.of("metric", identity)


def score_product(sae: Product, metric: Product, beside: Mapping[int, Product]) -> Product:
    """Return the product that holds one SAE's scores.

    Args:
        sae: the SAE.
        metric: what it is scored with.
        beside: SAEs of other seeds that the score reads, by seed.
    """
    identity: dict[str, Any] = {"sae": sae.key, "metric": metric.key, "core": core_digest("score")}
    if beside:
        identity["beside"] = {str(seed): product.key for seed, product in beside.items()}
    return Product.of("score", identity)
