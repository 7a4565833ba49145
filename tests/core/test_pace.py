"""The pace of estimates: measured, of the threads that work will have, and in every estimate of a plan."""

import pytest
import torch

from saebench_core.api import pace as module
from saebench_core.api.pace import pace
from saebench_core.plan import NOMINAL_FLOPS, make_plan
from tests.helpers.registries import CPU, built_in, load


@pytest.fixture
def product(monkeypatch):
    """A product that takes as long as is said, on a clock of its own, and tells how many threads it had."""
    module._of_threads.cache_clear()
    clock, threads, seconds = [0.0], [], [0.0]

    def mm(left, right, out):
        threads.append(torch.get_num_threads())
        clock[0] += seconds[0]
        return out

    monkeypatch.setattr(module.torch, "mm", mm)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    yield threads, seconds
    module._of_threads.cache_clear()


def test_it_is_the_time_of_a_product_beside_the_nominal_one(product):
    threads, seconds = product
    seconds[0] = 3 * 2 * 1024 * 128 * 2048 / NOMINAL_FLOPS
    before = torch.get_num_threads()
    assert pace("cpu", 2) == pytest.approx(3)
    assert set(threads) == {2}
    assert torch.get_num_threads() == before
    seconds[0] *= 2
    assert pace("cpu", 2) == pytest.approx(3), "it is measured once"
    assert pace("cpu", None) == pytest.approx(6)
    assert pace("cuda", 2) == 1


def test_a_slow_machine_takes_longer_for_every_task():
    registry = load()
    usual, slow = (make_plan(registry, built_in(), CPU, pace=pace) for pace in (1.0, 2.5))
    assert len(usual.tasks) > 3
    for one, other in zip(usual.tasks, slow.tasks, strict=True):
        assert other.estimate.seconds == pytest.approx(2.5 * one.estimate.seconds)
        assert other.estimate.memory_bytes == one.estimate.memory_bytes
    assert slow.total(slow.tasks).seconds == pytest.approx(2.5 * usual.total(usual.tasks).seconds)
