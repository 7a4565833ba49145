"""Plain values of Python as a registry's text, and how places in it are written."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Final

from ruamel.yaml import YAML

from saebench_core.errors import InputError

__all__ = ["dotted", "yaml_text"]

_WIDE: Final = 1 << 16
_ALLOWED: Final = "allowed are numbers, text, True, False, None, lists and mappings"


def dotted(location: Iterable[int | str]) -> str:
    """Return a location as people write it: ``backbones[0].d_in``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def yaml_text(label: str, data: Mapping[str, Any]) -> str:
    """Return data as YAML; numbers of NumPy become Python's, paths become text.

    Args:
        label: what errors call the data.
        data: keys and values.

    Raises:
        InputError: if a value has no plain form.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{label}: expected a mapping with keys such as `name` and `backbones`, got {_kind(data)}")
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.width = _WIDE
    writer.sort_base_mapping_type_on_output = False
    out = io.StringIO()
    writer.dump(_plain(data, label, ()), out)
    return out.getvalue()


def _plain(value: Any, label: str, path: tuple[int | str, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {_key(key, label, path): _plain(item, label, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, label, (*path, index)) for index, item in enumerate(value)]
    raise InputError(f"{label}: {dotted(path)}: {_kind(value)} is no plain value; {_ALLOWED}")


def _key(key: object, label: str, path: tuple[int | str, ...]) -> str:
    if not isinstance(key, str):
        raise InputError(f"{label}: {dotted((*path, str(key)))}: the key {key!r} is no text")
    return str(key)


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
