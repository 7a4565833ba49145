"""What names MLflow takes as metric keys, and how ours become such names."""

from __future__ import annotations

import posixpath
import re
from typing import Final

from saebench_core.errors import InputError

__all__ = ["check_metric_name", "metric_key"]

MAX_LENGTH: Final = 250
"""Length of MLflow's column for metric keys."""

_REFUSED: Final = re.compile(r"[^\w.\- :/]")
_ALLOWED: Final = "letters, digits, '_', '-', '.', ' ', ':' and single '/' between parts"


def check_metric_name(name: str) -> None:
    """Check that a name can be a metric key in MLflow as it is.

    Raises:
        InputError: if it has a character that MLflow refuses, or parts that read as a path out of its place.
    """
    refused = sorted(set(_REFUSED.findall(name)))
    if refused:
        raise InputError(f"metric name {name!r} has {' '.join(refused)}; allowed are {_ALLOWED}; rename the score")
    if not name or name != posixpath.normpath(name) or name.startswith(("..", "/")) or name == ".":
        raise InputError(f"metric name {name!r} is no plain name; allowed are {_ALLOWED}; rename the score")
    if len(name) > MAX_LENGTH:
        raise InputError(f"metric name {name[:40]!r}... has {len(name)} characters; allowed are {MAX_LENGTH}")


def metric_key(name: str) -> str:
    """Return the key under which a score is logged: entry names such as ``probe[k=5]`` become ``probe.k-5``.

    Raises:
        InputError: if nothing usable is left.
    """
    text = name.replace("]", "").replace("[", ".").replace("=", "-")
    text = _REFUSED.sub("_", text)
    check_metric_name(text)
    return text
