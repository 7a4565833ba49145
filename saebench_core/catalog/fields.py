"""The keys of a plugin's configuration, in the words of a registry's author: type, bounds, default, meaning."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["Field", "fields_of", "nested_models", "shown", "tag_of", "type_text"]

_WORDS: Final[Mapping[Any, str]] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "mapping",
}
_BOUNDS: Final = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


class Field(NamedTuple):
    """A key of a configuration.

    Attributes:
        key: its name.
        type: in words, with bounds.
        required: whether it must be given.
        default: as JSON; None where it is required.
        description: what it means.
    """

    key: str
    type: str
    required: bool
    default: Any
    description: str


def fields_of(model: type[BaseModel], base: type[BaseModel] | None = None) -> list[Field]:
    """Return the keys of a configuration beside ``type``; those that its base has alike are left out."""
    known = base.model_fields if base is not None else {}
    return [
        Field(
            name,
            type_text(field.annotation, field.metadata),
            field.is_required(),
            _default(field),
            field.description or "",
        )
        for name, field in model.model_fields.items()
        if name != "type" and (name not in known or known[name].default != field.default)
    ]


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not None:
        return _plain(cast(Callable[[], object], field.default_factory)())
    return None if field.default is PydanticUndefined else _plain(field.default)


def _plain(value: object) -> Any:
    """Return a default as JSON holds it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def shown(value: object) -> str:
    """Return a value as one writes it in YAML; rounded to what people read."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, BaseModel):
        return shown(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)


def type_text(annotation: Any, metadata: Sequence[Any] = (), quote: str = "") -> str:
    """Return a type in words; ``quote`` stands about literal values."""
    arguments = typing.get_args(annotation)
    if metadata and type(None) in arguments:  # pydantic keeps the bounds beside the whole union
        rest = [argument for argument in arguments if argument is not type(None)]
        return " or ".join([*(type_text(argument, metadata, quote) for argument in rest), "null"])
    bounds = " and ".join(
        f"{sign} {shown(getattr(bound, name))}"
        for bound in metadata
        for name, sign in _BOUNDS
        if getattr(bound, name, None) is not None
    )
    return _type(annotation, quote) + (f" {bounds}" if bounds else "")


def _type(annotation: Any, quote: str) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], arguments[1:], quote)
    if origin is typing.Literal:
        return " or ".join(f"{quote}{value}{quote}" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument, quote) for argument in arguments))
    if origin is tuple:
        listed = arguments[:1] if arguments[-1] is Ellipsis else arguments
        return f"list of {_type(listed[0], quote)}"
    if origin is not None:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        tag = tag_of(annotation)
        return "mapping" if tag is None else f"mapping of type {quote}{tag}{quote}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def tag_of(model: type[BaseModel]) -> str | None:
    """Return what a model's ``type`` states, if it has one."""
    field = model.model_fields.get("type")
    return str(typing.get_args(field.annotation)[0]) if field else None


def nested_models(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the models inside a model, however deep, each with the key that holds it."""
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield name, inner
            yield from nested_models(inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)
