"""Texts for a language model: from files, a hub's dataset, a Python function, or Python's own documentation."""

from __future__ import annotations

import ast
import json
import platform
import sysconfig
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from saebench_core.errors import InputError
from saebench_core.interfaces.entry import Json, Model
from saebench_core.sources.files import SourceFile, find_files, fingerprint, open_text
from saebench_core.sources.records import (
    FUNCTION_PATTERN,
    call_function,
    check_column,
    function_digest,
    hub_columns,
    in_turns,
    read_csv,
)

__all__ = ["CallableTexts", "CsvTexts", "HubTexts", "JsonlTexts", "PythonDocs", "TextFiles", "TextSource"]

_SKIPPED_MODULES: Final = frozenset(
    {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
)


class _Texts(Model):
    limit: int | None = Field(None, ge=1, description="Use only the first documents, at most so many.")

    def documents(self) -> Iterator[str]:
        """Yield the documents one by one, empty ones left out; nothing is read ahead.

        Raises:
            InputError: if what the configuration names is missing or has another form.
        """
        return islice((text for text in self._read() if text.strip()), self.limit)

    @abstractmethod
    def _read(self) -> Iterator[str]: ...

    @abstractmethod
    def fingerprint(self) -> dict[str, Json]:
        """Return digests of the contents, where the configuration does not pin them."""


class _TextFiles(_Texts):
    paths: tuple[str, ...] = Field(min_length=1, description="Files or globs; package:PKG/FILE for installed packages.")
    in_turns: bool = Field(
        True,
        description="Take one document of each file in turn, so that a corpus cut short has something of every file; "
        "false: one file after the other.",
    )

    def _read(self) -> Iterator[str]:
        streams = (self._read_file(file) for file in find_files(*self.paths))
        if self.in_turns:
            yield from in_turns(streams)
        else:
            for stream in streams:
                yield from stream

    @abstractmethod
    def _read_file(self, file: SourceFile) -> Iterator[str]: ...

    def fingerprint(self) -> dict[str, Json]:
        """Return the sha256 of every file."""
        return dict(fingerprint(*self.paths))


class CsvTexts(_TextFiles):
    """A column of CSV files with headers, plain or packed (``.csv``, ``.csv.gz``, ``.csv.zst``)."""

    type: Literal["csv"] = "csv"
    text: str = Field("text", description="Column of the texts.")

    def _read_file(self, file: SourceFile) -> Iterator[str]:
        for (text,) in read_csv(file, [self.text]):
            yield text


class TextFiles(_TextFiles):
    """Plain text files; a document is a file or a line."""

    type: Literal["text_files"] = "text_files"
    document: Literal["file", "line"] = Field("file", description="What one document is.")
    separator: str | None = Field(
        None, min_length=1, description="Line that stands between two documents of a file, such as %."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> TextFiles:
        if self.separator is not None and self.document == "line":
            raise ValueError("a line is a document already; leave out `separator`, or `document: line`")
        return self

    def _read_file(self, file: SourceFile) -> Iterator[str]:
        with open_text(file.path) as stream:
            if self.document == "line":
                yield from (line.rstrip("\n") for line in stream)
                return
            lines: list[str] = []
            for line in stream:
                if line.rstrip("\r\n") == self.separator:
                    yield "".join(lines)
                    lines = []
                else:
                    lines.append(line)
            yield "".join(lines)


class JsonlTexts(_TextFiles):
    """Files with one JSON object a line."""

    type: Literal["jsonl"] = "jsonl"
    key: str = Field("text", description="Key of the texts.")

    def _read_file(self, file: SourceFile) -> Iterator[str]:
        with open_text(file.path) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{file.name}, line {number}: not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise InputError(f"{file.name}, line {number}: expected a JSON object")
                check_column(self.key, record, f"{file.name}, line {number}")
                yield str(record[self.key] or "")


class HubTexts(_Texts):
    """A dataset of the Hugging Face hub, streamed by the ``datasets`` library; ``a.b`` is column b within a."""

    type: Literal["hub_dataset"] = "hub_dataset"
    dataset: str = Field(description="Name on the hub, or what else datasets.load_dataset takes first.")
    config: str | None = Field(None, description="Name of the dataset's configuration.")
    split: str = Field("train", description="Split.")
    revision: str | None = Field(None, description="Commit or tag: pin it, contents on a hub may change.")
    text: str = Field("text", description="Column of the texts.")
    data_files: tuple[str, ...] | None = Field(
        None, min_length=1, description="Files instead of those that the dataset names, as datasets.load_dataset."
    )

    def _read(self) -> Iterator[str]:
        names = (self.dataset, self.config, self.split, self.revision)
        for (text,) in hub_columns(*names, columns=[self.text], data_files=self.data_files):
            yield str(text or "")

    def fingerprint(self) -> dict[str, Json]:
        """Return nothing: the configuration names the revision."""
        return {}


class CallableTexts(_Texts):
    """A Python function that returns an iterable of strings."""

    type: Literal["callable"] = "callable"
    function: str = Field(description="module:function", pattern=FUNCTION_PATTERN)
    arguments: Mapping[str, Json] = Field(default_factory=dict, description="Keyword arguments of the function.")

    def _read(self) -> Iterator[str]:
        texts = call_function(self.function, self.arguments)
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InputError(f"{self.function!r} returned {type(texts).__name__}; it must return an iterable of str")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{self.function!r} gave {type(text).__name__}; every text must be a str")
            yield text

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of the module's source."""
        return {"source_sha256": function_digest(self.function)}


class PythonDocs(_Texts):
    """Python's language reference topics and the standard library's docstrings; always there, no download."""

    type: Literal["python_docs"] = "python_docs"
    min_characters: int = Field(80, ge=1, description="Shorter docstrings are left out.")

    def _read(self) -> Iterator[str]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield str(topics[name])
        for path in _library_files(Path(sysconfig.get_paths()["stdlib"])):
            yield from (text for text in _docstrings(path) if len(text) >= self.min_characters)

    def fingerprint(self) -> dict[str, Json]:
        """Return Python's version, which fixes both."""
        return {"python": f"{platform.python_implementation()} {platform.python_version()}"}


def _library_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            yield path
        elif path.is_dir() and path.name not in _SKIPPED_MODULES and (path / "__init__.py").is_file():
            yield from _library_files(path)


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a source file without running it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of somebody else's source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


TextSource = Annotated[
    CsvTexts | TextFiles | JsonlTexts | HubTexts | CallableTexts | PythonDocs, Field(discriminator="type")
]
"""Where texts come from; ``type`` says which."""
