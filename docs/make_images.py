"""Draws the console's comparison as a picture, from a real run.

``python docs/make_images.py`` uses ``preset:smoke`` in a folder that is removed afterwards. From the demonstration,
once it was run in this checkout::

    python docs/make_images.py registry.yaml --workdir .saebench --only architecture=batch_topk

What is left of the run is done first, without tracking.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from saebench_core.api import Opened, open_registry, run_opened
from saebench_core.report import show

TARGET: Final = Path(__file__).parent / "images" / "comparison.svg"
WIDTH: Final = 140
FORMAT: Final = """\
<svg class="{unique_id}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#1c1c1c"/>
<g transform="translate({terminal_x}, 24)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g>
</svg>
"""
"""rich's format without the window around it and without fonts from the network."""


def draw(opened: Opened, target: Path) -> None:
    """Run what is left and write the picture."""
    records = run_opened(opened, track=False).records
    console = Console(record=True, force_terminal=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    show(console, opened.sweep(), records, scores=opened.registry.headline, notice=opened.registry.notice)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = console.export_svg(theme=DIMMED_MONOKAI, code_format=FORMAT, unique_id="comparison")
    target.write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw from the registry that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", nargs="?", default="preset:smoke")
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--only", action="append", metavar="AXIS=NAME", help="default: architecture=batch_topk")
    parser.add_argument("--output", type=Path, default=TARGET)
    given = parser.parse_args(arguments)
    only = given.only or ["architecture=batch_topk"]
    with tempfile.TemporaryDirectory() as scratch:
        draw(open_registry(given.registry, given.workdir or Path(scratch), only=only), given.output)


if __name__ == "__main__":
    main()
