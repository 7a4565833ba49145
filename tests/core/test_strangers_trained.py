"""Strangers' rules and constraints in a run: scored as they were trained, and failed in words where they break."""

from __future__ import annotations

import pytest

from tests.helpers.registries import TINY
from tests.helpers.runs import cells, run

TRIPLED = """
from dataclasses import dataclass
from typing import Literal
import torch
from saebench_core import (
    Architecture, ArchitectureConfig, ArchitectureSpec, Export, Objective, Recipe, Reconstruction, Rule,
    WeightedTerm, hookimpl,
)

@dataclass(frozen=True)
class Tripled(Rule):
    def select_training(self, pre, tensors):
        return pre.above(0.0)

    select_inference = select_training

    def activate(self, pre, selection, tensors):
        return 3 * torch.relu(pre)

    def export(self, tensors):
        return Export("tripled", {}, {})

class TripledConfig(ArchitectureConfig):
    type: Literal["tripled"] = "tripled"

class TripledArchitecture(Architecture):
    def __init__(self, config):
        self.config = config

    def recipe(self, shape):
        return Recipe(Tripled(), Objective((WeightedTerm(Reconstruction()),)))

@hookimpl
def register_architectures():
    return [ArchitectureSpec(config=TripledConfig, build=TripledArchitecture, summary="positive parts times three")]
"""


def test_a_strangers_rule_is_scored_as_it_was_trained(folder, site):
    site.add("tripled-dist", {"resume_tripled": TRIPLED})
    text = TINY.replace("architectures:\n", "architectures:\n  - {type: tripled, d_sae: 16}\n")
    assert text != TINY
    (folder / "registry.yaml").write_text(text)
    assert run(folder).code == 0
    found = [cell for cell in cells(folder) if cell["architecture"]["type"] == "tripled"]
    assert found
    assert all(cell["status"] == "done" and cell["metrics"]["reconstruction/mse"]["status"] == "ok" for cell in found)


def test_a_strangers_sae_is_loaded_from_its_file_and_scored(folder, site):
    site.add("tripled-dist", {"resume_tripled": TRIPLED})
    (folder / "registry.yaml").write_text(
        TINY.replace("architectures:\n", "architectures:\n  - {type: tripled, d_sae: 16}\n")
    )
    assert run(folder).code == 0
    found = next(cell for cell in cells(folder) if cell["architecture"]["type"] == "tripled")
    place = folder / ".saebench" / found["artifacts"]["sae"]
    entry = f"  - {{name: mine, type: pretrained, path: '{place}', twin: {{type: tripled}}}}\n"
    (folder / "registry.yaml").write_text(TINY.replace("architectures:\n", f"architectures:\n{entry}"))
    assert run(folder).code == 0
    mine = [cell for cell in cells(folder) if cell["architecture"]["name"] == "mine"]
    loaded = next(cell for cell in mine if cell["constraint"]["type"] == "trained")
    assert loaded["certificate"]["loaded"]["plugins"]["architecture"]["type"] == "tripled"
    name = "reconstruction/mse"
    assert loaded["metrics"][name]["value"] == pytest.approx(found["metrics"][name]["value"], rel=1e-6)
    assert {cell["status"] for cell in mine} == {"done"}


def test_a_rule_whose_values_do_not_fold_fails_and_says_why(folder, site):
    source = TRIPLED.replace("3 * torch.relu(pre)", "torch.relu(pre) ** 2").replace("tripled", "squared")
    site.add("squared-dist", {"resume_squared": source})
    (folder / "registry.yaml").write_text(
        TINY.replace("architectures:\n", "architectures:\n  - {type: squared, d_sae: 16}\n")
    )
    assert run(folder).code == 1
    for cell in cells(folder):
        strange = cell["architecture"]["type"] == "squared" and cell["constraint"]["type"] != "untrained"
        assert cell["status"] == ("failed" if strange else "done"), cell["error"]
        assert not strange or "values must grow in proportion" in cell["error"]


LEAKY = """
from typing import Literal
from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, hookimpl

class LeakyConfig(ConstraintConfig):
    type: Literal["leaky"] = "leaky"

class Leaky(Constraint):
    randomises = frozenset({"decoder"})

    def __init__(self, config):
        self.config = config

    def frozen(self, roles, recipe):
        return frozenset(name for name, role in roles.items() if role == "decoder")

    def WHERE

@hookimpl
def register_constraints():
    return [ConstraintSpec(config=LeakyConfig, build=Leaky, summary="a frozen decoder that moves")]
"""


@pytest.mark.parametrize("where", ["project(self, sae, start): sae.w_dec[0] *= 1.001",
                                   "finish(self, sae, twin): sae.w_dec[0] *= 1.001; return sae"])  # fmt: skip
def test_a_frozen_tensor_that_moves_fails_its_cell(folder, site, where):
    name = f"leaky_{where[:6]}"
    site.add(f"{name}-dist", {name: LEAKY.replace("WHERE", where)})
    (folder / "registry.yaml").write_text(TINY.replace("constraints:\n", "constraints:\n  - {type: leaky}\n"))
    assert run(folder).code == 1
    for cell in cells(folder):
        leaky = cell["constraint"]["type"] == "leaky"
        assert cell["status"] == ("failed" if leaky else "done"), cell["error"]
        assert not leaky or cell["error"].startswith("frozen tensors have moved: W_dec")
