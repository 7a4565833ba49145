"""Draws how much of a row a random dictionary explains, by its size and by the codes that it may use.

``python docs/make_pursuit.py`` measures it anew, in about a minute, and writes the numbers and the picture of the page
on theory; ``--draw`` draws the numbers that are stored.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.pursuit import pursue
from saebench_core.report import chart_picture

FOLDER: Final = Path(__file__).parent / "images"
WIDTHS: Final = (32, 100, 256)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
"""Directions for each dimension."""
SHARES: Final = (0.05, 0.1, 0.2, 0.4)
"""Codes for each dimension."""
ROWS: Final = 256
Numbers = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Explained variance by share of codes, width and size."""


def explained(d_in: int, d_sae: int, k: int, rows: int = ROWS) -> float:
    """Return the share of the variance of white noise that pursuit explains with random directions."""
    generator = torch.Generator().manual_seed(d_in)
    x, directions = torch.randn(rows, d_in, generator=generator), torch.randn(d_sae, d_in, generator=generator)
    left = x - pursue(x, directions, k).to_dense() @ directions
    return 1 - float(left.square().sum() / x.square().sum())


def measured() -> Numbers:
    """Return all numbers of the picture."""
    return {
        f"{share:g}": {
            str(d_in): {
                str(size): round(explained(d_in, size * d_in, max(1, round(share * d_in))), 4) for size in SIZES
            }
            for d_in in WIDTHS
        }
        for share in SHARES
    }


def chart(numbers: Numbers) -> Chart:
    """Return the chart: a panel for each number of codes, a line for each width."""
    panels = [
        ChartPanel(
            f"{float(share):.0%} as many codes as dimensions",
            tuple(
                Series(f"d_in {d_in}", tuple(float(size) for size in line), tuple(line.values()))
                for d_in, line in lines.items()
            ),
        )
        for share, lines in numbers.items()
    ]
    return Chart(
        "Explained variance of random directions under pursuit",
        "rows are white noise",
        "directions / dimensions",
        "explained variance",
        tuple(panels),
        x_log=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, unless only to draw, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw what is stored")
    given = parser.parse_args(arguments)
    stored = FOLDER / "pursuit.json"
    if not given.draw:
        stored.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    picture = chart_picture(chart(json.loads(stored.read_text(encoding="utf-8"))))
    (FOLDER / "pursuit.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
