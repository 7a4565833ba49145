"""Activations: readers, stored shards, the order of training batches, statistics."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from safetensors.torch import load_file

from saebench_core.activations import (
    LiveReader,
    ShuffledRows,
    StoredReader,
    collect,
    measure,
    readers,
    statistics_rows,
    storage,
)
from saebench_core.errors import InputError, PluginError, StoreError
from saebench_core.interfaces.backbone import ActivationBatch
from tests.helpers.training import MemoryBackbone, MemoryReader, normal, quiet

CPU = torch.device("cpu")


def numbered(rows, d_in=3):
    """Rows that tell their own number, exactly in fp32 and for small numbers in bf16."""
    return torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, d_in)


def live(values, rows=None, part=7):
    backbone = MemoryBackbone(values, part)
    return LiveReader(backbone, "values", "train", rows or len(values), values.shape[1], CPU)


def stored(values, folder, part=7, rows=None, kind=MemoryBackbone):
    folder.mkdir()
    collect(kind(values, part), "values", "train", len(values), folder, quiet)
    return StoredReader(folder, CPU, rows)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
def test_a_live_reader_cuts_its_stream_into_full_batches(rows, part, batch_size):
    values = numbered(rows)
    batches = list(live(values, part=part).batches(batch_size))
    assert torch.equal(torch.cat(batches), values)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 0 < len(batches[-1]) <= batch_size


def test_a_live_reader_gives_the_first_rows_only():
    assert torch.equal(torch.cat(list(live(numbered(50), rows=20).batches(6))), numbered(20))


@pytest.mark.parametrize("shard_rows", [5, 16, 1000])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_stored_rows_equal_live_rows(batch_size, shard_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "SHARD_ROWS", shard_rows)
    values = normal(37, 4)
    reader = stored(values, tmp_path / "a")
    assert (reader.rows, reader.d_in) == (37, 4)
    for mine, other in zip(reader.batches(batch_size), live(values).batches(batch_size), strict=True):
        assert torch.equal(mine, other)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reader.take(5, order), values[5 + order])
    assert torch.equal(live(values).take(5, order), values[5 + order])
    assert len(json.loads((tmp_path / "a" / "manifest.json").read_text())["shards"]) == -(-37 // shard_rows)


def test_a_stored_reader_can_be_cut_short(tmp_path):
    values = normal(20, 4)
    folder = tmp_path / "a"
    stored(values, folder)
    short, long = StoredReader(folder, CPU, 8), StoredReader(folder, CPU, 100)
    assert torch.equal(torch.cat(list(short.batches(3))), values[:8])
    assert long.rows == 20


def number_format(folder, shard=0):
    names = json.loads((folder / "manifest.json").read_text())["shards"]
    return str(load_file(folder / names[shard]["file"])["activations"].dtype).removeprefix("torch.")


def test_rows_are_stored_in_bf16_only_where_that_loses_nothing(tmp_path):
    exact, rough = normal(20, 4).bfloat16().float(), normal(20, 4)
    reader = stored(exact, tmp_path / "exact")
    assert number_format(tmp_path / "exact") == "bfloat16"
    assert torch.equal(reader.take(0, torch.arange(20)), exact)
    assert reader.take(0, torch.arange(20)).dtype == torch.float32
    last = exact.clone()
    last[-1, -1] = rough[-1, -1]
    reader = stored(last, tmp_path / "last")
    assert number_format(tmp_path / "last") == "float32"
    assert torch.equal(reader.take(0, torch.arange(20)), last)


def test_rows_that_stop_being_exact_in_bf16_are_not_rounded(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD_ROWS", 10)
    values = torch.cat([normal(10, 4).bfloat16().float(), normal(10, 4)])
    reader = stored(values, tmp_path / "a")
    assert torch.equal(torch.cat(list(reader.batches(7))), values)
    assert [number_format(tmp_path / "a", shard) for shard in (0, 1)] == ["bfloat16", "float32"]


def test_targets_of_their_own_are_refused(tmp_path):
    class Transcoded(MemoryBackbone):
        def stream(self, *place):
            for batch in super().stream(*place):
                yield ActivationBatch(batch.inputs, batch.inputs + 1)

    with pytest.raises(PluginError, match="targets"):
        stored(numbered(8), tmp_path / "a", kind=Transcoded)


def test_a_split_without_rows_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no activations"):
        stored(numbered(0), tmp_path / "a")


def shuffled(reader, total, batch_size, seed=0, available=None):
    return ShuffledRows(reader, available, total, batch_size, seed)


def row_numbers(stream):
    return [batch[:, 0].long().tolist() for batch in stream.batches()]


@pytest.mark.parametrize("window", [None, 100, 37, 8])
@pytest.mark.parametrize("batch_size", [1, 8, 10])
def test_every_row_comes_once_an_epoch_in_full_batches(window, batch_size):
    reader = MemoryReader(numbered(80), window)
    batches = row_numbers(shuffled(reader, 240, batch_size, available=80))
    assert [len(batch) for batch in batches] == [batch_size] * (240 // batch_size)
    flat = [number for batch in batches for number in batch]
    epochs = [flat[start : start + 80] for start in (0, 80, 160)]
    assert all(sorted(epoch) == list(range(80)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])


def test_rows_stay_within_their_window_and_windows_are_permuted():
    flat = [n for batch in row_numbers(shuffled(MemoryReader(numbered(64), 16), 64, 8)) for n in batch]
    windows = [{number // 16 for number in flat[start : start + 16]} for start in range(0, 64, 16)]
    assert all(len(window) == 1 for window in windows)
    orders = set()
    for seed in range(20):
        batches = row_numbers(shuffled(MemoryReader(numbered(64), 16), 64, 16, seed))
        orders.add(tuple(batch[0] // 16 for batch in batches))
    assert len(orders) > 5


def test_batches_cross_windows_without_losing_rows():
    batches = row_numbers(shuffled(MemoryReader(numbered(50), 7), 48, 6))
    flat = [number for batch in batches for number in batch]
    assert len(flat) == len(set(flat)) == 48


def test_what_does_not_fill_a_batch_is_left_out():
    batches = row_numbers(shuffled(MemoryReader(numbered(25)), 25, 10, available=25))
    assert [len(batch) for batch in batches] == [10, 10]


@pytest.mark.parametrize("window", [None, 16])
def test_the_hash_follows_the_order(window):
    def order(seed, total=64, batch_size=8, read=True):
        stream = shuffled(MemoryReader(numbered(64), window), total, batch_size, seed, available=64)
        if read:
            return row_numbers(stream), stream.order_sha256
        stream.skip()
        return None, stream.order_sha256

    first, again, skipped = order(0), order(0), order(0, read=False)
    assert first == again
    assert skipped[1] == first[1]
    assert len({order(*keys)[1] for keys in ((0,), (1,), (0, 128), (0, 64, 16))}) == 4


def test_stored_and_live_rows_in_one_window_come_in_the_same_order(tmp_path):
    values = normal(60, 4)
    of_live = shuffled(live(values), 120, 7, 3, available=60)
    of_stored = shuffled(stored(values, tmp_path / "a"), 120, 7, 3, available=60)
    for mine, other in zip(of_live.batches(), of_stored.batches(), strict=True):
        assert torch.equal(mine, other)
    assert of_live.order_sha256 == of_stored.order_sha256


def test_live_rows_are_drawn_window_by_window(monkeypatch):
    monkeypatch.setattr(readers, "WINDOW_ROWS", 16)
    batches = row_numbers(shuffled(live(numbered(60)), 60, 10, available=60))
    assert sorted(number for batch in batches for number in batch) == list(range(60))


@pytest.mark.parametrize(("available", "total"), [(9, 100), (None, 9), (9, 9)])
def test_less_than_one_batch_is_an_error(available, total):
    with pytest.raises(InputError, match="less than one batch of 10"):
        list(shuffled(MemoryReader(numbered(9)), total, 10, available=available).batches())


@pytest.mark.parametrize("batch_size", [1, 10, 333])
def test_statistics_equal_numpy_in_fp64(batch_size, monkeypatch):
    import numpy as np

    values = normal(1000, 6) @ normal(6, 6, seed=1) + 100 * normal(6, seed=2)
    reader = MemoryReader(values)
    monkeypatch.setattr(MemoryReader, "batches", lambda self, size: iter(self.values.split(batch_size)))
    found = measure(reader, 900)
    wide = values[:900].double().numpy()
    assert found.rows == 900
    np.testing.assert_allclose(found.mean.numpy(), wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(wide.T, bias=True), rtol=1e-7, atol=1e-9)
    assert found.mean_square_norm == pytest.approx(float((wide**2).sum(1).mean()), rel=1e-12)
    assert found.covariance.dtype == found.mean.dtype == torch.float64


def test_statistics_of_fewer_rows_than_asked_for():
    assert measure(MemoryReader(normal(50, 4)), 100).rows == 50


def test_rows_for_statistics():
    assert statistics_rows(100) == 50_000
    assert statistics_rows(4096) == 81_920
