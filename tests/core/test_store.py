"""The store: whole products or none, whatever happens."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from saebench_core.errors import StoreError
from saebench_core.store import DONE, Store, canonical_json, content_key, file_sha256, write_atomically

KEY = "ab" + "0" * 62
FILES = {f"part{number}.bin": bytes([number]) * 5000 for number in range(4)}

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def build(folder):
    for name, content in FILES.items():
        path = folder / "deep" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def remains(store):
    """What lies in the store beside complete products and locks."""
    return list(store.root.rglob("*.tmp"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_golden_text_and_key():
    value = {"b": [1, 2.5, None, True], "a": "\u00e9", "c": 1e-07}
    assert canonical_json(value) == '{"a":"\\u00e9","b":[1,2.5,null,true],"c":1e-07}'
    assert content_key(value) == "baf097bd0343ae296dd7192167fdf322f395bafe1e39982518c61752a1cef45f"


@given(VALUES)
def test_canonical_json_gives_the_value_back(value):
    back = json.loads(canonical_json(value))
    assert back == value
    assert canonical_json(back) == canonical_json(value)


@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=2, max_size=5), st.randoms())
def test_order_of_keys_does_not_matter(value, draw):
    items = list(value.items())
    draw.shuffle(items)
    assert content_key(dict(items)) == content_key(value)


@given(VALUES, VALUES)
def test_different_values_have_different_keys(first, second):
    assert (content_key(first) == content_key(second)) == (canonical_json(first) == canonical_json(second))
    assert content_key([first]) != content_key(first)


def test_kinds_of_number_are_kept_apart():
    assert len({content_key(value) for value in (1, 1.0, True, "1")}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_values_without_json_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"value": value})


def test_a_product_is_whole_and_verified(store):
    place = store.make("train", KEY, {"why": 1}, build)
    assert place == store.path("train", KEY) == store.root / "train" / "ab" / KEY
    assert store.has("train", KEY)
    facts = store.facts("train", KEY)
    assert set(facts["files"]) == {f"deep/{name}" for name in FILES} | {"key.json"}
    assert facts["files"]["deep/part1.bin"] == {"bytes": 5000, "sha256": file_sha256(place / "deep" / "part1.bin")}
    assert json.loads((place / "key.json").read_text()) == {"why": 1}
    assert store.verify("train", KEY) == []
    assert list(store.keys("train")) == [KEY]
    assert remains(store) == []


def test_a_product_is_built_once(store):
    built = []
    for _ in range(3):
        store.make("train", KEY, {}, lambda folder: built.append(folder))
    assert len(built) == 1


def test_done_is_written_last(store, monkeypatch):
    """Everything is flushed before DONE exists, and the product has no place before DONE is flushed."""
    seen = []
    real = os.fsync

    def fsync(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        draft = next((part for part in (path, *path.parents) if part.suffix == ".tmp"), None)
        done = draft is not None and (draft / DONE).exists()
        seen.append((path.name, done, store.path("train", KEY).exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store.make("train", KEY, {}, build)
    names = [name for name, _, _ in seen]
    at = names.index(DONE)
    assert set(names[:at]) == {*FILES, "key.json"}
    assert not any(done for _, done, _ in seen[:at])
    assert not any(placed for _, _, placed in seen[: at + 2]), "renamed before DONE and its folder were flushed"
    assert seen[-1][0] == "ab"
    assert seen[-1][2], "the folder around it is flushed after the rename"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_build_that_raises_leaves_nothing(store, error):
    def fail(folder):
        build(folder)
        raise error

    with pytest.raises(type(error)):
        store.make("train", KEY, {}, fail)
    assert not store.has("train", KEY)
    assert not store.path("train", KEY).exists()
    assert remains(store) == []
    store.make("train", KEY, {}, build)
    assert store.verify("train", KEY) == []


def test_one_corrupt_byte_is_found_even_if_size_and_time_are_kept(store):
    place = store.make("train", KEY, {}, build)
    assert store.verify("train", KEY) == []
    path = place / "deep" / "part2.bin"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.verify("train", KEY) == ["deep/part2.bin"]
    (place / "deep" / "part3.bin").unlink()
    assert store.verify("train", KEY) == ["deep/part2.bin", "deep/part3.bin"]


@pytest.mark.parametrize("content", [None, b"", b'{"files": {"a', b"\xff\xfe", b"[]", b"3"])
def test_a_product_without_a_readable_done_is_made_anew(store, content):
    place = store.make("train", KEY, {}, build)
    (place / DONE).unlink()
    (place / "deep" / "part1.bin").write_bytes(b"half")
    if content is not None:
        (place / DONE).write_bytes(content)
    assert not store.has("train", KEY)
    store.make("train", KEY, {}, build)
    assert store.has("train", KEY)
    assert store.verify("train", KEY) == []


def test_facts_of_an_incomplete_product_say_so(store):
    with pytest.raises(StoreError, match=f"train/{KEY} is not complete"):
        store.facts("train", KEY)


def test_remains_of_dead_processes_are_removed(store):
    place = store.path("train", KEY)
    dead = place.with_name(f".{KEY}.0123.tmp")
    other = place.with_name(f".ab{'1' * 62}.0123.tmp")
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "half.bin").write_bytes(b"half")
    store.make("train", KEY, {}, build)
    assert not dead.exists()
    assert other.exists(), "another product's draft may belong to a living process"
    assert list(store.keys("train")) == [KEY]


def test_remove(store):
    store.make("train", KEY, {}, build)
    store.remove("train", KEY)
    assert not store.has("train", KEY)
    assert list(store.keys("train")) == []
    store.remove("train", KEY)


CHILD = """
    import os, signal, sys, time
    from pathlib import Path
    from saebench_core.store import Store

    root, mode, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    key = "ab" + "0" * 62

    def build(folder):
        with (root.parent / "built.log").open("a") as log:
            log.write(f"{os.getpid()}\\n")
        if mode == "slow":
            time.sleep(0.5)
        (folder / "deep").mkdir()
        for part in range(4):
            (folder / "deep" / f"part{part}.bin").write_bytes(bytes([part]) * 5000)

    count = 0

    def hook(event, arguments):
        global count
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"} and str(root) in repr(arguments):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    if mode == "die":
        sys.addaudithook(hook)
    Store(root).make("train", key, {}, build)
    print(count)
"""


def child(store, mode, number=0):
    argv = [sys.executable, "-c", textwrap.dedent(CHILD), str(store.root), mode, str(number)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def finish(process):
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.strip()


def test_two_processes_build_a_product_once(store):
    both = [child(store, "slow") for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert len((store.root.parent / "built.log").read_text().split()) == 1
    assert store.verify("train", KEY) == []


def test_killed_at_any_point_leaves_all_or_nothing(store, tmp_path):
    """SIGKILL before the n-th touch of the disk, for n in random order; the store is not emptied in between."""
    code, count = finish(child(Store(tmp_path / "count" / "store"), "die", 10**6))
    assert code == 0
    points = list(range(1, int(count) + 1))
    assert len(points) >= 15, "fewer points than a build has steps"
    random.Random(0).shuffle(points)
    states = []
    for point in points[:18]:
        code, _ = finish(child(store, "die", point))
        assert code in {-signal.SIGKILL, 0}
        if store.has("train", KEY):
            assert store.verify("train", KEY) == []
            assert set(store.facts("train", KEY)["files"]) == {f"deep/{name}" for name in FILES} | {"key.json"}
            store.remove("train", KEY)
            states.append("whole")
        else:
            assert list(store.keys("train")) == []
            states.append("none")
    assert "none" in states
    assert finish(child(store, "plain"))[0] == 0
    assert store.verify("train", KEY) == []
    assert remains(store) == []


def test_killed_at_random_times(store):
    draw = random.Random(1)
    for _ in range(6):
        process = child(store, "slow")
        log = store.root.parent / "built.log"
        began = time.monotonic()
        while not log.exists() and time.monotonic() - began < 30:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        finish(process)
        log.unlink(missing_ok=True)
        if store.has("train", KEY):
            assert store.verify("train", KEY) == []
            store.remove("train", KEY)
    assert finish(child(store, "plain"))[0] == 0, "the lock of a dead process is free"
    assert store.verify("train", KEY) == []


def test_write_atomically(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "one\n")
    write_atomically(path, "zw\u00f6lf\n")
    assert path.read_text(encoding="utf-8") == "zw\u00f6lf\n"
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.json"]


def test_file_hash_follows_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert file_sha256(path) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
