"""Plans for a GPU that is not here: rates and memory as stated, time by the size of backbones and SAEs."""

from __future__ import annotations

import json

import pytest

from saebench_core import BackboneDescription, Work
from saebench_core.errors import InputError
from saebench_core.plan import GPUS, NOMINAL, Machine, planned_gpu
from saebench_core.plan.costs import activations_cost, metric_cost
from tests.helpers.registries import TINY, call


def test_named_and_stated_gpus():
    known = planned_gpu("a100-80gb", "auto")
    assert known == Machine(0.5 * 19.5e12, 1, 0.5 * 312e12, 80_000_000_000, "A100-80GB")
    assert planned_gpu("19.5:312:80", "bf16") == known._replace(name="19.5:312:80")
    assert planned_gpu("L4", "fp32").backbone_flops == 0.5 * 30.3e12
    for name in GPUS:
        assert planned_gpu(name, "auto").name == name


@pytest.mark.parametrize("name", ["B999", "19.5:312", "0:312:80", "a:b:c", ""])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"A100-80GB.*FP32:BF16:GB"):
        planned_gpu(name, "auto")


def test_time_by_size_by_hand():
    machine = planned_gpu("20:300:80", "bf16")
    sized = BackboneDescription("language", {"s": 8}, seconds_per_row=5.0, flops_per_row=3e9, memory_bytes=7)
    unsized = BackboneDescription("language", {"s": 8}, seconds_per_row=5.0)
    assert activations_cost(sized, "s", 1000, 0, machine).seconds == pytest.approx(1000 * 3e9 / 150e12)
    assert activations_cost(sized, "s", 1000, 0, NOMINAL).seconds == 5000
    assert activations_cost(unsized, "s", 1000, 0, machine).seconds == 5000  # it says for no other machine
    work = Work(prepared=1_000_000)
    more = metric_cost(sized, 0, work, machine).seconds - metric_cost(sized, 0, Work(), machine).seconds
    assert more == pytest.approx(1e6 * 3e9 / 150e12)


def test_the_command_line_plans_for_a_gpu(tmp_path):
    (tmp_path / "registry.yaml").write_text(TINY)
    found = call("plan", "--gpu", "L4", cwd=tmp_path)
    assert found.code == 0, found.err
    assert "on one L4 at half of its stated rates" in found.out
    assert "too large" not in found.out
    assert "too large" in call("plan", "--gpu", "10:10:0.000001", cwd=tmp_path).out
    document = json.loads(call("plan", "--gpu", "L4", "--json", cwd=tmp_path).out)
    assert document["gpu"] == {"name": "L4", "memory_bytes": 24_000_000_000}
    assert "gpu" not in json.loads(call("plan", "--json", cwd=tmp_path).out)
    wrong = call("plan", "--gpu", "L5", cwd=tmp_path)
    assert wrong.code == 2
    assert "--gpu L5: not known" in wrong.err
