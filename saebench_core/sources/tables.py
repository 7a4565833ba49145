"""Labelled texts: from CSV files, a hub's dataset, or a Python function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from saebench_core.errors import InputError
from saebench_core.interfaces.entry import Json, Model
from saebench_core.sources.files import find_files, fingerprint
from saebench_core.sources.records import (
    FUNCTION_PATTERN,
    call_function,
    check_column,
    function_digest,
    hub_rows,
    read_csv,
)

__all__ = ["CallableTable", "CsvTable", "HubTable", "LabelledTexts", "TableSource"]


class LabelledTexts(NamedTuple):
    """A table's rows: ``texts`` and the label of each, as text."""

    texts: list[str]
    labels: list[str]


class _Table(Model):
    name: str | None = Field(None, description="Name in results; by default made from the file's or dataset's name.")
    positive: tuple[str, ...] | None = Field(
        None, description="Labels that are told from all others; by default every one (of two, the last in order)."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first rows, at most so many.")

    @field_validator("positive", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        if value is None or isinstance(value, dict):
            return value
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(str(label) for label in values)

    @property
    def title(self) -> str:
        """Name of the table in results."""
        return self.name or self._default_title()

    def rows(self) -> LabelledTexts:
        """Return all rows that have a text and a label.

        Raises:
            InputError: if what the configuration names is missing, empty, or lacks a positive label.
        """
        pairs = islice(((text, label) for text, label in self._read() if text.strip() and label.strip()), self.limit)
        rows = LabelledTexts([], [])
        for text, label in pairs:
            rows.texts.append(text)
            rows.labels.append(label.strip())
        if not rows.texts:
            raise InputError(f"the table {self.title!r} has no row with a text and a label")
        for label in self.positive or ():
            if label not in (known := sorted(set(rows.labels))):
                raise InputError(f"the table {self.title!r} has no label {label!r}; it has {', '.join(known[:20])}")
        return rows

    @abstractmethod
    def _default_title(self) -> str: ...

    @abstractmethod
    def _read(self) -> Iterator[tuple[str, str]]: ...

    @abstractmethod
    def fingerprint(self) -> dict[str, Json]:
        """Return digests of the contents, where the configuration does not pin them."""


class CsvTable(_Table):
    """CSV files with headers, plain or packed (``.csv``, ``.csv.gz``, ``.csv.zst``)."""

    type: Literal["csv"] = "csv"
    path: str = Field(description="File or glob; package:PKG/FILE inside an installed package.")
    text: str = Field("text", description="Column of the texts.")
    label: str = Field("label", description="Column of the labels.")

    def _default_title(self) -> str:
        return self.path.rsplit("/", 1)[-1].split(".csv", 1)[0]

    def _read(self) -> Iterator[tuple[str, str]]:
        for file in find_files(self.path):
            for text, label in read_csv(file, [self.text, self.label]):  # noqa: UP028 - the pairs' type
                yield text, label

    def fingerprint(self) -> dict[str, Json]:
        """Return the sha256 of every file."""
        return dict(fingerprint(self.path))


class HubTable(_Table):
    """A dataset of the Hugging Face hub, streamed by the ``datasets`` library."""

    type: Literal["hub_dataset"] = "hub_dataset"
    dataset: str = Field(description="Name on the hub, or what else datasets.load_dataset takes first.")
    config: str | None = Field(None, description="Name of the dataset's configuration.")
    split: str = Field("train", description="Split.")
    revision: str | None = Field(None, description="Commit or tag: pin it, contents on a hub may change.")
    text: str = Field("text", description="Column of the texts.")
    label: str = Field("label", description="Column of the labels.")

    def _default_title(self) -> str:
        return self.dataset.rsplit("/", 1)[-1]

    def _read(self) -> Iterator[tuple[str, str]]:
        for number, row in enumerate(hub_rows(self.dataset, self.config, self.split, self.revision)):
            if number == 0:
                for column in (self.text, self.label):
                    check_column(column, row, f"hub_dataset {self.dataset!r}")
            text, label = row[self.text], row[self.label]
            yield str(text or ""), "" if label is None else str(label)

    def fingerprint(self) -> dict[str, Json]:
        """Return nothing: the configuration names the revision."""
        return {}


class CallableTable(_Table):
    """A Python function that returns an iterable of ``(text, label)``."""

    type: Literal["callable"] = "callable"
    function: str = Field(description="module:function", pattern=FUNCTION_PATTERN)
    arguments: Mapping[str, Json] = Field(default_factory=dict, description="Keyword arguments of the function.")

    def _default_title(self) -> str:
        return self.function.rsplit(":", 1)[-1]

    def _read(self) -> Iterator[tuple[str, str]]:
        pairs = call_function(self.function, self.arguments)
        if not isinstance(pairs, Iterable):
            raise InputError(f"{self.function!r} returned {type(pairs).__name__}; expected pairs of text and label")
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
                raise InputError(f"{self.function!r} gave {pair!r:.80}; every row must be a text and its label")
            yield pair[0], str(pair[1])

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of the module's source."""
        return {"source_sha256": function_digest(self.function)}


TableSource = Annotated[CsvTable | HubTable | CallableTable, Field(discriminator="type")]
"""Where a labelled table comes from; ``type`` says which."""
