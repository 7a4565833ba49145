"""Plans for a GPU that is not here: rates and memory as stated, time by the size of backbones and SAEs."""

from __future__ import annotations

import json

import pytest

from saebench_core import BackboneDescription, Work
from saebench_core.errors import InputError
from saebench_core.plan import GPUS, NOMINAL, Gpu, Machine, planned_gpu
from saebench_core.plan.costs import activations_cost, metric_cost, score_cost, train_cost
from tests.helpers.registries import TINY, call, load
from tests.helpers.training import build


def test_named_and_stated_gpus():
    known = planned_gpu("a100-80gb", "auto")
    half = Gpu("A100-80GB", 0.5 * 19.5e12, 0.5 * 312e12, 80_000_000_000)
    assert known == Machine(half.fp32, 1, half, "bf16")
    stated = planned_gpu("19.5:312:80", "bf16")
    assert (stated.gpu, stated.backbone_dtype) == (half._replace(name="19.5:312:80"), "bf16")
    assert planned_gpu("L4", "fp32").backbone_dtype == "fp32"
    for name in GPUS:
        assert planned_gpu(name, "auto").gpu.name == name


@pytest.mark.parametrize("name", ["B999", "19.5:312", "0:312:80", "a:b:c", "", "9" * 400 + ":1:1"])
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
    full = BackboneDescription("language", {"s": 8}, flops_per_row=3e9, facts={"dtype": "fp32"})
    assert activations_cost(full, "s", 1000, 0, machine).seconds == pytest.approx(1000 * 3e9 / 10e12)  # as it says
    work = Work(prepared=1_000_000)
    more = metric_cost(sized, 0, work, machine).seconds - metric_cost(sized, 0, Work(), machine).seconds
    assert more == pytest.approx(1e6 * 3e9 / 150e12)


def test_scores_cost_what_they_compute_by_hand():
    (cell, *_) = load().active
    sized = BackboneDescription("language", {"s": 8}, flops_per_row=3e9, memory_bytes=10**9)
    machine = planned_gpu("20:300:80", "bf16")
    nothing, read, encoded = (
        score_cost(cell, sized, work, machine) for work in (Work(), Work(scored=10**6), Work(encoded=10**9))
    )
    assert read.seconds - nothing.seconds == pytest.approx(1e6 * 3e9 / 150e12)
    assert read.memory_bytes - nothing.memory_bytes == 10**9  # the backbone is there, too
    assert encoded.seconds - nothing.seconds == pytest.approx(1e9 * 2 * cell.d_in * cell.d_sae / 10e12)


def test_groups_that_do_not_fit_are_cut_and_streamed_again():
    cells = [cell for cell in load().active if cell.seed == 0 and cell.constraint.instance.trains]
    sized = BackboneDescription("language", {"s": 8}, flops_per_row=3e9)
    large, small = (planned_gpu(f"20:300:{memory}", "bf16") for memory in ("80", "0.000025"))
    whole, cut = (train_cost(cells, sized, False, machine) for machine in (large, small))
    assert cut.memory_bytes < whole.memory_bytes
    streams = (cut.seconds - whole.seconds) / (cells[0].training.total_rows * 3e9 / 150e12)
    assert streams == pytest.approx(round(streams)) and 1 <= streams < len(cells)
    stored = [train_cost(cells, sized, True, machine).seconds for machine in (large, small)]
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("name", "options", "modality", "wanted"),
    [
        ("loss_recovered", {"sequences": 10, "tokens": 20}, "language", Work(1200, 800, 200)),
        ("autointerp", {"tokens": 1000}, "language", Work(1000, 0, 2000)),
        ("absorption", {"words": 100, "examples": 3}, "language", Work(2000, 0, 100)),
    ],
)
def test_metrics_say_what_they_compute(name, options, modality, wanted):
    description = BackboneDescription(modality, {"s": 8}, whole_pass=2.0)
    assert build("metric", name, **options).work(description) == wanted


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
