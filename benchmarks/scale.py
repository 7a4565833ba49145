"""Memory and time of a run at the paper's scale: one SAE, or one with a soft-frozen twin, checkpoints and end included.

Usage: python benchmarks/scale.py [--steps N] [--twin] [--d-in 2304] [--d-sae 73728] [--batch 4096] [--k 160]

It is a real run of a registry in a temporary folder, on the synthetic backbone. Peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # both as the command line sets them
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch import Tensor

from saebench_core.api import Listener, open_registry, run_opened
from saebench_core.plan import Task
from saebench_core.training.trainee import Trainee

REGISTRY = """
name: scale
backbones:
  - {name: toy, type: synthetic, d_in: %(d_in)d, n_features: %(n_features)d, probability: {type: constant, p: 0.01}}
architectures: [{type: %(architecture)s, d_sae: %(d_sae)d}]
constraints: [%(constraints)s]
l0: [%(k)d]
seeds: [0]
training: {steps: %(steps)d, batch_size: %(batch)d, lr: 2e-4, calibration_rows: 8192, evaluation_rows: 8192}
runtime: {checkpoint_seconds: %(checkpoint_seconds)d}
metrics: [{type: reconstruction, rows: 8192}]
"""


def peak_gb() -> float:
    """Return the process's peak memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Watch(Listener):
    """Prints the peak memory as the run goes on."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Print how far a training is."""
        if label.startswith("train |"):
            print(f"step {done} of {total}, peak memory {peak_gb():.2f} GB", flush=True)

    def done(self, task: Task, error: str | None) -> None:
        """Print what a task left."""
        print(f"{task.label}: {error or 'done'}, peak memory {peak_gb():.2f} GB", flush=True)


@contextmanager
def timed_steps() -> Iterator[list[float]]:
    """Keep the seconds of every SAE's own steps: a run this short measures itself on held-out rows after each."""
    seconds: list[float] = []
    step = Trainee.step

    def timed(trainee: Trainee, x: Tensor, number: int) -> None:
        start = time.perf_counter()
        step(trainee, x, number)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(Trainee, "step", timed):
        yield seconds


def main() -> None:
    """Run; print seconds a step and the process's peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 20), ("d-in", 2304), ("d-sae", 73728), ("batch", 4096), ("k", 160)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--architecture", default="batch_topk")
    parser.add_argument("--checkpoint-seconds", type=int, default=60)
    parser.add_argument("--twin", action="store_true", help="train a soft-frozen twin beside it")
    options = parser.parse_args()
    constraints = "{type: trained}" + (", {type: soft_frozen_decoder}" if options.twin else "")
    text = REGISTRY % {**vars(options), "constraints": constraints, "n_features": 2 * options.d_in}
    with tempfile.TemporaryDirectory() as folder, timed_steps() as seconds:
        path = Path(folder) / "registry.yaml"
        path.write_text(text, encoding="utf-8")
        one = open_registry(str(path), Path(folder) / "work")
        report = run_opened(one, track=False, listener=Watch())
    each = len(seconds) // options.steps
    times = f"{each * statistics.median(seconds):.1f} s a step (median)"
    print(f"exit {report.exit_code}, {times}, peak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
