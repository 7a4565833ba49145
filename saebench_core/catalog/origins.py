"""Where plugins come from: entry points of installed distributions, and single files. Nothing is imported here."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, PackageMetadata, entry_points
from pathlib import Path
from typing import Final, final

from packaging.utils import canonicalize_name

from saebench_core.catalog.choice import PluginChoice
from saebench_core.catalog.files import load_file
from saebench_core.errors import InputError, nearest

__all__ = ["Origin", "check_blocks", "origins"]

_VERSION_LETTERS: Final = 12


@final
@dataclass(frozen=True)
class Origin:
    """A module that may hold plugins, before it is imported.

    Attributes:
        label: ``distribution:entry-point``, or the file as it was given.
        distribution: the distribution, or the file as it was given.
        version: the distribution's, or the beginning of the sha256 of the file's content.
        load: imports it.
        says: what it names, for messages.
        requires: the distribution's ``Requires-Dist`` lines.
        path: the file, where it is one.
    """

    label: str
    distribution: str
    version: str
    load: Callable[[], object]
    says: str
    requires: tuple[str, ...] = ()
    path: Path | None = None


def origins(group: str, choice: PluginChoice) -> Iterator[Origin]:
    """Yield what is chosen: the entry points of a group, sorted by distribution and name, then the files as given."""
    requires: dict[str, tuple[str, ...]] = {}
    for distribution, version, point in sorted(map(_named, entry_points(group=group)), key=lambda one: one[::2]):
        label = f"{distribution}:{point.name}"
        if not choice.admits(distribution, label):
            continue
        if distribution not in requires:
            requires[distribution] = _requires(point)
        yield Origin(label, distribution, version, point.load, point.value, requires[distribution])
    seen: set[Path] = set()
    for path in choice.files:
        place = path.resolve()
        if place in seen or choice.blocks(str(path), path.name):
            continue
        seen.add(place)
        yield Origin(str(path), str(path), _content_version(path), partial(load_file, path), str(path), path=place)


def check_blocks(group: str, names: Sequence[str], files: Sequence[Path]) -> None:
    """Refuse names that nothing installed has, and none of the files.

    Raises:
        InputError: with the nearest name.
    """
    known = [name for file in files for name in (str(file), file.name)]
    for distribution, _, point in map(_named, entry_points(group=group)):
        known += [distribution, f"{distribution}:{point.name}"]
    canonical = set(map(canonicalize_name, known))
    for name in (part.strip() for text in names for part in text.split(",")):
        if name and canonicalize_name(name) not in canonical:
            near = nearest(name, known)
            raise InputError(
                f"--no-plugin {name}: nothing installed is called so{near}; give a distribution, "
                "DISTRIBUTION:ENTRY-POINT, or a plugin file"
            )


def _named(point: EntryPoint) -> tuple[str, str, EntryPoint]:
    """Return distribution, version and entry point; a damaged distribution has no metadata, so neither of the first."""
    metadata: Mapping[str, str] | PackageMetadata = {}
    with contextlib.suppress(FileNotFoundError):  # raised where the package importlib_metadata stands in
        metadata = (point.dist and point.dist.metadata) or {}
    name, version = (str(metadata[key]) if key in metadata else "" for key in ("Name", "Version"))
    return name or "unknown", version, point


def _requires(point: EntryPoint) -> tuple[str, ...]:
    with contextlib.suppress(FileNotFoundError):
        return tuple(point.dist.requires or ()) if point.dist else ()
    return ()


def _content_version(path: Path) -> str:
    """Return the beginning of the content's sha256; nothing for a file that cannot be read, which loading tells."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_VERSION_LETTERS]
    except OSError:
        return ""
