"""What a run says of its pace where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from saebench_core.api import progress


@pytest.fixture
def clock(monkeypatch):
    times = {"now": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: times["now"])
    return times


@pytest.fixture
def said():
    return io.StringIO()


@pytest.fixture
def listener(said, clock):
    return progress.LineListener(Console(file=said, width=200))


def test_the_time_left_is_that_of_the_pace_of_this_run(listener, said, clock):
    for seconds, done in ((100.0, 400), (105.0, 450), (111.0, 500), (160.0, 900)):  # 400 were done before
        clock["now"] = seconds
        listener.progress("train", done, 1000)
    assert said.getvalue().splitlines() == [
        "    train: 400 of 1,000",
        "    train: 500 of 1,000, about 55 s left",
        "    train: 900 of 1,000, about 12 s left",
    ]


def test_other_work_has_its_own_pace(listener, said, clock):
    listener.progress("rows", 0, 10)
    clock["now"] = 120.0
    listener.progress("train", 5, 10)  # nothing is known of its pace
    clock["now"] = 150.0
    listener.progress("train", 6, 10)
    clock["now"] = 200.0
    listener.progress("train", 1, 10)  # a part that begins anew
    assert said.getvalue().splitlines() == [
        "    rows: 0 of 10",
        "    train: 5 of 10",
        "    train: 6 of 10, about 2 min left",
        "    train: 1 of 10",
    ]
