"""Checkpoints within a training: what goes on from one ends bit-equal to what was never interrupted."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from saebench_core.activations import ShuffledRows
from saebench_core.training import checkpoints
from saebench_core.training.checkpoints import Checkpoints, Kept
from saebench_core.training.loop import train_group
from tests.helpers.training import (
    BATCH,
    D_SAE,
    WIDE,
    MemoryReader,
    activations,
    bits,
    build,
    make_trainee,
    same_bits,
    settings,
    stream,
    trainable_names,
)

X = activations()
STEPS = 24
ARCHITECTURES = trainable_names("architecture")
CONSTRAINTS = [name for name in trainable_names("constraint") if build("constraint", name).trains]
NAMES = [(a, c) for a in ARCHITECTURES for c in CONSTRAINTS] + [(a, "trained", "wide") for a in ARCHITECTURES]


class Killed(BaseException):
    """Ends a training as a signal would."""


class Ticks:
    """A clock that moves by one with every look at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def trainees_of(names):
    training = settings(STEPS, dead_rows=BATCH)
    widths = {name: WIDE if name[2:] else D_SAE for name in names}
    return {"/".join(name): make_trainee(*name[:2], training=training, d_sae=widths[name]) for name in names}


def keeper_of(root, names, every=5):
    return Checkpoints(root, {"/".join(name): "-".join(name) for name in names}, every, Ticks())


def train(trainees, keeper=None, until=None):
    return train_group(trainees, stream(X, settings(STEPS), 0), 1.0, X[:100], stop_at(until), "test", keeper)


def timeless(curve):
    state = curve.state()
    points = [{key: value for key, value in point.items() if key != "time_ms"} for point in state["points"]]
    return {**state, "points": points, "seconds": None}


@pytest.fixture(scope="module")
def calm():
    trainees = trainees_of(NAMES)
    outcome = train(trainees)
    assert not outcome.failures
    return {name: trainee.state() for name, trainee in trainees.items()}, outcome


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for until in (8, 14, 21):
        with pytest.raises(Killed):
            train(trainees_of(NAMES), keeper_of(root, NAMES), until)
    trainees = trainees_of(NAMES)
    keeper = keeper_of(root, NAMES)
    starts = {name: kept.step for name in trainees if (kept := keeper.load(name))}
    return trainees, train(trainees, keeper), starts


def test_every_sae_goes_on_late_in_the_training(resumed):
    assert set(resumed[2]) == {"/".join(name) for name in NAMES}
    assert min(resumed[2].values()) > 14


@pytest.mark.parametrize("name", ["/".join(name) for name in NAMES])
def test_killed_three_times_it_ends_bit_equal(name, calm, resumed):
    tensors, plain = resumed[0][name].state()
    wanted_tensors, wanted_plain = calm[0][name]
    assert tensors.keys() == wanted_tensors.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], wanted_tensors[key])] == []
    assert plain == wanted_plain
    assert timeless(resumed[1].curves[name]) == timeless(calm[1].curves[name])
    assert resumed[1].batch_order_sha256 == calm[1].batch_order_sha256


def test_the_state_holds_all_that_a_step_reads(calm):
    """A mutant: without the moments the end differs, so the comparison above can fail."""
    name = ("batch_topk", "trained")
    first, second = (trainees_of([name])["/".join(name)] for _ in range(2))
    batches = list(stream(X, settings(STEPS), 0).batches())
    for number in range(6):
        first.step(batches[number], number)
    tensors, plain = first.state()
    second.load_state({key: value for key, value in tensors.items() if not key.startswith("moments")}, plain)
    first.step(batches[6], 6)
    second.step(batches[6], 6)
    assert not same_bits(bits(first), bits(second))


def test_saes_that_were_kept_at_different_steps_join_the_stream_where_they_were(tmp_path, calm):
    names = [("topk", "trained"), ("relu", "frozen_decoder")]
    with pytest.raises(Killed):
        train(trainees_of(names[:1]), keeper_of(tmp_path, names[:1], every=3), 20)
    with pytest.raises(Killed):
        train(trainees_of(names[1:]), keeper_of(tmp_path, names[1:], every=3), 8)
    keeper, trainees = keeper_of(tmp_path, names, every=1000), trainees_of(names)
    assert [keeper.load("/".join(name)).step for name in names] == [19, 7]
    outcome = train(trainees, keeper)
    for name, trainee in trainees.items():
        tensors, _ = trainee.state()
        assert all(torch.equal(tensors[key], calm[0][name][0][key]) for key in tensors)
    assert outcome.batch_order_sha256 == calm[1].batch_order_sha256


def test_a_finished_training_leaves_no_checkpoint_once_it_is_discarded(tmp_path):
    names = [("topk", "trained")]
    keeper = keeper_of(tmp_path, names)
    train(trainees_of(names), keeper)
    assert list(tmp_path.iterdir())
    keeper.discard("topk/trained")
    assert not list(tmp_path.iterdir())


class LeavesOut(MemoryReader):
    """A streamed source that leaves out rows, and counts the windows that are read."""

    reads = 0

    def span(self, first, count):
        self.reads += 1
        for part in super().span(first, count):
            yield part[part[:, 0] > -0.1]


def test_windows_whose_rows_were_counted_are_not_read_again(tmp_path):
    names, x = [("topk", "trained")], activations(4000)

    def run(reader, until=None):
        rows = ShuffledRows(reader, x.shape[0], STEPS * BATCH, BATCH, 0, "source", 5 * BATCH)
        progress = (lambda label, done, total: None) if until is None else stop_at(until)
        return train_group(trainees_of(names), rows, 1.0, x[:100], progress, "test", keeper_of(tmp_path, names, 3))

    with pytest.raises(Killed):
        run(LeavesOut(x), 21)
    counts = dict(keeper_of(tmp_path, names).load("topk/trained").plain["kept_rows"])
    assert len(counts) >= 10
    again = LeavesOut(x)
    run(again)
    unread, left = len(counts) - 3, 5  # windows before the two in use, and those still to come
    assert again.reads <= left < unread


def stop_at(until):
    def progress(label, done, total):
        if done == until:
            raise Killed

    return progress


def kept(step, value=1.0):
    return Kept(step, {"a": torch.full((3,), value)}, {"n": step, "none": None})


@pytest.fixture
def keeper(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", {"one": "key"}, 60)


def test_a_checkpoint_comes_back_as_it_was(keeper):
    assert keeper.load("one") is None
    keeper.save("one", kept(3))
    keeper.save("one", kept(7, 2.0))
    found = keeper.load("one")
    assert (found.step, found.plain) == (7, {"n": 7, "none": None})
    assert found.tensors["a"].tolist() == [2, 2, 2]
    assert [path.name for path in (keeper.root / "key").iterdir()] == ["step-000000007"], "the older one is gone"


@pytest.mark.parametrize("damage", ["tensors", "json", "missing", "empty"])
def test_a_damaged_checkpoint_is_none(keeper, damage):
    keeper.save("one", kept(3))
    older = keeper.root / "key" / "step-000000003"
    shutil.copytree(older, keeper.root / "key" / "step-000000005")
    newest = keeper.root / "key" / "step-000000005"
    if damage == "tensors":
        content = bytearray((newest / "state.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "state.safetensors").write_bytes(bytes(content))
    elif damage == "json":
        (newest / "state.json").write_text("{", encoding="utf-8")
    elif damage == "empty":
        (newest / "state.json").write_text(json.dumps({}), encoding="utf-8")
    else:
        (newest / "state.safetensors").unlink()
    assert keeper.load("one").step == 3


def test_drafts_of_a_process_that_died_are_passed_over_and_cleared(keeper):
    draft = keeper.root / "key" / ".abc.tmp"
    draft.mkdir(parents=True)
    assert keeper.load("one") is None
    keeper.save("one", kept(3))
    assert not draft.exists()


def test_the_clock_starts_with_the_training(tmp_path):
    times = iter([100.0, 130.0, 161.0, 200.0, 222.0])
    keeper = Checkpoints(tmp_path, {}, 60, lambda: next(times))
    assert [keeper.due() for _ in range(5)] == [False, False, True, False, True]


def test_writing_stays_a_tenth_of_the_time(tmp_path, monkeypatch):
    times = iter([0.0, 10.0, 40.0, 109.0, 111.0])
    keeper = Checkpoints(tmp_path, {"one": "key"}, 10, lambda: next(times))
    assert [keeper.due(), keeper.due()] == [False, True]
    clock = iter([0.0, 10.0])  # ten seconds for one SAE
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: next(clock))
    keeper.save("one", kept(3))
    assert [keeper.due(), keeper.due(), keeper.due()] == [False, False, True]
    always = Checkpoints(tmp_path, {}, 0, lambda: 1.0)
    always._spent = 100.0
    assert always.due() and always.due()


def test_nothing_is_kept_of_what_is_not_trained(tmp_path):
    names = [("topk", "untrained"), ("topk", "trained")]
    with pytest.raises(Killed):
        train(trainees_of(names), keeper_of(tmp_path, names, every=1), 20)
    assert [path.name for path in tmp_path.iterdir()] == ["topk-trained"]


def test_progress_of_a_resumed_training_starts_where_it_was(tmp_path):
    names = [("topk", "trained")]
    with pytest.raises(Killed):
        train(trainees_of(names), keeper_of(tmp_path, names, every=5), 20)
    told = []
    train_group(
        trainees_of(names),
        stream(X, settings(STEPS), 0),
        1.0,
        X[:100],
        lambda label, done, total: told.append(done),
        "test",
        keeper_of(tmp_path, names),
    )
    assert told[0] == 17
    assert told[-1] == STEPS
