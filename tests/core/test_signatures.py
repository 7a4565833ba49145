"""The public surface changes on purpose only: every signature and field is compared with a stored snapshot."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

import pytest
from pydantic import Field

import saebench_core
from saebench_core import Model
from tests.helpers.signatures import COMMAND, SNAPSHOT, describe, differences, surface


def test_the_public_surface_is_the_stored_one():
    found = differences(json.loads(SNAPSHOT.read_text(encoding="utf-8")), surface())
    told = "\n".join(found)
    assert not found, (
        f"the public interface of saebench_core has changed:\n{told}\n\n"
        f"If that is meant, run `{COMMAND}`, and add a line about it to CHANGELOG.md under Unreleased. "
        "A name or an argument that is gone breaks plugins."
    )


def test_every_public_name_is_in_the_snapshot_and_tells_something():
    stored = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert {name for name in stored if "." not in name} == set(saebench_core.__all__)
    assert {"conformance.check_plugin", "hookspecs.register_metrics"} <= set(stored)
    for name, described in stored.items():
        if described["is"] in ("class", "protocol", "exception", "dataclass", "frozen dataclass", "pydantic model"):
            assert len(described) > 1, f"nothing is known of {name}"


class Config(Model):
    name: str
    size: int = Field(3, description="how many")


@dataclass(frozen=True)
class Record:
    value: float
    items: list[int] = field(default_factory=list)

    @property
    def double(self) -> float:
        return 2 * self.value


class Pair(NamedTuple):
    left: int
    right: int = 0


class Base(ABC):
    kind: ClassVar[str] = "base"

    @abstractmethod
    def do(self, x: int, *, fast: bool = False) -> str: ...

    @classmethod
    def make(cls) -> Base:
        raise NotImplementedError


class Calls(Protocol):
    def __call__(self, label: str) -> None: ...


class Plain:
    def __init__(self, found: str, allowed: str = "") -> None: ...

    def _private(self) -> None: ...


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (Config, {"is": "pydantic model", "fields": {"name": "str = required", "size": "int = 3"}, "bases": ["Model"]}),
        (
            Record,
            {
                "is": "frozen dataclass",
                "fields": {"value": "float = required", "items": "list[int] = list"},
                "methods": {"double": "property -> float"},
            },
        ),
        (Pair, {"is": "named tuple", "bases": ["tuple"], "fields": {"left": "int = required", "right": "int = 0"}}),
        (
            Base,
            {
                "is": "class",
                "bases": ["ABC"],
                "methods": {"do": "(self, x: int, *, fast: bool = False) -> str", "make": "classmethod (cls) -> Base"},
                "class_variables": {"kind": "ClassVar[str] = 'base'"},
                "abstract": ["do"],
            },
        ),
        (Calls, {"is": "protocol", "bases": ["Protocol"], "methods": {"__call__": "(self, label: str) -> None"}}),
        (Plain, {"is": "class", "constructor": "(self, found: str, allowed: str = '') -> None"}),
        (Literal["a", "b"], {"is": "alias", "of": "Literal['a', 'b']"}),
        ("text", {"is": "value", "type": "str"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_known_of_a_name(thing, expected):
    assert describe(thing) == expected


def test_members_of_bases_count():
    class Derived(saebench_core.Term):
        def loss(self, step):
            return step

    described = describe(Derived)
    assert "shapes" in described["class_variables"]
    assert described["methods"]["loss"] == "(self, step)"


def test_a_difference_names_the_member_and_both_states():
    def first(x: int) -> None: ...

    def second(x: int, y: int = 2) -> None: ...

    before = {"Config": describe(Config), "f": describe(first), "gone": {"is": "value", "type": "str"}}
    other = {**before["Config"], "fields": {"name": "str = required", "size": "int = 4"}}
    after = {"Config": other, "f": describe(second)}
    assert differences(before, before) == []
    assert differences(before, after) == [
        "Config.size was: int = 3\n             is: int = 4",
        "f (signature) was: (x: int) -> None\n               is: (x: int, y: int = 2) -> None",
        "gone (is) is gone (it was: value)",
        "gone (type) is gone (it was: str)",
    ]
