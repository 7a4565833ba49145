"""Where a language model comes from: a hub's name, a local folder, or a GGUF file, which is converted once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from saebench_core import Context, InputError, Json, file_sha256, locate
from saebench_plugins.backbones._hf_loading import Sizes, config_sizes, convert_gguf, gguf_sizes, quiet

__all__ = ["ModelSource"]

_MODEL_FILES: Final = frozenset({".bin", ".jinja", ".json", ".model", ".safetensors", ".txt"})


@dataclass(frozen=True)
class ModelSource:
    """A model as a configuration names it.

    Attributes:
        name: hub's name, local folder, or GGUF file.
        revision: commit or tag of a hub's model.
    """

    name: str
    revision: str | None

    @cached_property
    def place(self) -> Path | None:
        """The model's folder or GGUF file; None for a hub's name."""
        given = self.name
        local = given.startswith(("package:", ".", "/", "~")) or given.endswith(".gguf") or Path(given).exists()
        return locate(given) if local else None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.place is not None and self.place.suffix == ".gguf"

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes from the model's configuration, or a GGUF file's header."""
        if self.is_gguf:
            return gguf_sizes(cast(Path, self.place))
        with quiet(), self._explained():
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(str(self.place or self.name), revision=self._revision)
        return config_sizes(config)

    @cached_property
    def fingerprint(self) -> dict[str, Json]:
        """Digests of the model's files, or a hub's name and revision."""
        if self.place is None:
            return {"hub": self.name, "revision": self.revision}
        if self.place.is_file():
            return {self.place.name: file_sha256(self.place)}
        files = sorted(path for path in self.place.iterdir() if path.is_file() and path.suffix in _MODEL_FILES)
        return {path.name: file_sha256(path) for path in files}

    def load(self, context: Context, dtype: torch.dtype) -> tuple[Any, nn.Module]:
        """Return tokenizer and model.

        Raises:
            InputError: if there is nothing to load, or the hub cannot be reached.
        """
        source = self._converted(context, dtype)
        with quiet(), self._explained():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(source, revision=self._revision)
            model = AutoModelForCausalLM.from_pretrained(source, revision=self._revision, dtype=dtype)
        return tokenizer, cast(nn.Module, model)

    @property
    def _revision(self) -> str:
        return self.revision or "main"

    def _converted(self, context: Context, dtype: torch.dtype) -> str:
        """Return where transformers can load from; a GGUF file is converted to safetensors once."""
        if self.place is None:
            return self.name
        if not self.is_gguf:
            return str(self.place)
        identity: dict[str, Json] = {
            "product": "converted model",
            "files": self.fingerprint,
            "dtype": str(dtype),
        }
        file = self.place
        return str(context.product(identity, lambda folder: convert_gguf(file, folder, dtype)))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise InputError(
                f"the model {self.name!r} cannot be loaded ({str(error).strip().splitlines()[0]}); "
                "give a hub's name that can be reached, a folder with config.json and weights, or a .gguf file"
            ) from error
