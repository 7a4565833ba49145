"""Somebody's SAE from a file, scored as it is; references are trained beside it at the L0 that is measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from saebench_core import (
    Checkpoint,
    CheckpointFormat,
    Context,
    Json,
    LoadedArchitecture,
    LoadedConfig,
    LoadedShape,
    LoadedSpec,
    checkpoint_files,
    checkpoint_plugins,
    checkpoint_sizes,
    file_sha256,
    hookimpl,
    locate,
    read_checkpoint,
)

_KINDS: Final[tuple[Literal["architecture", "constraint"], ...]] = ("architecture", "constraint")


class PretrainedConfig(LoadedConfig):
    """Configuration of `Pretrained`."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="Folder or file; `package:PKG/FOLDER` inside an installed package.")
    format: CheckpointFormat = Field("auto", description="Format of the files; `auto` tells it from their names.")


class Pretrained(LoadedArchitecture):
    """An SAE of SAELens, dictionary_learning, Gemma Scope or sparsify."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    @property
    def _path(self) -> Path:
        return locate(self.config.path)

    def shape(self) -> LoadedShape:
        """Return the sizes from the header of the weights."""
        return LoadedShape(*checkpoint_sizes(self._path, self.config.format))

    def fingerprint(self) -> Mapping[str, Json]:
        """Return the sha256 of the weights and of the files beside them that are read."""
        return {name: file_sha256(file) for name, file in checkpoint_files(self._path, self.config.format).items()}

    def plugins(self) -> Mapping[Literal["architecture", "constraint"], str]:
        """Return the names in the metadata of an SAE that has a plugin's own rule."""
        found = checkpoint_plugins(self._path, self.config.format)
        return {kind: str(found[kind].get("type")) for kind in _KINDS if kind in found}

    def load(self, context: Context) -> Checkpoint:
        """Read the files; whatever was scaled in training is folded. The rule may be an installed plugin's."""
        return read_checkpoint(self._path, self.config.format, str(context.device), context.rule_of)


@hookimpl
def register_architectures() -> list[LoadedSpec]:
    """Offer ``pretrained``."""
    return [
        LoadedSpec(
            config=PretrainedConfig,
            build=Pretrained,
            summary="An SAE from a file, loaded as it is, beside references of its shape and L0",
        )
    ]
