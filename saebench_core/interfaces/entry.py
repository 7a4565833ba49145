"""What every kind of plugin shares: the configuration of an entry in registry.yaml, and its spec."""

from __future__ import annotations

import typing
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

__all__ = ["EntryConfig", "Json", "Kind", "Model", "entry_type"]

Json = JsonValue
Kind = Literal["backbone", "architecture", "constraint", "metric"]


class Model(BaseModel):
    """Base of every configuration: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EntryConfig(Model):
    """Base of an entry's configuration; a plugin adds ``type: Literal["its-name"]`` and its own keys."""

    bookkeeping: ClassVar[frozenset[str]] = frozenset({"name", "only"})
    """Keys that place the entry in the registry and do not change what it computes."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that came after results were stored, and are no part of identities while they have their default."""

    name: str | None = Field(None, description="Name of the entry, unique in its list; by default made from its type.")

    def settings(self) -> dict[str, Any]:
        """Return `identity` with the defaults of later keys filled in, for those who read results."""
        return self.model_dump(mode="json", include=set(self.later)) | self.identity()

    def identity(self) -> dict[str, Any]:
        """Return the JSON form of what shapes results: no bookkeeping, no later key that has its default."""
        fields = type(self).model_fields
        unsaid = {key for key in self.later if getattr(self, key) == fields[key].get_default(call_default_factory=True)}
        return self.model_dump(mode="json", exclude=set(self.bookkeeping) | unsaid)


def entry_type(config: type[EntryConfig]) -> str:
    """Return the name that a configuration's ``type: Literal[...]`` states.

    Raises:
        TypeError: if the model has no such field.
    """
    field = config.model_fields.get("type")
    names = typing.get_args(field.annotation) if field else ()
    if len(names) != 1 or not isinstance(names[0], str):
        raise TypeError(f'{config.__name__} needs a field `type: Literal["its-name"] = "its-name"`')
    return names[0]
