"""Content-addressed products: written once, published atomically, trusted only when complete.

A product lives in ``<root>/<kind>/<key[:2]>/<key>/``. It is built in a folder beside that place, flushed, given
its ``DONE`` file (sizes and sha256 of every file) last, and renamed. A reader believes ``DONE`` and nothing else,
so a process killed at any moment leaves either the whole product or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

from filelock import FileLock, Timeout

from saebench_core.errors import StoreError

__all__ = ["Store", "canonical_json", "content_key", "file_sha256", "flush_file", "flush_folder", "write_atomically"]

DONE: Final = "DONE"
_HOLDS: Final = ".holds"


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; remembered in this process until its size or time changes."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_sha256(path: Path, size: int, modified: int) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside its place, flush it, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Make sure that the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_file(path: Path) -> None:
    """Make sure that a file's content is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@final
@dataclass(frozen=True)
class Store:
    """Products below one folder.

    Attributes:
        root: the folder; made at the first write.
    """

    root: Path

    def path(self, kind: str, key: str) -> Path:
        """Return where a product is or would be."""
        return self.root / kind / key[:2] / key

    def has(self, kind: str, key: str) -> bool:
        """Say whether a complete product is there; a ``DONE`` that cannot be read is none."""
        try:
            return "files" in self.facts(kind, key)
        except StoreError:
            return False

    def facts(self, kind: str, key: str) -> dict[str, Any]:
        """Return the ``DONE`` record: files with sizes and hashes, seconds of building, time of publishing.

        Raises:
            StoreError: if the product is not complete.
        """
        try:
            return dict(json.loads((self.path(kind, key) / DONE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"product {kind}/{key} is not complete: {error}") from error

    def make(self, kind: str, key: str, identity: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return a product's folder, building it if it is not there.

        Args:
            kind: first part of the path, such as ``train``.
            key: content key.
            identity: what the key was made from; kept in ``key.json`` for people.
            build: writes the files into an empty folder.

        Raises:
            Exception: whatever ``build`` raises; nothing of the product is left then.
        """
        place = self.path(kind, key)
        if self.has(kind, key):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(place.with_name(f".{key}.lock"))):
            if not self.has(kind, key):
                self._build(place, identity, build)
        return place

    def _build(self, place: Path, identity: Mapping[str, Any], build: Callable[[Path], None]) -> None:
        for remains in place.parent.glob(f".{place.name}.*.tmp"):  # of a process that died; we hold the lock
            shutil.rmtree(remains, ignore_errors=True)
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        draft.mkdir()
        try:
            began = time.monotonic()
            build(draft)
            (draft / "key.json").write_text(json.dumps(identity, indent=1, sort_keys=True), encoding="utf-8")
            self._seal(draft, time.monotonic() - began)
            if place.exists():  # without DONE: remains of an interrupted removal
                shutil.rmtree(place)
            draft.rename(place)
            flush_folder(place.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _seal(self, draft: Path, seconds: float) -> None:
        files = {}
        for path in sorted(path for path in draft.rglob("*") if path.is_file()):
            flush_file(path)
            files[path.relative_to(draft).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        record = {"files": files, "seconds": round(seconds, 3), "published_ms": time.time_ns() // 1_000_000}
        with (draft / DONE).open("w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        flush_folder(draft)

    def verify(self, kind: str, key: str) -> list[str]:
        """Return the files of a product whose size or hash differs from its ``DONE`` record."""
        place, wrong = self.path(kind, key), []
        for name, expected in self.facts(kind, key)["files"].items():
            path = place / name
            if (
                not path.is_file()
                or path.stat().st_size != expected["bytes"]
                or _read_sha256(path) != expected["sha256"]
            ):
                wrong.append(name)
        return wrong

    def remove(self, kind: str, key: str) -> None:
        """Delete a product, ``DONE`` first."""
        place = self.path(kind, key)
        (place / DONE).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    def keys(self, kind: str) -> Iterator[str]:
        """Yield the keys of all complete products of a kind."""
        for done in sorted((self.root / kind).glob(f"*/[!.]*/{DONE}")):  # a draft's name starts with a dot
            yield done.parent.name

    @contextmanager
    def locked(self, kind: str, key: str) -> Iterator[bool]:
        """Lock a product's place without waiting; yield False where another process is building there."""
        place = self.path(kind, key)
        lock = FileLock(str(place.with_name(f".{key}.lock")))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def hold(self, sweep_id: str) -> Iterator[None]:
        """Say that this process works on a sweep; the kernel ends the hold when the process dies."""
        path = self.root / _HOLDS / f"{sweep_id}.{uuid.uuid4().hex}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path):
                yield
        finally:
            path.unlink(missing_ok=True)

    def held(self) -> set[str]:
        """Return the sweeps that a running process works on."""
        found = set()
        for path in sorted((self.root / _HOLDS).glob("*.lock")):
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                found.add(path.name.partition(".")[0])
            else:
                lock.release()
        return found
