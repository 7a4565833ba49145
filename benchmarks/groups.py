"""One SAE against eight on one stream, what the data cost, and activations that are streamed against stored ones.

Usage: python benchmarks/groups.py [--steps N] [--out FILE]

Every case is a real run of a registry in a folder of its own: `wall` is the time between the first and the last step,
`own` that of the SAEs' steps, `data` what making the same batches takes with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line sets it

import torch

from saebench_core.api import Listener, Opened, export_activations, open_registry, run_opened

SYNTHETIC = "{name: toy, type: synthetic, d_in: 100, n_features: 3200, probability: {type: constant, p: 0.00625}}"
REGISTRY = """
name: bench
backbones:
  - %(backbone)s
architectures:
%(architectures)s
constraints: [{type: trained}]
l0: [%(k)d]
seeds: [0]
training: {steps: %(steps)d, batch_size: %(batch)d, lr: 3e-4, calibration_rows: 8192, evaluation_rows: 8192%(more)s}
metrics: [{type: reconstruction, rows: 8192}]
"""


class Clock(Listener):
    """Notes when the first and the last step ended."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def progress(self, label: str, done: int, total: int) -> None:
        """Take the time of a training step."""
        if label.startswith("train |"):
            self.steps.append(time.perf_counter())

    @property
    def wall(self) -> float:
        """Seconds from the first step's end to the last one's."""
        return self.steps[-1] - self.steps[0]


def opened(folder: Path, saes: int, backbone: str = SYNTHETIC, more: str = "", **sizes: int) -> Opened:
    """Return a registry of so many topk SAEs that cost the same."""
    entry = "  - {name: sae%d, type: topk, d_sae: %d, aux_coefficient: %g}\n"
    architectures = "".join(entry % (n, sizes["d_sae"], 0.03 + n / 1000) for n in range(saes))
    text = REGISTRY % {"backbone": backbone, "architectures": architectures, "more": more, **sizes}
    folder.mkdir(parents=True)
    (folder / "registry.yaml").write_text(text, encoding="utf-8")
    return open_registry(str(folder / "registry.yaml"), folder / "work")


def measure(one: Opened) -> dict[str, float]:
    """Run a registry; return seconds of its training loop and of the SAEs' own steps."""
    clock = Clock()
    report = run_opened(one, track=False, listener=clock)
    if report.exit_code:
        raise SystemExit(f"a cell failed: {[record.result.error for record in report.records]}")
    folders = [one.store.path(product.kind, product.key) for _, product in one.plan.train.values()]
    own = sum(json.loads((folder / "seconds.json").read_text(encoding="utf-8"))["train"] for folder in folders)
    return {"wall": clock.wall, "own": own}


def data_seconds(steps: int, batch: int) -> float:
    """Return the seconds that making the batches of the synthetic backbone takes."""
    from saebench_core.catalog import make_catalog
    from saebench_core.interfaces.context import Context

    spec = make_catalog().get("backbone", "synthetic").spec
    keys = {"type": "synthetic", "d_in": 100, "n_features": 3200, "probability": {"type": "constant", "p": 0.00625}}
    backbone: Any = spec.build(spec.config.model_validate(keys))

    class Plain(Context):
        device = torch.device("cpu")

        def generator(self, role: str) -> torch.Generator:
            return torch.Generator().manual_seed(0)

    backbone.prepare(Plain())
    start = time.perf_counter()
    for _ in backbone.stream("activations", "train", 0, steps * batch):
        pass
    return time.perf_counter() - start


def groups(root: Path, steps: int) -> list[dict[str, Any]]:
    """Measure one SAE and eight on the synthetic backbone."""
    sizes = {"d_sae": 3200, "batch": 1024, "k": 20, "steps": steps}
    data = data_seconds(steps, sizes["batch"])
    alone = measure(opened(root / "one", 1, **sizes))
    rows = []
    for saes, found in ((1, alone), (8, measure(opened(root / "eight", 8, **sizes)))):
        rows.append(
            {
                "case": f"{saes} SAE{'s' * (saes > 1)}, synthetic",
                "ms_a_step": 1e3 * found["wall"] / (steps - 1),
                "times_one_saes_own_step": found["wall"] / alone["own"] * steps / (steps - 1),
                "waiting_share": 1 - found["own"] / found["wall"],
                "data_share": data / found["wall"],
            }
        )
    return rows


def sources(root: Path, steps: int) -> list[dict[str, Any]]:
    """Measure activations that lie in files: permuted as a whole, and streamed through the two-window shuffle."""
    sizes = {"d_sae": 4608, "batch": 2048, "k": 32, "steps": steps}
    made = opened(root / "made", 1, SYNTHETIC.replace("d_in: 100", "d_in: 576"), **sizes)
    export_activations(made, "toy", root / "rows")
    rows = []
    for name, more in (("cached", ""), ("streamed", ", activations: streamed, buffer_rows: 65536")):
        stored = f'{{name: stored, type: activations, path: "{root / "rows"}"}}'
        found = measure(opened(root / name, 1, stored, more, **sizes))
        share = 1 - found["own"] / found["wall"]
        rows.append({"case": f"1 SAE, {name}", "ms_a_step": 1e3 * found["wall"] / (steps - 1), "waiting_share": share})
    return rows


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of a case")
    parser.add_argument("--out", type=Path, default=Path(".saebench/bench_groups.json"), help="where rows are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = groups(Path(folder), options.steps) + sources(Path(folder), max(50, options.steps // 5))
    for row in rows:
        print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out} written", file=sys.stderr)


if __name__ == "__main__":
    main()
