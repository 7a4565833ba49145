"""Memory and time of training steps at the paper's scale: one SAE, or one with a soft-frozen twin.

Usage: python benchmarks/scale.py [--steps N] [--twin] [--d-in 2304] [--d-sae 73728] [--batch 4096] [--k 160]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from steps import make_trainee


def main() -> None:
    """Take the steps; print seconds a step and the process's peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 20), ("d-in", 2304), ("d-sae", 73728), ("batch", 4096), ("k", 160)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--architecture", default="batch_topk")
    parser.add_argument("--twin", action="store_true", help="train a soft-frozen twin beside it")
    options = parser.parse_args()
    sizes = (options.architecture, options.d_in, options.d_sae, options.batch, options.k)
    constraints = ("trained", "soft_frozen_decoder") if options.twin else ("trained",)
    trainees = [make_trainee(*sizes, constraint) for constraint in constraints]
    generator, seconds = torch.Generator().manual_seed(0), []
    for number in range(options.steps):
        batch = torch.nn.functional.normalize(torch.randn(options.batch, options.d_in, generator=generator), dim=1)
        start = time.perf_counter()
        for trainee in trainees:
            trainee.step(batch, number)
        seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"step {number + 1}: {seconds[-1]:.1f} s, peak memory {peak / 1e9:.2f} GB", flush=True)
    print(f"{len(trainees)} SAEs, median {sorted(seconds)[len(seconds) // 2]:.1f} s a step")


if __name__ == "__main__":
    main()
