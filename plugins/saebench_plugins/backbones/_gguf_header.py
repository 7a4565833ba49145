"""Reads the header of a GGUF file: its settings and the shapes of its tensors, not the vocabulary's text.

The package gguf parses a vocabulary entry by entry into arrays, which takes seconds; sizes for a plan need none of it.
Layout: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["GgufHeader", "read_header"]

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_VERSIONS: Final = (2, 3)


class GgufHeader(NamedTuple):
    """What a header says.

    Attributes:
        settings: scalars and texts by key; of an array its length.
        elements: number of weights of each tensor.
    """

    settings: dict[str, int | float | bool | str]
    elements: dict[str, int]


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def scalar(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value  # type: ignore[no-any-return]

    def count(self) -> int:
        return int(self.scalar("Q"))

    def text(self) -> str:
        length = self.count()
        self.position += length
        return self.data[self.position - length : self.position].decode("utf-8", errors="replace")

    def skip_text(self) -> None:
        length = self.count()  # first: reading it moves the position
        self.position += length

    def value(self, kind: int) -> int | float | bool | str:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, length = int(self.scalar("I")), self.count()
        if inner in _SCALARS:
            self.position += length * struct.calcsize(f"<{_SCALARS[inner]}")
        else:
            for _ in range(length):
                self.skip_text() if inner == _STRING else self.value(inner)
        return length


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        ValueError: if the file is no little-endian GGUF of version 2 or 3, or is cut short.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        try:
            magic, version = data[:4], struct.unpack_from("<I", data, 4)[0]
            if magic != b"GGUF" or version not in _VERSIONS:
                raise ValueError(f"it begins with {magic!r}, version {version}")
            cursor.position = 8
            tensors, settings = cursor.count(), cursor.count()
            found = {cursor.text(): cursor.value(int(cursor.scalar("I"))) for _ in range(settings)}
            elements: dict[str, int] = {}
            for _ in range(tensors):
                name = cursor.text()
                sides = [cursor.count() for _ in range(int(cursor.scalar("I")))]
                cursor.position += 12  # number format and offset
                elements[name] = math.prod(sides)
        except (struct.error, KeyError, OverflowError) as error:
            raise ValueError(f"its header cannot be read: {error}") from error
    return GgufHeader(found, elements)
