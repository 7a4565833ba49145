"""The digest of a plugin's sources: its module, and the modules of its own package that it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

__all__ = ["source_digest"]


def source_digest(module: ModuleType) -> str:
    """Hash the module's source and, in order, the sources of its own package that it imports."""
    package = module.__name__.partition(".")[0]
    seen: dict[str, bytes] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _source_path(name)
        if path is None:
            continue
        seen[name] = path.read_bytes()
        waiting.extend(_imports(name, seen[name], package, path.name == "__init__.py"))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\0".encode() + hashlib.sha256(seen[name]).digest())
    return digest.hexdigest()


def _source_path(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _imports(name: str, source: bytes, package: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            if base.partition(".")[0] == package:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
