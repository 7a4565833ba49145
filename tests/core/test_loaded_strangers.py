"""A stranger's architecture that loads SAEs, and a constraint that starts from them."""

from __future__ import annotations

import pytest

from saebench_core import api
from saebench_core.catalog import PluginChoice, make_catalog
from saebench_core.plan import make_plan
from saebench_core.upkeep import needs_of, unneeded
from tests.helpers.registries import CPU, changed, load
from tests.helpers.runs import of

PLUGIN = """
from typing import ClassVar, Literal

import torch

from saebench_core import (
    Checkpoint, Constraint, ConstraintConfig, ConstraintSpec, LoadedArchitecture, LoadedConfig, LoadedShape, LoadedSpec,
    SparseAutoencoder, ReLU, hookimpl, read_checkpoint
)


class Config(LoadedConfig):
    type: Literal["identity"] = "identity"


class Identity(LoadedArchitecture):
    def __init__(self, config):
        self.config = config

    def shape(self):
        return LoadedShape(8, 16)

    def fingerprint(self):
        return {}

    def load(self, context):
        eye = torch.eye(8, device=context.device)
        both = torch.cat([eye, -eye])
        sae = SparseAutoencoder.start(both.T, both, torch.zeros(8), ReLU(), "none")
        folder = context.product({"of": "identity"}, lambda folder: sae.save(folder / "sae", {})) / "sae"
        return read_checkpoint(folder)


class NullConfig(ConstraintConfig):
    type: Literal["null"] = "null"


class Null(Constraint):
    randomises: ClassVar[frozenset[str]] = frozenset({"pairing"})
    needs: ClassVar[str] = "trained"
    trains: ClassVar[bool] = False

    def __init__(self, config):
        self.config = config

    def frozen(self, roles, recipe):
        return frozenset()

    def finish(self, sae, twin):
        tensors = {name: tensor.clone() for name, tensor in twin.tensors.items()}
        tensors["W_dec"] = tensors["W_dec"].flip(0)
        return SparseAutoencoder(tensors, twin.rule, twin.centring)


@hookimpl
def register_architectures():
    return [LoadedSpec(config=Config, build=Identity, summary="every number and its negative")]


@hookimpl
def register_constraints():
    return [ConstraintSpec(config=NullConfig, build=Null, summary="the decoder turned over")]
"""


def test_a_stranger_can_load_saes_and_start_from_them(site, tmp_path):
    site.add("strangers", {"strangers": PLUGIN})
    text = changed(
        ("  - {type: topk, d_sae: 16}\n", "  - {type: identity, twin: {type: topk}}\n"),
        ("  - {type: soft_frozen_decoder, tau: 0.8}\n  - {type: untrained}\n", "  - {type: 'null'}\n"),
    )
    (tmp_path / "registry.yaml").write_text(text)
    catalog = make_catalog(PluginChoice(frozenset({"strangers"})))
    assert catalog.failures == ()
    plan = make_plan(load(text, catalog=catalog), catalog, CPU)
    itself, turned = (of(plan.cells, name, architecture="identity") for name in ("trained", "null"))
    assert plan.twins[turned.cell_id] == plan.train[itself.cell_id][1]
    work = api.open_registry(str(tmp_path / "registry.yaml"), tmp_path / "work")
    report = api.run_opened(work, track=False)
    assert report.exit_code == 0, [record.result.error for record in report.records]
    cells = [record.result for record in report.records]
    scores = of(cells, "trained", architecture="identity").metrics
    assert scores["reconstruction/explained_variance"].value == pytest.approx(1.0)
    assert len(list(work.store.keys("derived"))) == 1
    assert unneeded(work.store, needs_of([work])) == [], "what it made for itself is needed too"
    turned = of(cells, "null", architecture="identity").metrics["reconstruction/explained_variance"].value
    assert turned < 0, "each number is decoded as another's negative"
