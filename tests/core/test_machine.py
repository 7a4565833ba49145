"""What estimates go by: a product of one thread, measured once, and how many threads share the work."""

import pytest
import torch

from saebench_core.api import machine as module
from saebench_core.api.machine import measured
from saebench_core.plan import NOMINAL, Machine, make_plan
from tests.helpers.registries import CPU, built_in, load

OPERATIONS = 2 * 1024 * 128 * 2048


@pytest.fixture
def product(monkeypatch):
    """A product that takes as long as is said, on a clock of its own, and tells how many threads it had."""
    module._thread_flops.cache_clear()
    clock, threads, seconds = [0.0], [], [0.0]

    def mm(left, right, out):
        threads.append(torch.get_num_threads())
        clock[0] += seconds[0]
        return out

    monkeypatch.setattr(module.torch, "mm", mm)
    monkeypatch.setattr(module.time, "process_time", lambda: clock[0])
    yield threads, seconds
    module._thread_flops.cache_clear()


def test_one_thread_is_measured_once_and_its_rate_is_that_of_each(product):
    threads, seconds = product
    seconds[0] = 0.25
    before = torch.get_num_threads()
    assert measured("cpu", 3) == Machine(4 * OPERATIONS, 3)
    assert measured("cpu", 3).flops == 12 * OPERATIONS
    assert set(threads) == {1}
    assert torch.get_num_threads() == before
    seconds[0] = 0.5
    assert measured("cpu", None) == Machine(4 * OPERATIONS, before)
    assert measured("cuda", 3) == NOMINAL


def test_a_clock_that_stands_still_gives_a_rate(product):
    assert measured("cpu", 1).flops > 0


def test_training_is_expected_to_take_longer_on_a_slow_machine_and_nothing_else_is():
    registry, slow = load(), Machine(NOMINAL.thread_flops / 4, NOMINAL.threads)
    usual, later = (make_plan(registry, built_in(), CPU, machine=machine) for machine in (NOMINAL, slow))
    fewer = make_plan(registry, built_in(), CPU, machine=Machine(NOMINAL.thread_flops, 1))
    seen = set()
    for one, other, alone in zip(usual.tasks, later.tasks, fewer.tasks, strict=True):
        ratio = other.estimate.seconds / one.estimate.seconds
        if one.kind == "train" and one.estimate.seconds > 0.1:
            assert 3 < ratio <= 4, "but for what makes its rows"
            assert 1 < alone.estimate.seconds / one.estimate.seconds < 2, "a step has a part that threads do not share"
            seen.add("train")
        elif one.kind != "train":
            assert ratio == 1
            seen.add("other")
    assert seen == {"train", "other"}
