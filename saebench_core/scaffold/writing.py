"""Fills in the templates and writes a distribution: all of it, or nothing."""

from __future__ import annotations

import builtins
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from saebench_core._version import __version__
from saebench_core.errors import InputError, nearest
from saebench_core.scaffold.names import Names, names_of

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["KINDS", "Written", "write_distribution"]

KINDS: Final[Mapping[str, str]] = {
    "architecture": "The largest pre-activations of a row, each lowered by the one that comes next",
    "constraint": "Decoder directions learn, but coordinates keep their random signs",
    "metric": "Share of rows that come back within a tolerance",
    "backbone": "Rows around random centres",
}
"""Kinds of plugins, each with the summary of its example."""


@final
@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        names: of the plugin.
        folder: of the distribution.
        files: relative to the folder, in the order in which one reads them.
    """

    names: Names
    folder: Path
    files: tuple[str, ...]


def write_distribution(given: str, kind: str, parent: Path, taken: Collection[str] = ()) -> Written:
    """Write a distribution with an example of a kind into a new folder.

    Args:
        given: name of the distribution.
        kind: one of `KINDS`.
        parent: folder that the new one is made in.
        taken: types of that kind that installed plugins have.

    Raises:
        InputError: if the kind or the name cannot be used, or the folder is there already.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} is no kind of plugin{nearest(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    names = names_of(given)
    if names.package in taken:
        raise InputError(f"{given!r}: an installed {kind} is called {names.package!r} already; choose another name")
    if names.camel in _words(kind):
        names = replace(names, camel=names.camel + kind.capitalize())
    folder = parent / names.distribution
    if os.path.lexists(folder):
        raise InputError(f"{folder}: is there already; choose another name, or another --directory")
    texts = _texts(names, kind)
    draft = _draft(names, parent)
    try:
        for name, text in texts.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        draft.chmod(0o777 & ~_umask())
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Written(names, folder, tuple(texts))


def _draft(names: Names, parent: Path) -> Path:
    """Make the hidden folder that a distribution is written into first.

    Raises:
        InputError: if none can be made there.
    """
    if not next((place for place in (parent, *parent.parents) if place.exists()), parent).is_dir():
        raise InputError(f"--directory {parent}: is no folder")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{names.distribution}-", dir=parent))
    except OSError as error:
        raise InputError(f"--directory {parent}: cannot be written to ({error.strerror}); choose another") from error


def _words(kind: str) -> set[str]:
    """Return the names that a class of a kind would hide: what the modules import and define, and Python's own."""
    texts = "".join(_template(name) for name in (f"{kind}.py.j2", f"test_{kind}.py.j2"))
    lines = re.findall(r"^(?:from \S+ import|import|class) (.+)$", texts, re.MULTILINE)
    return {word for line in lines for word in re.findall(r"\w+", line)} | set(dir(builtins))


def _template(name: str) -> str:
    return (files("saebench_core.scaffold") / "templates" / name).read_text(encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _texts(names: Names, kind: str) -> dict[str, str]:
    """Return the files of a distribution, in the order in which one reads them."""
    templates = {
        "README.md": "README.md.j2",
        "pyproject.toml": "pyproject.toml.j2",
        f"src/{names.package}/{kind}.py": f"{kind}.py.j2",
        f"src/{names.package}/__init__.py": "__init__.py.j2",
        f"tests/test_{kind}.py": f"test_{kind}.py.j2",
        "registry.yaml": "registry.yaml.j2",
        ".gitignore": "gitignore.j2",
    }
    values = {
        "distribution": names.distribution,
        "package": names.package,
        "camel": names.camel,
        "kind": kind,
        "summary": KINDS[kind],
        "core": _wanted_core(),
    }
    environment = _environment()
    texts = {name: environment.from_string(_template(template)).render(values) for name, template in templates.items()}
    return texts | {f"src/{names.package}/py.typed": ""}


def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    return Environment(  # noqa: S701 - no HTML
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )


def _wanted_core(installed: str = __version__) -> str:
    """Return what versions of the core to ask for: the installed minor version, or from a development version on.

    The next minor version is excluded, because contracts may change with it.
    """
    from packaging.version import Version

    version = Version(installed)
    first = version.public if version.is_prerelease else f"{version.major}.{version.minor}"
    return f">={first},<{version.major}.{version.minor + 1}"
