"""Streamed rows: each once an epoch, bounded in memory, resumed from any batch; and the thread that reads ahead."""

from __future__ import annotations

import threading
from collections import Counter
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from saebench_core import Backbone, BackboneConfig, BackboneDescription, BackboneSpec
from saebench_core.activations import LiveReader, ShuffledRows, StoredReader, collect
from saebench_core.activations.ahead import prefetch
from saebench_core.catalog import Catalog, Plugin
from saebench_core.errors import StoreError
from saebench_core.executors.inline import run_inline
from saebench_core.interfaces.backbone import ActivationBatch
from saebench_core.store import Store
from saebench_core.tasks import Workbench
from saebench_core.tasks.perform import Failures
from saebench_core.training.settings import TrainingSettings
from tests.helpers.registries import CPU as ENVIRONMENT, built_in, changed, plan_of
from tests.helpers.training import MemoryBackbone, MemoryReader, normal, quiet

CPU = torch.device("cpu")


class Counted(MemoryReader):
    """Counts the windows that are read; leaves out rows that are divisible by a number."""

    def __init__(self, rows, left_out=0):
        super().__init__(torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 2))
        self.left_out, self.reads = left_out, []

    def span(self, first, count):
        self.reads.append(first)
        for part in super().span(first, count):
            yield part[part[:, 0] % self.left_out != 0] if self.left_out else part


def streamed(reader, total, batch_size=8, buffer_rows=40, seed=0, exact=False, available=None):
    available = reader.rows if available is None else available
    return ShuffledRows(reader, available, total, batch_size, seed, "source", buffer_rows, exact)


def given_rows(stream, start=0):
    return [batch[:, 0].long().tolist() for batch in stream.batches(start)]


def flat(batches):
    return [number for batch in batches for number in batch]


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name == "saebench-ahead"]


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(8, 120),
    batch_size=st.integers(1, 8),
    buffer_rows=st.integers(1, 400),
    seed=st.integers(0, 5),
    exact=st.booleans(),
)
def test_every_row_comes_once_an_epoch(rows, batch_size, buffer_rows, seed, exact):
    total = 3 * rows // batch_size * batch_size
    stream = streamed(Counted(rows), total, batch_size, buffer_rows, seed, exact)
    batches = given_rows(stream)
    assert [len(batch) for batch in batches] == [batch_size] * (total // batch_size)
    numbers = flat(batches)
    assert sorted(numbers[:rows]) == list(range(rows))
    assert sorted(numbers[rows : 2 * rows]) == list(range(rows))
    assert stream.repeated
    assert not threads()


@hypothesis_settings(deadline=None, max_examples=40)
@given(rows=st.integers(20, 120), left_out=st.integers(2, 6), buffer_rows=st.integers(1, 200))
def test_every_row_that_is_not_left_out_comes_once_an_epoch(rows, left_out, buffer_rows):
    kept = [number for number in range(rows) if number % left_out]
    numbers = flat(given_rows(streamed(Counted(rows, left_out), 2 * rows, 5, buffer_rows)))
    assert sorted(numbers[: len(kept)]) == kept
    assert sorted(numbers[len(kept) : 2 * len(kept)]) == kept[: max(0, 2 * rows // 5 * 5 - len(kept))]


def test_neighbouring_windows_mix_and_seeds_differ():
    numbers = flat(given_rows(streamed(Counted(160), 160, buffer_rows=80)))  # windows of 32, in pools of 16 to 32
    assert numbers != sorted(numbers)
    assert (
        Counter(len({number // 32 for number in numbers[start : start + 16]}) for start in range(16, 144, 16))[1] == 0
    )
    orders = {tuple(flat(given_rows(streamed(Counted(160), 160, buffer_rows=80, seed=seed)))) for seed in range(5)}
    assert len(orders) == 5


def test_all_rows_are_permuted_where_they_fit():
    firsts = {given_rows(streamed(Counted(40), 40, buffer_rows=100, seed=seed))[0][0] for seed in range(40)}
    assert min(firsts) < 10 and max(firsts) >= 30


def kinds(rows, tmp_path):
    values = torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 2)
    collect(MemoryBackbone(values), "values", "train", rows, tmp_path, quiet)
    return {
        "stored": lambda: ShuffledRows(StoredReader(tmp_path, CPU), rows, 200, 8, 1, "source"),
        "live": lambda: ShuffledRows(MemoryReader(values, 30), rows, 200, 8, 1, "source"),
        "streamed": lambda: streamed(Counted(rows), 200, exact=True),
        "streamed, unsure": lambda: streamed(Counted(rows), 200),
        "streamed, rows left out": lambda: streamed(Counted(rows, 3), 200),
    }


@pytest.mark.parametrize("kind", ["stored", "live", "streamed", "streamed, unsure", "streamed, rows left out"])
def test_from_any_batch_the_order_goes_on_as_it_would_have(kind, tmp_path):
    make = kinds(83, tmp_path)[kind]
    whole = make()
    undisturbed, hashes = [], []
    for batch in whole.batches():
        undisturbed.append(batch)
        hashes.append(whole.order_sha256)
    assert len(undisturbed) == 25
    for start in range(26):
        stream = make()
        for number, batch in enumerate(stream.batches(start), start):
            assert torch.equal(batch, undisturbed[number])
            assert stream.order_sha256 == hashes[number]
        assert (stream.order_sha256, stream.repeated) == (hashes[-1], True)
    skipped = make()
    skipped.skip()
    assert (skipped.order_sha256, skipped.repeated) == (hashes[-1], True)


def test_a_stream_can_be_read_again():
    stream = streamed(Counted(83), 80)
    assert given_rows(stream) == given_rows(stream)
    first = stream.order_sha256
    stream.skip()
    assert stream.order_sha256 == first


def test_windows_are_read_once_and_not_beyond_the_end():
    reader = Counted(160)
    assert len(given_rows(streamed(reader, 160))) == 20
    assert sorted(reader.reads) == list(range(0, 160, 16))
    reader = Counted(1600)
    given_rows(streamed(reader, 1600)).clear()
    assert len(reader.reads) == 100


def test_going_on_reads_two_windows_more_than_what_is_left():
    reader = Counted(160)
    for start, most in ((0, 10), (10, 7), (18, 2), (20, 0)):
        reader = Counted(160)
        given_rows(streamed(reader, 160, exact=True), start)
        assert len(reader.reads) <= most, start
    reader = Counted(160, 3)
    stream = streamed(reader, 104)
    given_rows(stream)
    again = Counted(160, 3)
    resumed = streamed(again, 104)
    resumed.kept_rows = dict(stream.kept_rows)
    given_rows(resumed, 12)
    assert len(again.reads) <= 3, "a checkpoint that kept the counts reads nothing twice"


def test_memory_is_bounded_by_the_buffer():
    reader = Counted(400)
    batches = streamed(reader, 400, batch_size=4, buffer_rows=40, exact=True).batches()
    for number, _ in enumerate(batches):
        pools = max(0, number * 4 - 8) // 16 + 1  # the first has half a window
        assert len(reader.reads) <= pools + 2, "more than one window ahead"


def test_rows_that_are_not_the_same_again_are_an_error():
    class Fickle(Counted):
        def span(self, first, count):
            self.reads.append(first)
            yield self.values[first : first + count - (len(self.reads) > 10)]

    with pytest.raises(StoreError, match="does not give the same rows"):
        given_rows(streamed(Fickle(160), 320))
    with pytest.raises(StoreError, match="15 rows came where 16 were expected"):
        given_rows(streamed(Counted(160, 16), 160, exact=True))
    with pytest.raises(StoreError, match="gives no row"):
        given_rows(streamed(Counted(160, 1), 160))


def test_an_error_while_reading_reaches_the_consumer_in_its_place():
    class Broken(Counted):
        def span(self, first, count):
            yield from super().span(first, count)
            if len(self.reads) == 5:
                raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(iter_into(seen, streamed(Broken(160), 160)))
    assert len(seen) == 7, "four windows less half of the last, in batches of 8"
    assert not threads()


def iter_into(seen, stream):
    for batch in stream.batches():
        seen.append(batch)
    return []


def test_the_thread_ends_when_the_consumer_leaves():
    for stream in (streamed(Counted(1600), 1600), ShuffledRows(MemoryReader(normal(99, 2)), 99, 90, 9, 0)):
        batches = stream.batches()
        next(batches)
        assert len(threads()) == 1
        batches.close()
        assert not threads()


def test_a_long_read_is_left_in_the_middle():
    started, go_on = threading.Event(), threading.Event()

    class Slow(Counted):
        def span(self, first, count):
            for number, part in enumerate(super().span(first, count)):
                if len(self.reads) == 2 and number == 1:
                    started.set()
                    go_on.wait(10)
                yield part
                assert len(self.reads) < 2 or number < 1, "read on although nobody waits"

    batches = streamed(Slow(160), 160).batches()
    next(batches)
    assert started.wait(10), "the next window is read while this one is used"
    threading.Timer(0.05, go_on.set).start()
    batches.close()
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_only_so_much_is_prepared_ahead(depth):
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    stop = threading.Event()
    for number in prefetch(items(), depth, stop):
        assert len(made) <= number + 1 + depth
    assert made == list(range(20))
    assert stop.is_set()


@pytest.mark.parametrize("gradients", [True, False])
def test_the_gradient_mode_of_the_consumer_holds(gradients):
    def modes():
        yield torch.is_grad_enabled(), threading.current_thread() is threading.main_thread()

    with torch.set_grad_enabled(gradients):
        assert list(prefetch(modes(), 1, threading.Event())) == [(gradients, False)]


class CountingConfig(BackboneConfig):
    type: Literal["counting"] = "counting"


class Counting(Backbone):
    """Rows that are counted as they are computed."""

    computed: ClassVar[Counter[tuple[str, int]]] = Counter()

    def __init__(self, config):
        self.values = {
            split: normal(700, 8, seed=seed) for seed, split in enumerate(("train", "calibration", "evaluation"))
        }

    def describe(self):
        return BackboneDescription("other", {"a": 8}, seconds_per_row=0.5, memory_bytes=1000)

    def prepare(self, context):
        return None

    def rows_available(self, site, split):
        return 700

    def stream(self, site, split, start, rows):
        for first in range(start, min(700, start + rows), 50):
            last = min(700, start + rows, first + 50)
            self.computed.update((split, number) for number in range(first, last))
            part = self.values[split][first:last]
            yield ActivationBatch(part, part)


def counting_catalog():
    plugin = Plugin("backbone", "counting", BackboneSpec(CountingConfig, Counting, "counting"), "own", "1", "0")
    return Catalog([*built_in(), plugin], ())


EIGHT = changed(
    ("name: toy, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}", "type: counting"),
    ("  - {type: feature_recovery}\n", ""),
    ("[0, 1]", "[0]"),
    ("{type: topk, d_sae: 16}", "{type: topk, d_sae: 16}\n  - {type: batch_topk, d_sae: 16}"),
)
STREAMED = EIGHT.replace("batch_size: 32,", "batch_size: 32, activations: streamed, buffer_rows: 320,")


def run(text, folder):
    catalog, store = counting_catalog(), Store(folder)
    plan = plan_of(text, catalog)
    Counting.computed.clear()
    errors = []
    bench = Workbench(store, catalog, ENVIRONMENT, CPU, quiet)
    run_inline(plan, bench, Failures(folder), lambda task, left: None, lambda task, error: errors.append(error))
    assert set(errors) == {None}
    certificates = {
        (store.path("sae", product.key) / "certificate.json").read_text().split('"batch_order_sha256": ')[1][:66]
        for _, product in plan.train.values()
    }
    return plan, store, certificates


@pytest.mark.parametrize("text", [EIGHT, STREAMED], ids=["cached", "streamed"])
def test_the_backbone_runs_once_for_a_group_of_eight(text, tmp_path):
    plan, store, certificates = run(text, tmp_path)
    assert len(plan.cells) == 8
    train = Counter(count for (split, _), count in Counting.computed.items() if split == "train")
    if text == EIGHT:
        assert train == {1: 640}
    else:
        assert train == {2: 640}, "once for the statistics, which are a prefix of 50,000 rows, and once for the group"
        assert not any("train" in str(task.split) for task in plan.tasks)
    assert {count for (split, _), count in Counting.computed.items() if split != "train"} == {1}
    assert len(certificates) == 1, "all twins saw the same batches"
    assert len(list(store.keys("activations"))) == (3 if text == EIGHT else 2)


def test_the_plan_counts_what_is_streamed_again_for_each_seed():
    text = STREAMED.replace("seeds: [0]", "seeds: [0, 1]")
    tasks = [task for task in plan_of(text, counting_catalog()).tasks if task.kind == "train"]
    assert len(tasks) == 2
    cached = next(task for task in plan_of(EIGHT, counting_catalog()).tasks if task.kind == "train")
    for task in tasks:
        assert task.label.endswith("| streamed")
        assert task.estimate.seconds == pytest.approx(cached.estimate.seconds + 640 * 0.5)
        assert task.estimate.memory_bytes == cached.estimate.memory_bytes + 1000 + 320 * 8 * 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"buffer_rows": 4096}, "is for `activations: streamed`"),
        ({"activations": "streamed", "buffer_rows": 100}, "at least 5 batches of 64"),
        ({"activations": "kept"}, "activations"),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings.model_validate({"steps": 10, "batch_size": 64} | keys)


def test_live_rows_of_a_backbone_are_streamed(tmp_path):
    values = normal(300, 4)
    reader = LiveReader(MemoryBackbone(values, 11, regenerates=True), "values", "train", 300, 4, CPU)
    assert reader.exact
    rows = torch.cat(list(streamed(reader, 296, exact=True).batches()))
    assert {tuple(row.tolist()) for row in rows} < {tuple(row.tolist()) for row in values}
    assert len(rows.unique(dim=0)) == 296
