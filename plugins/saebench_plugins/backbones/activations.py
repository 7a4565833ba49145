"""Activations that somebody computed before: a folder or bucket in the layout of the store.

Below the place are the folders ``train``, ``calibration`` and ``evaluation``, each with a ``manifest.json`` and its
shards, as `saebench activations export` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from pydantic import Field

from saebench_core import (
    MANIFEST,
    ActivationBatch,
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Context,
    InputError,
    Json,
    Manifest,
    MissingPackageError,
    SaebenchError,
    Split,
    StoredReader,
    damaged_shards,
    hookimpl,
    locate,
)

_SPLITS: Final[tuple[Split, ...]] = get_args(Split)


class StoredActivationsConfig(BackboneConfig):
    """Configuration of `StoredActivations`."""

    type: Literal["activations"] = "activations"
    path: str = Field(
        min_length=1,
        description="Folder or fsspec URL with `train`, `calibration` and `evaluation`; a URL is fetched once.",
    )
    site: str = Field("activations", min_length=1, description="Name of the place that the rows were read at.")
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Hash of the three manifests, one after the other; checked, and in cell ids instead of `path`.",
    )

    def identity(self) -> dict[str, Any]:
        """Return what shapes results: the place of the rows, or what they are where that is stated."""
        identity = super().identity()
        del identity["sha256" if self.sha256 is None else "path"]
        return identity


class _Stated(NamedTuple):
    """A split's manifest, and the hash of its text."""

    manifest: Manifest
    sha256: str


class StoredActivations(Backbone):
    """Reads rows from shards; nothing is computed, and the training order permutes all rows at once."""

    def __init__(self, config: StoredActivationsConfig) -> None:
        self.config = config
        self._folders: dict[Split, Path] = {}
        self._device = torch.device("cpu")

    @cached_property
    def _place(self) -> _Local | _Remote:
        return _Remote(self.config.path) if "://" in self.config.path else _Local(locate(self.config.path))

    @cached_property
    def _stated(self) -> dict[Split, _Stated]:
        """Read the manifests, which are small.

        Raises:
            InputError: if one is missing or unsound, widths differ, or they are not those that `sha256` states.
        """
        stated: dict[Split, _Stated] = {}
        together = hashlib.sha256()
        for split in _SPLITS:
            where = f"{self.config.path.rstrip('/')}/{split}/{MANIFEST}"
            text = self._place.text(split, where)
            together.update(text)
            try:
                stated[split] = _Stated(Manifest.parse(text, where), hashlib.sha256(text).hexdigest())
            except SaebenchError as error:
                raise InputError(str(error)) from error
        widths = {split: entry.manifest.d_in for split, entry in stated.items()}
        if len(set(widths.values())) > 1:
            raise InputError(f"{self.config.path}: the splits differ in d_in: {widths}")
        if self.config.sha256 not in (None, found := together.hexdigest()):
            raise InputError(f"{self.config.path}: the manifests have the sha256 {found}, not the one that is stated")
        return stated

    def describe(self) -> BackboneDescription:
        """Return the one site and the sizes, from the manifests."""
        sizes = [sum(shard.bytes for shard in stated.manifest.shards) for stated in self._stated.values()]
        rows: dict[str, Json] = {f"{split}_rows": stated.manifest.rows for split, stated in self._stated.items()}
        return BackboneDescription(
            modality="other",
            sites={self.config.site: self._stated["train"].manifest.d_in},
            regenerates=True,
            disk_bytes=sum(sizes) if isinstance(self._place, _Remote) else 0,
            seconds_per_row=1e-7,
            facts=rows,
        )

    def fingerprint(self) -> Mapping[str, Json]:
        """Return the hashes of the manifests, which state the hash of every shard."""
        return {split: stated.sha256 for split, stated in self._stated.items()}

    def prepare(self, context: Context) -> None:
        """Fetch what is remote, once, and check every shard against its hash."""
        self._device = context.device
        for split, stated in self._stated.items():
            self._folders[split] = self._place.fetch(split, stated, context)

    def folder(self, site: str, split: Split) -> Path:
        """Return the local folder of a split.

        Raises:
            RuntimeError: before `prepare`.
        """
        if split not in self._folders:
            raise RuntimeError("the stored activations are not prepared")
        return self._folders[split]

    def rows_available(self, site: str, split: Split) -> int:
        """Return the rows of a split."""
        return self._stated[split].manifest.rows

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield rows in the order of the shards."""
        for values in StoredReader(self.folder(site, split), self._device).span(start, rows):
            yield ActivationBatch(values, values)


def _check(folder: Path, manifest: Manifest, told: Callable[[int], None]) -> None:
    if wrong := damaged_shards(folder, manifest, told):
        raise InputError(f"{folder}: missing, or not what the manifest states: {', '.join(wrong)}; copy them again")


def _telling(context: Context, split: Split, manifest: Manifest) -> Callable[[int], None]:
    return lambda done: context.progress(f"check shards {split}", done, len(manifest.shards))


class _Local:
    """A folder of this machine; shards are used where they are."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, split: Split, where: str) -> bytes:
        try:
            return (self.root / split / MANIFEST).read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {error.strerror}; `saebench activations export` writes such folders") from error

    def fetch(self, split: Split, stated: _Stated, context: Context) -> Path:
        folder = self.root / split
        _check(folder, stated.manifest, _telling(context, split, stated.manifest))
        return folder


class _Remote:
    """A place that fsspec reads; shards are fetched into the store, where the key is what they hold."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:  # a protocol whose package is missing, or that is none
            raise MissingPackageError(f"{url}: {error}") from error
        self.files: Any = files
        self.root = str(root).rstrip("/")

    def text(self, split: Split, where: str) -> bytes:
        try:
            return bytes(self.files.cat_file(f"{self.root}/{split}/{MANIFEST}"))
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error}") from error

    def fetch(self, split: Split, stated: _Stated, context: Context) -> Path:
        def build(folder: Path) -> None:
            (folder / MANIFEST).write_bytes(self.text(split, f"{self.root}/{split}/{MANIFEST}"))
            for done, shard in enumerate(stated.manifest.shards, 1):
                self.files.get_file(f"{self.root}/{split}/{shard.file}", str(folder / shard.file))
                context.progress(f"fetch {split}", done, len(stated.manifest.shards))
            _check(folder, stated.manifest, _telling(context, split, stated.manifest))

        return context.product({"product": "fetched activations", "manifest": stated.sha256}, build)


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """Offer ``activations``."""
    return [
        BackboneSpec(
            config=StoredActivationsConfig,
            build=StoredActivations,
            summary="Activations computed before, from a folder or any place that fsspec reads",
        )
    ]
