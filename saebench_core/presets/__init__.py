"""Registries shipped in the wheel, named ``preset:NAME`` on the command line."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import takewhile
from typing import Final

from saebench_core.errors import InputError, nearest

__all__ = ["PREFIX", "preset_names", "preset_summary", "preset_text"]

PREFIX: Final = "preset:"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(item.name.removesuffix(".yaml") for item in files(__name__).iterdir() if item.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """Return a preset's registry as text.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in preset_names():
        raise InputError(
            f"no preset is called {name!r}{nearest(name, preset_names())}; presets: {', '.join(preset_names())}"
        )
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """Return the first sentence of a preset that is for people."""
    comment = takewhile(lambda line: line.startswith("#"), preset_text(name).splitlines())
    lines = [line[1:].strip() for line in comment if "yaml-language-server" not in line]
    return re.split(r"(?<=[.?!])\s", " ".join(lines).strip(), maxsplit=1)[0]
