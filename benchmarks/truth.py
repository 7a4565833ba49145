"""Scores against known features beside SAELens' own, on the same saved SAEs, features and rows.

``python benchmarks/truth.py --peers .venv-peers/bin/python`` trains small SAEs, hands their files to SAELens in its own
environment, and prints both numbers; it fails where they differ by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

import saebench_core as sb
from saebench_core.conformance.context import KitContext

ROWS = 8192
TOLERANCE = 1e-3
REGISTRY: dict[str, Any] = {
    "name": "truth",
    "backbones": [
        {
            "name": "planted",
            "type": "synthetic",
            "d_in": 64,
            "n_features": 256,
            "probability": {"type": "log_uniform", "low": 0.001, "high": 0.1},
        }
    ],
    "architectures": [{"type": "topk", "d_sae": 256}, {"type": "batch_topk", "d_sae": 320}],
    "constraints": [{"type": "trained"}, {"type": "soft_frozen_decoder"}],
    "l0": [5],
    "seeds": [0],
    "training": {"steps": 600, "batch_size": 512, "lr": 3e-3},
    "metrics": [
        {"type": "reconstruction", "rows": ROWS},
        {"type": "feature_matching"},
        {"type": "feature_firing", "rows": ROWS},
    ],
}
NAMES = {
    "feature_matching/mcc": "mcc",
    "feature_matching/uniqueness": "uniqueness",
    "feature_firing/precision": "precision",
    "feature_firing/recall": "recall",
    "feature_firing/f1": "f1",
    "feature_firing/shrinkage": "shrinkage",
    "reconstruction/explained_variance": "explained_variance",
}


def write_world(results: sb.Results, path: Path) -> None:
    """Write features, evaluation rows and their true coefficients."""
    entry = results.registry.cells[0].backbone
    backbone = cast(sb.Backbone, entry.plugin.spec.build(entry.config))
    backbone.prepare(KitContext(path.parent / "kit"))
    known = cast(sb.GroundTruth, backbone)
    x = torch.cat([batch.inputs for batch in backbone.stream("activations", "evaluation", 0, ROWS)])
    codes = known.codes("evaluation", 0, ROWS).to_dense()
    save_file({"features": known.features(), "x": x, "codes": codes}, path)


def main() -> int:
    """Print a line for each SAE and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="interpreter that has sae-lens")
    peers = parser.parse_args().peers
    worst, failed = 0.0, list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        results = sb.run(sb.Registry.from_dict(REGISTRY), workdir=scratch, progress=False)
        world = Path(scratch) / "world.safetensors"
        write_world(results, world)
        script = Path(__file__).with_name("truth_peer.py")
        for cell in results:
            command = [peers, str(script), str(cell.path("sae")), str(world)]
            theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for ours, name in NAMES.items():
                value = cell[ours].value
                if value is None or not abs(value - theirs[name]) <= TOLERANCE:
                    failed.append(ours)
                    continue
                worst = max(worst, abs(value - theirs[name]))
                line = f"{cell.result.architecture.name:11} {cell.result.constraint.name:20} {name:19}"
                sys.stdout.write(f"{line} {value:.8f} {theirs[name]:.8f}\n")
    sys.stdout.write(f"largest difference {worst:.1e}\n")
    sys.stdout.write("".join(f"differs by more than {TOLERANCE:g}: {name}\n" for name in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
