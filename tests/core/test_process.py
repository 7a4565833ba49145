"""A process that is asked to end does so, also where Python loses the exception of a signal."""

from __future__ import annotations

import os
import signal

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
