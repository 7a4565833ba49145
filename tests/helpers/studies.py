"""Where the studies are, and cells as they are stored beside them."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
AXES = ("backbone", "architecture", "constraint", "l0")


def cell(architecture, constraint, seed, value, flags=()):
    """Return a stored cell of the backbone ``toy``, with two scores."""
    return {
        "backbone": "toy",
        "architecture": architecture,
        "constraint": constraint,
        "l0": 5.0,
        "seed": seed,
        "flags": list(flags),
        "scores": {"a/b": value, "a/c": 10 * value},
    }
