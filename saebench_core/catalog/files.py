"""A plugin in a single file, loaded without packaging: the file is read, nothing is written beside it."""

from __future__ import annotations

import hashlib
import sys
from importlib.abc import ExecutionLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import final

from saebench_core.errors import InputError, PluginError, nearest

__all__ = ["check_file", "load_file"]


def check_file(path: Path) -> None:
    """Refuse a path that is no Python file.

    Raises:
        InputError: with what it is, and the nearest name in its folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a Python file, or install the package (pip install {path})")
    if path.suffix != ".py":
        raise InputError(f"{path}: a plugin file is a Python file, so its name ends in .py")
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
        raise InputError(f"{path}: no such file{near}")


@final
class _OneFile(ExecutionLoader):
    """Runs source that was read already, without the bytecode that Python keeps beside modules."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path = path
        self.source = source

    def get_filename(self, fullname: str) -> str:
        """Return the path, for tracebacks and for the digest of the source."""
        return str(self.path)

    def get_source(self, fullname: str) -> str:
        """Return the text."""
        return decode_source(self.source)


def load_file(path: Path) -> ModuleType:
    """Return a file as a module; the same file with the same content is loaded once in a process.

    The module's name holds a digest of place and content, so that files of one name do not meet, and an edited file
    is loaded anew.

    Raises:
        InputError: if it is no Python file.
        PluginError: if it cannot be read.
    """
    check_file(path)
    place = path.resolve()
    try:
        source = place.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from error
    name = f"saebench_file_{hashlib.sha256(str(place).encode() + bytes(1) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_loader(name, _OneFile(place, source))
    if spec is None or spec.loader is None:  # a loader that gives a file name always makes one
        raise PluginError(f"{path}: Python makes no module of it")
    module = module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
