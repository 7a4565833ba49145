"""The worlds of SynthSAEBench: its parameters, the smaller one beside it, and that SAEs find features there."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from saebench_plugins.backbones.synthetic import Synthetic

from saebench_core.presets import preset_text
from saebench_core.registry import Document, load_registry
from tests.helpers.contexts import FakeContext
from tests.helpers.registries import built_in, call

ROWS = 5 * 4096


@cache
def registry_of(name):
    return load_registry(Document(f"preset:{name}", preset_text(name)), built_in())


def world_of(registry):
    return registry.active[0].backbone.config


def large():
    return registry_of("synth-sae-bench")


def small():
    return registry_of("synth-sae-bench-small")


def test_the_large_world_has_the_published_parameters():
    world = world_of(large())
    assert (world.n_features, world.d_in, world.seed, world.bias_norm) == (16_384, 768, 42, 0.5)
    assert (world.probability.low, world.probability.high, world.probability.exponent) == (5e-4, 0.4, 0.5)
    assert (world.hierarchy.roots, world.hierarchy.branching, world.hierarchy.depth) == (128, 4, 3)
    assert world.hierarchy.exclusive == 1 and world.hierarchy.compensate and world.hierarchy.scale_by_parent
    assert (world.correlation.type, world.correlation.rank, world.correlation.scale) == ("low_rank", 25, 0.1)
    assert (world.magnitude.first_mean, world.magnitude.last_mean) == (5, 4)
    assert (world.magnitude.std_mean, world.magnitude.std_spread) == (0.5, 0.5)
    assert (world.orthogonalise.steps, world.orthogonalise.lr) == (100, 3e-4)
    cells = large().active
    assert {cell.d_sae for cell in cells} == {4096}
    assert {cell.l0 for cell in cells} == set(range(15, 50, 5)) and {cell.seed for cell in cells} == set(range(5))
    assert {cell.training.tokens for cell in cells} == {200_000_000}


def test_the_small_world_is_of_the_same_kind():
    big, little = world_of(large()).model_dump(), world_of(small()).model_dump()
    assert (little["n_features"], little["d_in"]) == (512, 64)
    sizes = {"name", "n_features", "d_in", "probability", "hierarchy"}
    assert {key: value for key, value in big.items() if key not in sizes} == {
        key: value for key, value in little.items() if key not in sizes
    }
    assert little["hierarchy"] == big["hierarchy"] | {"roots": 6}
    assert little["probability"]["exponent"] == big["probability"]["exponent"]


def test_the_map_of_architectures_has_them_all():
    installed = {plugin.name for plugin in built_in().of_kind("architecture")} - {"pretrained"}
    assert {cell.architecture.type for cell in registry_of("map-architectures").active} == installed


def test_in_the_small_world_as_many_features_fire_as_its_registry_has_codes():
    backbone = Synthetic(world_of(small()))
    backbone.prepare(FakeContext(None))
    codes = backbone.codes("train", 0, ROWS)
    counts = torch.bincount(codes.selection.cols, minlength=512)
    assert int(counts.min()) > 0, "every feature is seen"
    l0 = codes.values.numel() / ROWS
    assert l0 == pytest.approx(float(backbone.probabilities().sum()), rel=0.03)
    targets = sorted({cell.l0 for cell in small().active})
    assert targets[0] < l0 < targets[-1] and min(abs(l0 - target) for target in targets) < 0.2
    assert int((backbone.parents() >= 0).sum()) == 6 * (4 + 16 + 64)


@pytest.mark.slow
def test_in_the_small_world_training_finds_features_and_a_frozen_decoder_does_not(tmp_path):
    only = "l0=4,seed=0,architecture=batch_topk,constraint=trained|frozen_decoder-iso|true_decoder"
    settings = ("--set", "training.steps=1500", "--set", "training.lr=3e-3")
    words = ("preset:synth-sae-bench-small", "--only", only, *settings)
    assert call("run", *words, cwd=tmp_path).code == 0
    document = json.loads(call("results", *words, "--json", cwd=tmp_path).out)
    done = [cell for cell in document["cells"] if cell["status"] == "done"]
    found = {cell["constraint"]["name"]: cell["metrics"]["feature_recovery/fraction_0.8"]["value"] for cell in done}
    assert found["true_decoder"] == 0.5, "256 latents for 512 features"
    assert found["trained"] > 0.05
    assert found["frozen_decoder-iso"] == 0
