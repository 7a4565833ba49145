"""What tests of the notebook's functions share: planted rows, and the arguments of short trainings."""

from __future__ import annotations

from typing import Any, Final

import torch
from ruamel.yaml import YAML

import saebench_core as sb
from saebench_core.randomness import named_generator
from tests.helpers.registries import TINY

EV: Final = "reconstruction/explained_variance"
TOPK: Final = {"type": "topk", "d_sae": 16}
TWINS: Final = ("trained", {"type": "frozen_decoder", "init": "cov"}, "untrained")
SETTINGS: Final = {"steps": 40, "batch_size": 32, "lr": 0.01}
SHORT: Final[dict[str, Any]] = {
    "l0": 3,
    "training": {"steps": 3, "batch_size": 32},
    "progress": False,
    "runtime": {"threads": 1},
}


def planted_rows() -> torch.Tensor:
    """Return 1,000 sparse mixtures of 16 directions in 8 dimensions."""
    features = torch.randn(16, 8, generator=named_generator("notebook", "features"))
    features = torch.nn.functional.normalize(features, dim=1)
    fires = torch.rand(1000, 16, generator=named_generator("notebook", "fires")) < 0.12
    return (fires * torch.rand(1000, 16, generator=named_generator("notebook", "sizes")).add(0.5)) @ features


def planted_twins(workdir: Any) -> sb.Results:
    """Train two seeds of each of `TWINS` on the planted rows."""
    return sb.train_twins(
        planted_rows(), TOPK, TWINS, workdir=workdir, **SHORT | {"training": SETTINGS, "seeds": [0, 1]}
    )


def data_of(text: str = TINY) -> dict[str, Any]:
    """Return a registry's text as Python data."""
    return dict(YAML(typ="safe").load(text))
