"""Wheels: built from a copy of the sources without a network, and installed into folders of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_SOURCES = shutil.ignore_patterns(".*", "_build", "__pycache__", "build", "dist", "*.egg-info")


def run(*command: Any, cwd: Path, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which no plugin is chosen and torch has one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAEBENCH_", "PYTHON", "PYTEST"))}
    environment: Mapping[str, str] = kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | changes
    words: Sequence[str] = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


def build(project: Path, folder: Path, *parts: str) -> Path:
    """Return the wheel of a project, built in a copy of the named parts of it (all, where none is named)."""
    copy = folder / "sources"
    if parts:
        copy.mkdir(parents=True)
        for part in parts:
            if (project / part).is_dir():
                shutil.copytree(project / part, copy / part, ignore=NOT_SOURCES)
            else:
                shutil.copy(project / part, copy / part)
    else:
        shutil.copytree(project, copy, ignore=NOT_SOURCES)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", copy, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, *where: Any, cwd: Path) -> None:
    """Install a wheel and nothing else, without a network; ``where`` are options of pip, or ``--python`` and a path."""
    before = where if where[0] == "--python" else ()
    after = () if before else where
    options = ("--no-index", "--no-deps", "--ignore-installed", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", *before, "install", *options, *after, wheel, cwd=cwd)
