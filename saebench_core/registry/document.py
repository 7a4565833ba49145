"""A YAML document that remembers where every value stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, CommentedSet, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from saebench_core.errors import InputError, nearest
from saebench_core.registry.plain import dotted, yaml_text

__all__ = ["Document", "Location"]

Location = Sequence[int | str]
"""Path to a value: keys of mappings and indices of sequences, as in pydantic's errors."""

_LARGEST_FILE: Final = 1 << 20
_MOST_NODES: Final = 100_000
_DEEPEST: Final = 50


@final
class Document:
    """A parsed registry: plain data, and the line and column of each of its parts.

    Attributes:
        label: the file as the user named it.
        text: the file as written.
        data: plain dicts, lists and scalars, overrides applied.
    """

    def __init__(self, label: str, text: str, overrides: Sequence[str] = (), placed: bool = True) -> None:
        """Parse a text.

        Args:
            label: the file as the user named it.
            text: the file as written.
            overrides: ``key=value``, applied before checking.
            placed: whether its user knows the text, so that lines and columns say something.

        Raises:
            InputError: if it is no YAML mapping of plain values, or an override has no place in it.
        """
        self.label = label
        self.text = text
        self._placed = placed
        self._tree = _parse(label, text)
        self._overridden: dict[tuple[int | str, ...], str] = {}
        for override in overrides:
            self._apply(override)
        self.data: dict[str, Any] = _Reading(self.where).plain(self._tree)

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Document:
        """Read a file.

        Raises:
            InputError: if it cannot be read, is too large, or is no YAML mapping.
        """
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise InputError(f"{path}: larger than {_LARGEST_FILE} bytes; a registry is a short text")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; `saebench init` writes a registry to start from") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as text: {error}") from error
        return cls(str(path), text, overrides)

    @classmethod
    def of(cls, label: str, data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Document:
        """Make a document of Python data; its problems are told by key alone.

        Raises:
            InputError: if it holds what is no plain value, or an override has no place in it.
        """
        return cls(label, yaml_text(label, data), overrides, placed=False)

    def where(self, location: Location) -> str:
        """Return ``file:line:column`` of a value, or of the nearest part around it that stands in the file."""
        node: Any = self._tree
        line, column = node.lc.line or 0, node.lc.col or 0
        path: list[int | str] = []
        for part in location:
            if isinstance(node, CommentedMap) and part in node:
                if part in (node.lc.data or {}):  # a key set by an override has no place
                    line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part) if part in (node.lc.data or {}) else (line, column)
            else:  # a tag that pydantic puts into the location, or a key that is missing
                continue
            node = node[part]
            path.append(part)
            if (label := self._overridden.get(tuple(path))) is not None:
                return label
        return f"{self.label}:{line + 1}:{column + 1}" if self._placed else f"{self.label}:"

    def _apply(self, override: str) -> None:
        """Set one value, given as ``path.to.key=value``; entries of lists go by name, type or number."""
        label = f"--set {override}"
        path, separator, value = override.partition("=")
        if not separator or not path:
            raise InputError(f"{label}: expected KEY=VALUE, such as training.steps=100")
        try:
            parsed = YAML(typ="rt").load(value) if value else None
        except (YAMLError, RecursionError) as error:
            reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise InputError(f"{label}: the value is no YAML: {reason}") from error
        _Reading(lambda _: f"{label}:").plain(parsed)
        node: Any = self._tree
        location: list[int | str] = []
        parts = path.split(".")
        for part in parts[:-1]:
            key = _step(node, part, label)
            if isinstance(node, CommentedMap) and key not in node:
                node[key] = CommentedMap()
                self._overridden[(*location, key)] = label
            location.append(key)
            node = node[key]
        last = _step(node, parts[-1], label)
        node[last] = parsed
        self._overridden[(*location, last)] = label


def _parse(label: str, text: str) -> CommentedMap:
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        key = str(error.problem).partition('"')[2].partition('"')[0]
        raise InputError(f"{label}:{mark.line + 1}:{mark.column + 1} the key {key!r} is given twice") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        raise InputError(f"{place} not valid YAML: {error.problem or error.context}") from error
    except ReaderError as error:
        before = text[: error.position]
        place = f"{label}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise InputError(f"{place} not valid YAML: {error.reason}") from error
    except RecursionError as error:
        raise InputError(f"{label}:1:1 values are nested too deeply for a registry") from error
    except YAMLError as error:
        raise InputError(f"{label}:1:1 not valid YAML: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise InputError(f"{label}:1:1 expected a mapping with keys such as `name` and `backbones`")
    return tree


def _step(node: Any, part: str, label: str) -> int | str:
    """Return the key or index that a part of an override's path means."""
    if isinstance(node, CommentedMap):
        return part
    if not isinstance(node, CommentedSeq):
        raise InputError(f"{label}: {part!r} stands below a single value")
    if part.isdigit() and int(part) < len(node):
        return int(part)
    names = [
        {str(item[key]) for key in ("name", "type") if key in item} if isinstance(item, Mapping) else set()
        for item in node
    ]
    hits = [index for index, known in enumerate(names) if part in known]
    if len(hits) == 1:
        return hits[0]
    known = sorted(set().union(*names))
    problem = "is ambiguous: use its number" if hits else f"is no entry{nearest(part, known)}"
    raise InputError(f"{label}: {part!r} {problem}; entries: {', '.join(known)}, numbers 0 to {len(node) - 1}")


@final
class _Reading:
    """Makes plain Python data of a parsed tree; refuses tags, numbers that are none, and aliases that blow up."""

    def __init__(self, where: Callable[[Location], str]) -> None:
        self._where = where
        self._seen = 0

    def plain(self, node: Any, path: tuple[int | str, ...] = ()) -> Any:
        """Return the data below a node."""
        self._seen += 1
        if self._seen > _MOST_NODES:
            raise InputError(f"{self._where(())} more than {_MOST_NODES} values once aliases are followed")
        if len(path) > _DEEPEST:
            raise InputError(f"{self._where(path[:1])} values are nested too deeply for a registry")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if isinstance(node, TaggedScalar | CommentedSet) or tag:
            shown = tag or "!!set"
            raise InputError(f"{self._where(path)} the tag {shown} is not allowed: a registry has plain values only")
        if isinstance(node, CommentedMap):
            return {self._key(key, path): self.plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            return [self.plain(item, (*path, index)) for index, item in enumerate(node)]
        return self._scalar(node, path)

    def _scalar(self, node: Any, path: Location) -> Any:
        if isinstance(node, bool | ScalarBoolean):
            return bool(node)
        if isinstance(node, float) and not math.isfinite(node):
            shown = f" {dotted(path)}:" if path else ""
            raise InputError(f"{self._where(path)}{shown} expected a finite number, got {float(node)}")
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node

    def _key(self, key: object, path: Location) -> str:
        if not isinstance(key, str):
            raise InputError(f"{self._where((*path, key))} the key {key!r} is no text")  # type: ignore[arg-type]
        return str(key)
