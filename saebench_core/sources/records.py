"""Readers that texts and tables share: CSV rows, rows of a hub's dataset, Python functions."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from saebench_core.errors import InputError, MissingPackageError, nearest
from saebench_core.interfaces.entry import Json
from saebench_core.sources.files import SourceFile, open_text
from saebench_core.store import file_sha256

__all__ = [
    "FUNCTION_PATTERN",
    "call_function",
    "check_column",
    "function_digest",
    "hub_columns",
    "in_turns",
    "read_csv",
]

FUNCTION_PATTERN: Final = r"^[\w.]+:\w+$"
_FIELD_LIMIT: Final = 1 << 30
_OPEN_AT_ONCE: Final = 256


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Refuse a column that is not there.

    Raises:
        InputError: naming the columns that there are.
    """
    columns = list(columns)
    if column not in columns:
        raise InputError(f"{where} has no column {column!r}; it has {', '.join(columns)}{nearest(column, columns)}")


def read_csv(file: SourceFile, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield these columns of a CSV file with a header, row by row; packed files too, fields of any length.

    Raises:
        InputError: if a column is missing or the file is no CSV.
    """
    if csv.field_size_limit() < _FIELD_LIMIT:  # a limit of the whole process, so it is only ever raised
        csv.field_size_limit(_FIELD_LIMIT)
    with open_text(file.path, newline="") as stream:
        reader = csv.reader(stream)
        try:
            header = next(reader, [])
            for column in columns:
                check_column(column, header, file.name)
            places = [header.index(column) for column in columns]
            for row in reader:
                if len(row) > max(places):
                    yield tuple(row[place] for place in places)
        except csv.Error as error:
            raise InputError(f"{file.name}, line {reader.line_num}: not readable as CSV ({error})") from error


def in_turns(streams: Iterable[Iterator[Any]], at_once: int = _OPEN_AT_ONCE) -> Iterator[Any]:
    """Yield one item of every stream in turn, so that the beginning of many files has something of each.

    At most ``at_once`` streams are open; the next begins when one ends.
    """
    waiting = iter(streams)
    running: list[Iterator[Any]] = []
    while True:
        while len(running) < at_once and (stream := next(waiting, None)) is not None:
            running.append(stream)
        if not running:
            return
        still: list[Iterator[Any]] = []
        for stream in running:
            try:
                item = next(stream)
            except StopIteration:
                continue
            still.append(stream)
            yield item
        running = still


def hub_columns(
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None,
    *,
    columns: Sequence[str],
    data_files: Sequence[str] | None,
) -> Iterator[tuple[Any, ...]]:
    """Stream columns of a hub's dataset, row by row; nothing is downloaded before the first row is asked for.

    Args:
        dataset: its name, or what else ``datasets.load_dataset`` takes first.
        config: name of its configuration.
        split: split to read.
        revision: commit or tag.
        columns: ``a.b`` is column b within a.
        data_files: files instead of those that the dataset names.

    Raises:
        MissingPackageError: if ``datasets`` is not installed.
        InputError: if the dataset cannot be opened, breaks off, or has no such column.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            "a source of type hub_dataset needs the package `datasets`; pip install 'saebench-core[hub]'"
        ) from error
    options: dict[str, Any] = {"split": split, "revision": revision, "streaming": True}
    if data_files is not None:
        options["data_files"] = list(data_files)
    try:
        rows = datasets.load_dataset(dataset, config, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"hub_dataset {dataset!r} cannot be opened: {error}") from error
    for row in _unbroken(rows, f"hub_dataset {dataset!r}"):
        yield tuple(_column(row, name, f"hub_dataset {dataset!r}") for name in columns)


def _unbroken(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Mapping[str, Any]]:
    """Yield rows, and say in words where a connection breaks."""
    left, read = iter(rows), 0
    while True:
        try:
            row = next(left)
        except StopIteration:
            return
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{where} broke off after {read:,} rows: {error}; run again to go on") from error
        read += 1
        yield row


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Return a row's value in a column; ``a.b`` is column b within a, unless a column has that very name."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    check_column(outer if inner else name, row, where)
    if not isinstance(row[outer], Mapping):
        raise InputError(f"{where}: column {outer!r} has no columns within it, so there is no {name!r}")
    return _column(row[outer], inner, f"{where}, column {outer!r},")


def call_function(name: str, arguments: Mapping[str, Json]) -> Any:
    """Import ``module:function`` and return what it returns.

    Raises:
        InputError: if it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{name!r} cannot be imported ({error}); give module:function of an importable module"
        ) from error
    return found(**arguments)


def function_digest(name: str) -> str | None:
    """Return the sha256 of the source of the module of ``module:function``, or None if it has no file.

    Raises:
        InputError: if there is no such module.
    """
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise InputError(f"module {module!r} of {name!r} is not installed; install it or mend the name")
    source = Path(spec.origin) if spec.origin else None
    return file_sha256(source) if source and source.is_file() else None
