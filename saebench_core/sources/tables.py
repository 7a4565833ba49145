"""Labelled texts: from CSV files, a hub's dataset, a Python function, or one source of texts for each class."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from saebench_core.errors import InputError
from saebench_core.interfaces.entry import Json, Model
from saebench_core.sources.files import find_files, fingerprint
from saebench_core.sources.records import (
    FUNCTION_PATTERN,
    call_function,
    function_digest,
    hub_columns,
    read_csv,
)
from saebench_core.sources.texts import TextSource

__all__ = ["CallableTable", "ClassTable", "CsvTable", "HubTable", "LabelledTexts", "TableSource"]


class LabelledTexts(NamedTuple):
    """A table's rows: ``texts`` and the label of each, as text."""

    texts: list[str]
    labels: list[str]


class _Row(NamedTuple):
    """A row as it is read; ``group`` is the value of the column that is balanced."""

    text: str
    label: str
    group: str = ""


class _Table(Model):
    name: str | None = Field(None, description="Name in results; by default made from the file's or dataset's name.")
    labels: Mapping[str, str] | None = Field(
        None, description="Labels that are used, and what they are called; rows of other labels are left out."
    )
    positive: tuple[str, ...] | None = Field(
        None, description="Labels that are told from all others; by default every one (of two, the last in order)."
    )
    per_label: int | None = Field(
        None, ge=1, description="Use only the first rows of each label (and value of `balance`), at most so many."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first rows, at most so many.")
    min_characters: int = Field(1, ge=1, description="Shorter texts are left out.")
    skip_characters: int = Field(0, ge=0, description="Characters cut off a text's beginning, such as a licence's.")

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_as_texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {str(label): str(name) for label, name in value.items()}

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
        """Return all rows that are used.

        Raises:
            InputError: if what the configuration names is missing, empty, or lacks a label that it names.
        """
        return self._chosen(self._read())

    def test_rows(self) -> LabelledTexts | None:
        """Return the rows that are kept for tests, or None if the table does not set any apart.

        Raises:
            InputError: as `rows`.
        """
        read = self._read_test()
        return None if read is None else self._chosen(read)

    def _chosen(self, read: Iterator[_Row]) -> LabelledTexts:
        used = list(islice(self._usable(read), self.limit))
        if not used:
            raise InputError(f"the table {self.title!r} has no row with a text and a label")
        known = sorted({row.label for row in used})
        for label in (*(self.labels or {}).values(), *(self.positive or ())):
            if label not in known:
                raise InputError(f"the table {self.title!r} has no label {label!r}; it has {', '.join(known[:20])}")
        used = self._balanced(used)
        return LabelledTexts([row.text for row in used], [row.label for row in used])

    def _usable(self, read: Iterator[_Row]) -> Iterator[_Row]:
        """Yield rows with the names of their labels; stop where no more can come."""
        taken: Counter[tuple[str, str]] = Counter()
        for text, given, group in read:
            label = given.strip() if self.labels is None else self.labels.get(given.strip(), "")
            if not label or not (text := self._cut(text)):
                continue
            if self.per_label is not None:
                if taken[label, group] == self.per_label:
                    continue
                taken[label, group] += 1
            yield _Row(text, label, group)
            if self._complete(taken):
                return

    def _cut(self, text: str) -> str:
        """Return what is used of a text; nothing if it is too short."""
        rest = text[self.skip_characters :]
        return rest if len(text) >= self.min_characters and rest.strip() else ""

    def _complete(self, taken: Mapping[tuple[str, str], int]) -> bool:
        """Say whether every label that is named has all of its rows; values of another column are not known before."""
        if self.per_label is None or self.labels is None or self._balances():
            return False
        return all(taken[label, ""] == self.per_label for label in self.labels.values())

    def _balanced(self, rows: list[_Row]) -> list[_Row]:
        """Keep, of each label, as many rows of every value of the balanced column: the first ones."""
        if not self._balances():
            return rows
        counts = Counter((row.label, row.group) for row in rows)
        groups = {group for _, group in counts}
        fewest = {label: min(counts[label, group] for group in groups) for label, _ in counts}
        for label, number in fewest.items():
            if not number:
                lacking = next(group for group in sorted(groups) if not counts[label, group])
                raise InputError(
                    f"the table {self.title!r} cannot be balanced: label {label!r} has no row with {lacking!r}"
                )
        kept: Counter[tuple[str, str]] = Counter()
        found = []
        for row in rows:
            if kept[row.label, row.group] < fewest[row.label]:
                kept[row.label, row.group] += 1
                found.append(row)
        return found

    def _balances(self) -> bool:
        return False

    @abstractmethod
    def _default_title(self) -> str: ...

    @abstractmethod
    def _read(self) -> Iterator[_Row]: ...

    def _read_test(self) -> Iterator[_Row] | None:
        return None

    @abstractmethod
    def fingerprint(self) -> dict[str, Json]:
        """Return digests of the contents, where the configuration does not pin them."""


class _Columns(_Table):
    text: str = Field("text", description="Column of the texts.")
    label: str = Field("label", description="Column of the labels.")
    balance: str | None = Field(
        None, description="Column of which every label gets as many rows with each of its values: the first ones."
    )

    def _balances(self) -> bool:
        return self.balance is not None

    def _wanted(self) -> list[str]:
        return [self.text, self.label, *([self.balance] if self.balance else [])]


class CsvTable(_Columns):
    """CSV files with headers, plain or packed (``.csv``, ``.csv.gz``, ``.csv.zst``)."""

    type: Literal["csv"] = "csv"
    path: str = Field(description="File or glob; package:PKG/FILE inside an installed package.")
    test_path: str | None = Field(None, description="File or glob of the rows for tests; by default a share of all.")

    def _default_title(self) -> str:
        return self.path.rsplit("/", 1)[-1].split(".csv", 1)[0]

    def _read(self) -> Iterator[_Row]:
        return self._read_files(self.path)

    def _read_test(self) -> Iterator[_Row] | None:
        return None if self.test_path is None else self._read_files(self.test_path)

    def _read_files(self, path: str) -> Iterator[_Row]:
        for file in find_files(path):
            for cells in read_csv(file, self._wanted()):
                yield _Row(*cells)

    def fingerprint(self) -> dict[str, Json]:
        """Return the sha256 of every file."""
        return dict(fingerprint(self.path, *([self.test_path] if self.test_path else [])))


class HubTable(_Columns):
    """A dataset of the Hugging Face hub, streamed by the ``datasets`` library; ``a.b`` is column b within a."""

    type: Literal["hub_dataset"] = "hub_dataset"
    dataset: str = Field(description="Name on the hub, or what else datasets.load_dataset takes first.")
    config: str | None = Field(None, description="Name of the dataset's configuration.")
    split: str = Field("train", description="Split.")
    test_split: str | None = Field(None, description="Split of the rows for tests; by default a share of all.")
    revision: str | None = Field(None, description="Commit or tag: pin it, contents on a hub may change.")
    data_files: tuple[str, ...] | None = Field(
        None, min_length=1, description="Files instead of those that the dataset names, as datasets.load_dataset."
    )

    def _default_title(self) -> str:
        return self.dataset.rsplit("/", 1)[-1]

    def _read(self) -> Iterator[_Row]:
        return self._read_split(self.split)

    def _read_test(self) -> Iterator[_Row] | None:
        return None if self.test_split is None else self._read_split(self.test_split)

    def _read_split(self, split: str) -> Iterator[_Row]:
        names = (self.dataset, self.config, split, self.revision)
        for values in hub_columns(*names, columns=self._wanted(), data_files=self.data_files):
            yield _Row(*("" if value is None else str(value) for value in values))

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

    def _read(self) -> Iterator[_Row]:
        pairs = call_function(self.function, self.arguments)
        if not isinstance(pairs, Iterable):
            raise InputError(f"{self.function!r} returned {type(pairs).__name__}; expected pairs of text and label")
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
                raise InputError(f"{self.function!r} gave {pair!r:.80}; every row must be a text and its label")
            yield _Row(pair[0], str(pair[1]))

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of the module's source."""
        return {"source_sha256": function_digest(self.function)}


class ClassTable(_Table):
    """One source of texts for each class: languages in files of their own, say."""

    type: Literal["classes"] = "classes"
    name: str = Field(description="Name in results.")
    sources: Mapping[str, TextSource] = Field(min_length=2, description="Where the texts of each class come from.")

    @model_validator(mode="after")
    def _named_here(self) -> ClassTable:
        if self.labels is not None:
            raise ValueError("the keys of `sources` are the labels; leave out `labels`")
        return self

    def _default_title(self) -> str:
        return self.name

    def _read(self) -> Iterator[_Row]:
        for label, source in self.sources.items():
            usable = (text for text in source.documents() if self._cut(text))
            for text in islice(usable, self.per_label):
                yield _Row(text, label)

    def fingerprint(self) -> dict[str, Json]:
        """Return the digests of every source."""
        return {label: source.fingerprint() for label, source in self.sources.items()}


TableSource = Annotated[CsvTable | HubTable | CallableTable | ClassTable, Field(discriminator="type")]
"""Where a labelled table comes from; ``type`` says which."""
