"""How fast rows of synthetic worlds are made, beside SAELens' and the bare encoder product, as ratios in one run.

Usage: python benchmarks/worlds.py [--peers PYTHON] [--out FILE]

The worlds are those of the presets; a million rows of the paper's are to take less than three seconds on two cores. The
product is that of as many rows with one latent a feature. ``--peers`` names the interpreter of an environment with
SAELens, which makes rows of a world of the same law (without trees where there are none here); without it its column
stays empty.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from ruamel.yaml import YAML

from saebench_core.catalog import make_catalog
from saebench_core.conformance.context import KitContext
from saebench_core.interfaces.backbone import Backbone, BackboneSpec
from saebench_core.presets import preset_text

WORLDS = (
    ("paper-synthetic", "constant", 1_000_000),
    ("paper-synthetic", "variable", 1_000_000),
    ("map-hierarchy", "exclusive-1", 200_000),
    ("map-correlation", "scale-0.3", 200_000),
    ("synth-sae-bench-small", "synth-small", 200_000),
    ("synth-sae-bench", "synth-16k", 20_000),
)


def world(preset: str, name: str) -> tuple[Backbone, dict[str, Any]]:
    """Return a prepared backbone of a preset, and its configuration."""
    (entry,) = (one for one in YAML(typ="safe").load(preset_text(preset))["backbones"] if one["name"] == name)
    spec = cast(BackboneSpec, make_catalog().get("backbone", "synthetic").spec)
    config = spec.config.model_validate({key: value for key, value in entry.items() if key != "training"})
    backbone = spec.build(config)
    backbone.prepare(KitContext(Path("unused")))
    return backbone, config.model_dump(mode="json")


def seconds(backbone: Backbone, rows: int) -> float:
    """Return the time of making so many rows, after some that warm up."""
    for _ in backbone.stream("activations", "train", 0, 4096):
        pass
    start = time.perf_counter()
    for _ in backbone.stream("activations", "train", 0, rows):
        pass
    return time.perf_counter() - start


def product_seconds(d_in: int, d_sae: int, rows: int) -> float:
    """Return the time of the bare fp32 product for so many rows, by that of 1,024."""
    x, weight, best = torch.randn(1024, d_in), torch.randn(d_in, d_sae), float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(x, weight)
        best = min(best, time.perf_counter() - start)
    return best * rows / 1024


def peer_seconds(python: str | None, config: dict[str, Any], rows: int) -> float | None:
    """Return SAELens' time for a world of the same law."""
    if python is None:
        return None
    command = [python, str(Path(__file__).with_name("worlds_peer.py")), json.dumps(config), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print a table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with sae-lens")
    parser.add_argument("--out", type=Path, default=Path(".saebench/bench-worlds.json"), help="where rows are written")
    given = parser.parse_args()
    found = []
    print(f"{'world':<40} {'rows':>9} {'us a row':>9} {'SAELens':>9} {'here / product':>15} {'SAELens / here':>15}")
    for preset, name, rows in WORLDS:
        backbone, config = world(preset, name)
        mine = seconds(backbone, rows)
        peer_rows = max(5 * 1024, rows // 20)
        peer = peer_seconds(given.peers, config, peer_rows)
        product = product_seconds(config["d_in"], config["n_features"], rows)
        row = {
            "world": f"{preset} {name}",
            "rows": rows,
            "us_a_row": 1e6 * mine / rows,
            "peer_us_a_row": None if peer is None else 1e6 * peer / peer_rows,
            "times_product": mine / product,
        }
        found.append(row)
        theirs = row["peer_us_a_row"]
        told = ("", "") if theirs is None else (f"{theirs:.1f}", f"{theirs / row['us_a_row']:.1f}")
        print(
            f"{row['world']:<40} {rows:>9,} {row['us_a_row']:>9.2f} {told[0]:>9} {row['times_product']:>15.2f} "
            f"{told[1]:>15}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"rows in {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
