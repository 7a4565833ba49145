"""A process that is asked to end does so, also where Python loses the exception of a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from saebench_core.api.process import Interruption, termination


class Deaf:
    """Sends a signal to its own process from a destructor, where no exception gets out."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Interruption), (signal.SIGINT, KeyboardInterrupt)])
def test_a_lost_signal_is_raised_when_it_is_looked_for(number, error):
    with termination() as heed:
        heed()
        made = Deaf(number)
        del made
        with pytest.raises(error) as caught:
            heed()
    assert type(caught.value) is error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_an_exception_and_the_handlers_come_back(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), termination():
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_somebody_elses_handler_of_interrupts_stays():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGINT, mine)
    try:
        with termination():
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


COUNTED = """
import os
import numpy
import torch
from threadpoolctl import threadpool_info
from saebench_core.api.process import threads


def numbers():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}


os.environ.pop("OMP_NUM_THREADS", None)
os.environ["OPENBLAS_NUM_THREADS"] = "3"
torch.set_num_threads(2)
numpy.ones((2, 2)) @ numpy.ones((2, 2))
before = numbers()
with threads(None):
    assert numbers() == before
with threads(1):
    import scipy.linalg, sklearn.linear_model
    within = numbers()
    assert torch.get_num_threads() == 1
assert len(within) > len(before), "nothing was loaded meanwhile"
assert set(within.values()) == {1}, within
assert {path: numbers()[path] for path in before} == before
assert torch.get_num_threads() == 2
assert "OMP_NUM_THREADS" not in os.environ
assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
"""


def test_threads_are_those_of_all_numerical_libraries_and_come_back():
    """In a process of its own, where nothing is loaded yet; three threads, for a machine of one core has one anyway."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", COUNTED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
