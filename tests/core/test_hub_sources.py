"""Texts and tables of a hub's datasets, with a stand-in for the package that reads them."""

from __future__ import annotations

import sys
import types

import pytest
from pydantic import TypeAdapter

from saebench_core.errors import InputError, MissingPackageError
from saebench_core.sources import TableSource, TextSource

texts = TypeAdapter(TextSource).validate_python
tables = TypeAdapter(TableSource).validate_python


def test_hub_datasets_need_the_package_or_stream(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"saebench-core\[hub\]"):
        next(texts({"type": "hub_dataset", "dataset": "a/b"}).documents())
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        return iter([{"body": "x", "kind": 1}, {"body": "y", "kind": 0}, {"body": "z", "kind": None}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(texts({"type": "hub_dataset", "dataset": "a/b", "text": "body"}).documents()) == ["x", "y", "z"]
    assert calls == [(("a/b", None), {"split": "train", "revision": None, "streaming": True})]
    table = tables({"type": "hub_dataset", "dataset": "a/b", "text": "body", "label": "kind"})
    assert table.rows() == (["x", "y"], ["1", "0"])
    assert table.title == "b"


def hub(monkeypatch, splits):
    """Stand in for the hub: rows of each split."""
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        return iter(splits[options["split"]])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_a_hub_that_breaks_off_says_so(monkeypatch):
    def load_dataset(name, config, **options):
        yield {"text": "x"}
        yield {"text": "y"}
        raise ConnectionError("the line is dead")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match="'a/b' broke off after 2 rows: the line is dead; run again"):
        list(texts({"type": "hub_dataset", "dataset": "a/b"}).documents())


def test_hub_columns_within_columns_files_and_splits_for_tests(monkeypatch):
    rows = [{"translation": {"de": "Haus", "en": "house"}, "a.b": "dot", "kind": 1}]
    calls = hub(monkeypatch, {"train": rows, "test": [{**rows[0], "kind": 0}]})
    source = {"type": "hub_dataset", "dataset": "parquet", "data_files": ["hf://datasets/a/b/*.parquet"]}
    assert list(texts({**source, "text": "translation.de"}).documents()) == ["Haus"]
    assert calls[0][1]["data_files"] == ["hf://datasets/a/b/*.parquet"]
    table = tables({**source, "text": "a.b", "label": "kind", "test_split": "test"})
    assert table.rows() == (["dot"], ["1"])
    assert table.test_rows() == (["dot"], ["0"])
    assert tables({**source, "text": "a.b", "label": "kind"}).test_rows() is None
    for text, message in (
        ("translation.fr", "no column 'fr'"),
        ("kind.x", "no columns within"),
        ("no", "no column 'no'"),
    ):
        with pytest.raises(InputError, match=message):
            list(texts({**source, "text": text}).documents())


def rows_of(*triples):
    return [{"text": text, "label": label, "side": side} for text, label, side in triples]


def test_labels_are_chosen_named_and_limited(monkeypatch):
    rows = rows_of(("a", 0, "l"), ("b", 7, "l"), ("c", 2, "l"), ("d", 0, "l"), ("e", 2, "l"), ("f", 0, "l"))
    table = {"type": "hub_dataset", "dataset": "x/y", "labels": {0: "zero", 2: "two"}}
    hub(monkeypatch, {"train": rows})
    assert tables(table).rows() == (["a", "c", "d", "e", "f"], ["zero", "two", "zero", "two", "zero"])
    assert tables({**table, "limit": 3}).rows().texts == ["a", "c", "d"]

    def endless():
        yield from rows
        raise AssertionError("read on though every label had its rows")

    hub(monkeypatch, {"train": endless()})
    assert tables({**table, "per_label": 2}).rows() == (["a", "c", "d", "e"], ["zero", "two", "zero", "two"])
    hub(monkeypatch, {"train": rows})
    with pytest.raises(InputError, match="no label 'nine'; it has zero"):
        tables({**table, "labels": {0: "zero", 9: "nine"}}).rows()


def test_balanced_tables_have_as_many_rows_of_each_value(monkeypatch):
    rows = rows_of(
        ("a", "x", 0), ("b", "x", 0), ("c", "x", 1), ("d", "y", 1), ("e", "y", 1), ("f", "y", 0), ("g", "y", 0)
    )
    table = {"type": "hub_dataset", "dataset": "x/y", "balance": "side"}
    hub(monkeypatch, {"train": rows})
    assert tables(table).rows() == (["a", "c", "d", "e", "f", "g"], ["x", "x", "y", "y", "y", "y"])
    assert tables({**table, "per_label": 1}).rows().texts == ["a", "c", "d", "f"]
    hub(monkeypatch, {"train": rows[:2] + rows[3:]})
    with pytest.raises(InputError, match="cannot be balanced: label 'x' has no row with '1'"):
        tables(table).rows()


def test_texts_are_cut_and_short_ones_left_out(monkeypatch):
    hub(monkeypatch, {"train": rows_of(("licence code", "x", 0), ("short", "x", 0), ("licence    ", "x", 0))})
    table = tables({"type": "hub_dataset", "dataset": "x/y", "min_characters": 6, "skip_characters": 8})
    assert table.rows().texts == ["code"]
