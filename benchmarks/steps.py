"""One training step against SAELens, dictionary_learning and the bare encoder product, as ratios in one run.

Usage: python benchmarks/steps.py [--peers PYTHON] [--out FILE] [--quick]

``--peers`` names the interpreter of an environment with both libraries; without it their columns stay empty. Every
case is measured on batches made beforehand, so that data generation is in no figure; the fastest of some steps counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line sets it

import torch

from saebench_core.catalog import make_catalog
from saebench_core.interfaces.architecture import Shape
from saebench_core.interfaces.constraint import BaseDraw, Statistics
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee

SHAPES = ((100, 3200, 4096, 20, 8), (640, 20480, 2048, 64, 4))
ARCHITECTURES = ("topk", "batch_topk", "jumprelu", "relu")
WARM_UP = 2


def batches(d_in: int, rows: int, count: int = 4) -> list[torch.Tensor]:
    """Return rows of norm one."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(rows, d_in, generator=generator), dim=1) for _ in range(count)]


def fastest(step: Callable[[int], object], count: int) -> float:
    """Return milliseconds of the fastest call."""
    times = []
    for number in range(WARM_UP + count):
        start = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - start)
    return min(times[WARM_UP:]) * 1e3


def make_trainee(architecture: str, d_in: int, d_sae: int, batch: int, k: int, constraint: str = "trained") -> Trainee:
    """Return an SAE at its start."""
    catalog = make_catalog()

    def build(kind: Any, name: str, **config: Any) -> Any:
        spec = catalog.get(kind, name).spec
        return spec.build(spec.config.model_validate({"type": name, **config}))

    held, shape = build("constraint", constraint), Shape(d_in, d_sae, k)
    recipe = held.adapt(build("architecture", architecture, d_sae=d_sae).recipe(shape), shape)
    draw = BaseDraw.from_generator(torch.Generator().manual_seed(0), d_sae, d_in)
    start = held.initialise(draw, "iso", Statistics(1, torch.zeros(d_in).double(), 1.0, torch.eye(d_in).double()))
    settings = TrainingSettings.model_validate({"steps": 10_000, "batch_size": batch, "lr": 1e-4, "warmup_steps": 0})
    return Trainee(recipe, held, start, torch.zeros(d_in), settings, shape)


@torch.no_grad()
def bring_to_target(trainee: Trainee, batch: torch.Tensor) -> None:
    """Set thresholds so that the target number of latents fires, as after a training."""
    sae = trainee.sae
    least = float((batch @ sae.w_enc).flatten().topk(round(trainee.shape.l0 * batch.shape[0])).values.min())
    if trainee.recipe.rule.bias_is_threshold:
        sae.encoder_bias.fill_(-least)
    elif "threshold" in sae.tensors and trainee.recipe.rule.calibrated() is None:
        sae.tensors["threshold"].fill_(least)


def ours_ms(case: dict[str, Any]) -> float:
    """Return the time of this project's step."""
    sizes = {key: case[key] for key in ("architecture", "d_in", "d_sae", "batch", "k")}
    trainee, data, dead = make_trainee(**sizes), batches(case["d_in"], case["batch"]), case["dead"]
    bring_to_target(trainee, data[0])
    if dead:
        with torch.no_grad():
            trainee.sae.w_enc[:, :dead] *= 1e-3  # too small to be among the largest, large enough to be positive

    def step(number: int) -> None:
        if dead:
            trainee._silent_rows[:dead] = 1 << 40
        trainee.step(data[number % len(data)], number)

    return fastest(step, case["steps"])


def product_ms(d_in: int, d_sae: int, batch: int) -> float:
    """Return the time of the bare fp32 encoder product."""
    x, weight, bias = torch.randn(batch, d_in), torch.randn(d_in, d_sae), torch.zeros(d_sae)
    return fastest(lambda _: torch.addmm(bias, x, weight), 6)


@contextmanager
def peers(python: str | None) -> Iterator[Callable[[dict[str, Any]], dict[str, float]]]:
    """Give a function that asks the peers' process; one without an answer where there is none."""
    if python is None:
        yield lambda case: {}
        return
    script = Path(__file__).with_name("peers.py")
    command = [python, str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, answers = process.stdin, process.stdout

        def ask(case: dict[str, Any]) -> dict[str, float]:
            lines.write(json.dumps(case) + "\n")
            lines.flush()
            found: dict[str, float] = json.loads(answers.readline() or "{}")
            return found

        yield ask
        lines.close()


def cases(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what is measured; the last ones with as many dead latents as inputs."""
    for d_in, d_sae, batch, k, steps in SHAPES[: 1 if quick else None]:
        sizes = {"d_in": d_in, "d_sae": d_sae, "batch": batch, "k": k, "steps": steps}
        for name in ARCHITECTURES:
            yield {"architecture": name, **sizes, "dead": 0}
        for name in ("topk", "batch_topk"):
            yield {"architecture": name, **sizes, "dead": d_in}


def main() -> None:
    """Measure, print a table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with sae-lens and dictionary-learning")
    parser.add_argument("--out", type=Path, default=Path(".saebench/bench.json"), help="where the rows are written")
    parser.add_argument("--quick", action="store_true", help="the smaller shape only")
    options = parser.parse_args()
    rows = []
    with peers(options.peers) as ask:
        for case in cases(options.quick):
            theirs = ask(case)
            row = {key: case[key] for key in ("architecture", "d_in", "d_sae", "batch", "k", "dead")}
            row |= {"ours_ms": round(ours_ms(case), 2), "saelens_ms": None, "dictionary_learning_ms": None} | theirs
            row["encoder_product_ms"] = round(product_ms(case["d_in"], case["d_sae"], case["batch"]), 2)
            rows.append(row)
            known = [value for name in ("saelens_ms", "dictionary_learning_ms") if (value := row[name]) is not None]
            gain = f"{min(known) / row['ours_ms']:.1f} times as fast as the faster peer" if known else ""
            print(json.dumps(row), f"| {row['ours_ms'] / row['encoder_product_ms']:.2f} products | {gain}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out} written", file=sys.stderr)


if __name__ == "__main__":
    main()
