"""Contract of an architecture that is loaded as it is, not trained: somebody's SAE, and what stands beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from saebench_core.formats import Checkpoint
from saebench_core.interfaces.context import Context
from saebench_core.interfaces.entry import EntryConfig, Json

__all__ = ["LoadedArchitecture", "LoadedConfig", "LoadedShape", "LoadedSpec"]


class LoadedConfig(EntryConfig):
    """Base of the configuration of an SAE that is loaded. Its size and its L0 are its own."""

    only: tuple[str, ...] | None = Field(None, description="Backbones (names or types) that this entry is for.")
    twin: dict[str, Json] = Field(
        description="Architecture entry, without a size, that references of the same shape are trained from."
    )
    tokens: PositiveInt | None = Field(
        None, description="Rows that it was trained on, where its own files do not say; compared with the budget here."
    )


class LoadedShape(NamedTuple):
    """Sizes of an SAE in a file."""

    d_in: int
    d_sae: int


class LoadedArchitecture(ABC):
    """Somebody's SAE. It is one cell at each site that it is for, scored as it is.

    Its references are trained from `LoadedConfig.twin` under every constraint that holds something random, at the L0
    that is measured on it. They share data and draw among themselves, and nothing with the SAE.
    """

    @abstractmethod
    def shape(self) -> LoadedShape:
        """Return the sizes; reads headers only.

        Raises:
            InputError: if a file is missing or is none.
        """

    @abstractmethod
    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the files that `load` reads; they enter product keys and the certificate."""

    def plugins(self) -> Mapping[Literal["architecture", "constraint"], str]:
        """Name the plugins that shape what `load` returns, such as the architecture whose rule the SAE has."""
        return {}

    @abstractmethod
    def load(self, context: Context) -> Checkpoint:
        """Return the SAE, acting on raw activations, on the context's device.

        Raises:
            InputError: if it cannot be read.
        """


@dataclass(frozen=True)
class LoadedSpec:
    """A loaded architecture as a plugin offers it, from ``register_architectures``; the fields are `BackboneSpec`'s."""

    config: type[LoadedConfig]
    build: Callable[[Any], LoadedArchitecture]
    summary: str
    source: str = ""
    depends: tuple[str, ...] = ()
