"""The layout of stored activations: safetensors shards of rows, and a manifest that states each with its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, final

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from safetensors.torch import save_file
from torch import Tensor

from saebench_core.activations.cutting import rebatch
from saebench_core.errors import StoreError
from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.context import Progress, Split
from saebench_core.interfaces.entry import Model
from saebench_core.store import file_sha256

__all__ = [
    "MANIFEST",
    "SHARD_ROWS",
    "TENSOR",
    "Manifest",
    "Shard",
    "collect",
    "damaged_shards",
    "missing_shards",
    "write_rows",
]

SHARD_ROWS: Final = 1 << 16
MANIFEST: Final = "manifest.json"
TENSOR: Final = "activations"
"""Name of the one tensor of a shard."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")]


@final
class Shard(Model):
    """One file of rows; its name has no folder in it, so that a manifest cannot point elsewhere."""

    file: FileName
    rows: PositiveInt
    dtype: Literal["float32", "bfloat16", "float16"]
    bytes: PositiveInt
    sha256: Sha256


@final
class Manifest(Model):
    """What a folder of activations holds."""

    format: Literal["saebench-activations-1"] = "saebench-activations-1"
    rows: PositiveInt
    d_in: PositiveInt
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(shard.rows for shard in self.shards) != self.rows:
            raise ValueError(f"the shards do not have {self.rows} rows together")
        if len({shard.file for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")
        return self

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Self:
        """Return a manifest.

        Args:
            text: the file's content.
            where: its place, for errors.

        Raises:
            StoreError: if it is no manifest of this format, or contradicts itself.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"{where} is no manifest of activations: {place + ': ' if place else ''}{first['msg']}"
            ) from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the manifest of a folder.

        Raises:
            StoreError: if there is none, or it is not sound.
        """
        path = folder / MANIFEST
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise StoreError(
                f"{path}: {error.strerror}; activations are a folder with {MANIFEST} and its shards"
            ) from error


def missing_shards(folder: Path, manifest: Manifest) -> list[str]:
    """Return the shards that are not there, or not of the stated size."""
    paths = {shard: folder / shard.file for shard in manifest.shards}
    return [s.file for s, path in paths.items() if not path.is_file() or path.stat().st_size != s.bytes]


def damaged_shards(folder: Path, manifest: Manifest, told: Callable[[int], None] | None = None) -> list[str]:
    """Return the shards that are missing or whose content does not have the stated hash.

    Args:
        folder: where the shards are.
        manifest: what they must be.
        told: hears how many shards have been read.
    """
    wrong = missing_shards(folder, manifest)
    for done, shard in enumerate(manifest.shards, 1):
        if shard.file not in wrong:
            with (folder / shard.file).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                    wrong.append(shard.file)
        if told is not None:
            told(done)
    return wrong


def collect(backbone: Backbone, site: str, split: Split, rows: int, folder: Path, progress: Progress) -> None:
    """Store up to ``rows`` rows of a split, as `write_rows` does.

    Raises:
        StoreError: if the split gives no row.
    """
    blocks = rebatch(backbone, site, split, rows, SHARD_ROWS, torch.device("cpu"))
    if not write_rows(blocks, folder, lambda written: progress(f"activations {split}", written, rows)):
        raise StoreError(f"the split {split} has no activations at {site}")


def write_rows(blocks: Iterable[Tensor], folder: Path, told: Callable[[int], None]) -> int:
    """Store blocks of rows ``(rows, d_in)``, fp32 on the CPU, as safetensors shards with a manifest; return how many.

    Without a row nothing is written. Values are kept in bf16 where that loses nothing (a backbone that runs in bf16),
    else in fp32.

    Args:
        blocks: each becomes a shard.
        folder: an empty folder.
        told: hears how many rows have been written.
    """
    shards: list[dict[str, Any]] = []
    written = width = 0
    for index, block in enumerate(blocks):
        shards.append(_write_shard(folder / f"shard-{index:05d}.safetensors", block))
        written, width = written + block.shape[0], block.shape[1]
        told(written)
    if not written:
        return 0
    manifest = Manifest.model_validate({"rows": written, "d_in": width, "shards": shards})
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return written


def _write_shard(path: Path, block: Tensor) -> dict[str, Any]:
    """Write rows in bf16 if that loses nothing, and return what the manifest says of them."""
    halved = block.bfloat16()
    values = halved if torch.equal(halved.float(), block) else block
    save_file({TENSOR: values.contiguous()}, path)
    return {
        "file": path.name,
        "rows": block.shape[0],
        "dtype": str(values.dtype).removeprefix("torch."),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
