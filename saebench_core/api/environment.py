"""What the record of a sweep says of where it ran: device, versions, the checkout's commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from saebench_core.plan import Environment

__all__ = ["surroundings"]

_PACKAGES: Final = ("saebench-core", "torch", "transformers", "open_clip_torch", "scikit-learn", "numpy", "mlflow")


def surroundings(environment: Environment) -> dict[str, str]:
    """Return device, number format, versions of packages, and the commit where there is one."""
    found = {"device": environment.device, "backbone_dtype": environment.backbone_dtype}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _commit() -> str | None:
    """Return the commit of the current folder's checkout, marked where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return None
    settings = {
        "cwd": Path.cwd(),
        "capture_output": True,
        "text": True,
        "timeout": 5,
        "env": {**os.environ, "LC_ALL": "C"},
    }
    try:
        head = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], check=True, **settings)  # type: ignore[call-overload]  # noqa: S603
        dirty = subprocess.run([git, "status", "--porcelain", "-uno"], check=True, **settings)  # type: ignore[call-overload]  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return str(head.stdout).strip() + ("+changes" if str(dirty.stdout).strip() else "")
