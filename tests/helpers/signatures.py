"""The public surface as data: signatures, fields, methods and class variables of every public name.

``python -m tests.helpers.signatures`` writes the snapshot that ``tests/core/test_signatures.py`` compares with.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

SNAPSHOT = Path(__file__).parents[1] / "data" / "public_signatures.json"
DOORS = ("", "conformance", "hookspecs")
"""The root, whose names plugins use; the kit that they are tested with; the hooks that they implement."""
COMMAND = "python -m tests.helpers.signatures"
_OURS = "saebench_core"
_DUNDERS = frozenset({"__call__", "__contains__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__"})
_REQUIRED = "required"

Description = dict[str, Any]


def surface() -> dict[str, Description]:
    """Return what every public name is: those of the root as they are, those of other doors with their module."""
    found = {}
    for door in DOORS:
        module = importlib.import_module(f"{_OURS}.{door}" if door else _OURS)
        for name in module.__all__:
            found[f"{door}.{name}" if door else name] = describe(getattr(module, name))
    return dict(sorted(found.items()))


def describe(value: Any) -> Description:
    """Return what a public name is: a class, a function, an alias of types, or a value."""
    if isinstance(value, type) and not isinstance(value, types.GenericAlias):
        return _class(value)
    if inspect.isfunction(value):
        return {"is": "function", "signature": _signature(value)}
    if typing.get_origin(value) is not None or type(value).__module__ in ("typing", "typing_extensions"):
        return {"is": "alias", "of": str(value).replace("typing.", "")}
    return {"is": "value", "type": type(value).__name__}


def _class(found: type) -> Description:
    described: Description = {
        "is": _sort_of(found),
        "bases": [base.__name__ for base in found.__bases__ if base is not object],
        "fields": dict(_fields(found)),
        "methods": dict(_methods(found)),
        "class_variables": dict(_class_variables(found)),
    }
    if described["is"] in ("class", "exception") and "__init__" in _members(found):
        described["constructor"] = _signature(_members(found)["__init__"])
    if abstract := sorted(getattr(found, "__abstractmethods__", ())):
        described["abstract"] = abstract
    return {key: value for key, value in described.items() if value or key == "is"}


def _sort_of(found: type) -> str:
    if issubclass(found, BaseModel):
        return "pydantic model"
    if getattr(found, "_is_protocol", False):
        return "protocol"
    if issubclass(found, tuple):
        return "named tuple"
    if dataclasses.is_dataclass(found):
        parameters = found.__dataclass_params__  # type: ignore[attr-defined]
        return "frozen dataclass" if parameters.frozen else "dataclass"
    return "exception" if issubclass(found, BaseException) else "class"


def _own(found: type) -> list[type]:
    """Return the class and those of its bases that are ours, the farthest first."""
    return [base for base in reversed(found.__mro__) if base.__module__.partition(".")[0] == _OURS or base is found]


def _members(found: type) -> dict[str, Any]:
    return {name: value for base in _own(found) for name, value in vars(base).items()}


def _annotations(found: type) -> dict[str, str]:
    return {name: _text(hint) for base in _own(found) for name, hint in vars(base).get("__annotations__", {}).items()}


def _text(hint: Any) -> str:
    if isinstance(hint, typing.ForwardRef):  # what a named tuple makes of its annotations
        return hint.__forward_arg__
    return hint if isinstance(hint, str) else inspect.formatannotation(hint)


def _default(value: Any) -> str:
    if inspect.isroutine(value) or isinstance(value, type):
        return str(value.__name__)
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(repr, value))) + "}"
    return repr(value)


def _fields(found: type) -> Iterator[tuple[str, str]]:
    hints = _annotations(found)
    if issubclass(found, BaseModel):
        for name, field in found.model_fields.items():
            factory = field.default_factory
            missing = factory is None and field.default is PydanticUndefined
            default = _REQUIRED if missing else _default(factory or field.default)
            yield name, f"{hints[name]} = {default}"
    elif dataclasses.is_dataclass(found):
        for each in dataclasses.fields(found):
            made = each.default_factory if each.default is dataclasses.MISSING else each.default
            yield each.name, f"{_text(each.type)} = {_REQUIRED if made is dataclasses.MISSING else _default(made)}"
    elif issubclass(found, tuple):
        defaults: Mapping[str, Any] = getattr(found, "_field_defaults", {})
        for name in getattr(found, "_fields", ()):
            yield name, f"{hints[name]} = {_default(defaults[name]) if name in defaults else _REQUIRED}"


def _methods(found: type) -> Iterator[tuple[str, str]]:
    generated = set(vars(BaseModel)) if issubclass(found, BaseModel) else set()
    for name, value in sorted(_members(found).items()):
        if name in generated or (name.startswith("_") and name not in _DUNDERS):
            continue
        if isinstance(value, property):
            yield name, f"property -> {_text(inspect.signature(value.fget).return_annotation)}"  # type: ignore[arg-type]
        elif getattr(value, "func", None) is not None and type(value).__name__ == "cached_property":
            yield name, f"property -> {_text(inspect.signature(value.func).return_annotation)}"
        elif isinstance(value, (classmethod, staticmethod)):
            yield name, f"{type(value).__name__} {_signature(value.__func__)}"
        elif inspect.isfunction(value):
            yield name, _signature(value)


def _class_variables(found: type) -> Iterator[tuple[str, str]]:
    members = _members(found)
    for name, hint in sorted(_annotations(found).items()):
        if hint.startswith("ClassVar") and not name.startswith("_") and name != "model_config":
            yield name, f"{hint} = {_default(members[name])}" if name in members else hint


def _signature(function: Any) -> str:
    """Return the signature as it is written."""
    signature = inspect.signature(function)
    empty = signature.empty
    parameters = [
        parameter.replace(
            annotation=empty if parameter.annotation is empty else _Verbatim(_text(parameter.annotation)),
            default=empty if parameter.default is empty else _Verbatim(_default(parameter.default)),
        )
        for parameter in signature.parameters.values()
    ]
    returned = signature.return_annotation
    given = empty if returned is empty else _Verbatim(_text(returned))
    return str(signature.replace(parameters=parameters, return_annotation=given))


class _Verbatim:
    """Text that is shown as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def differences(before: Mapping[str, Description], after: Mapping[str, Description]) -> list[str]:
    """Return one line for every public thing that is new, gone or other than before."""
    old, new = dict(_flat(before)), dict(_flat(after))
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"{name} is gone (it was: {old[name]})")
        elif name not in old:
            lines.append(f"{name} is new: {new[name]}")
        elif old[name] != new[name]:
            lines.append(f"{name} was: {old[name]}\n{' ' * len(name)}  is: {new[name]}")
    return lines


def _flat(named: Mapping[str, Description]) -> Iterator[tuple[str, str]]:
    for name, described in named.items():
        for key, value in described.items():
            if isinstance(value, dict):
                yield from ((f"{name}.{member}", str(text)) for member, text in value.items())
            else:
                yield f"{name} ({key})", ", ".join(value) if isinstance(value, list) else str(value)


def main() -> None:
    """Write the snapshot."""
    text = json.dumps(surface(), indent=1, sort_keys=True) + "\n"
    SNAPSHOT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
