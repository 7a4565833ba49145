"""Where a training step goes: each part alone, the fastest of some calls.

Usage: python benchmarks/parts.py [--architecture topk] [--d-in 640] [--d-sae 20480] [--batch 2048] [--k 64]
"""

from __future__ import annotations

import argparse
from collections import deque

import torch
from steps import batches, bring_to_target, fastest, make_trainee, product_ms

from saebench_core.kernels import PreActivations, candidates
from saebench_core.kernels.largest import largest_of_rows
from saebench_core.training.trainee import Trainee


@torch.no_grad()
def selection_parts(trainee: Trainee, x: torch.Tensor, k: int) -> dict[str, float]:
    """Return milliseconds of what selects the k largest of every row."""
    sae, screen = trainee.sae, trainee.screen
    centred, weight, bias = x - sae.centre(), sae.w_enc.detach(), sae.encoder_bias.detach()
    whole = PreActivations(centred, weight, bias, screen)
    screened = candidates.Screened.of(centred, weight, bias, screen)
    parts = [part._replace(values=part.values.clone()) for part in screened.parts()]  # they share their memory
    reached = [screened.reached(part, k) for part in parts]
    found = [screened.candidates(part, *limits) for part, limits in zip(parts, reached, strict=True)]
    values = whole._recomputed(found)
    return {
        "rounding of the factors, and its bounds": fastest(
            lambda _: candidates.Screened.of(centred, weight, bias, screen), 20
        ),
        f"product that screens ({screen})": fastest(lambda _: deque(screened.parts(), maxlen=0), 20),
        "maxima of groups, thresholds of rows": fastest(lambda _: [screened.reached(part, k) for part in parts], 20),
        "candidates": fastest(
            lambda _: [screened.candidates(part, *limits) for part, limits in zip(parts, reached, strict=True)], 20
        ),
        "their values in fp32": fastest(lambda _: whole._recomputed(found), 20),
        "the k largest of them": fastest(lambda _: largest_of_rows(values, k), 20),
    }


def step_parts(trainee: Trainee, x: torch.Tensor) -> dict[str, float]:
    """Return milliseconds of what follows the selection."""
    never = torch.zeros_like(trainee.alive)

    def forward() -> torch.Tensor:
        view = trainee.sae.training_step(x, x, never, trainee.screen, False)
        return trainee.recipe.objective.loss(view)[0]

    def both(_: int) -> None:
        for tensor in trainee._trained.values():
            tensor.grad = None
        forward().backward()  # type: ignore[no-untyped-call]

    ahead, whole = fastest(lambda _: forward(), 20), fastest(both, 20)
    return {
        "forward with selection": ahead,
        "backward": whole - ahead,
        "tangential gradients and clipping": fastest(lambda _: trainee._shape_gradients(), 20),
        "AdamW": fastest(lambda _: _optimiser_step(trainee), 20),
    }


def _optimiser_step(trainee: Trainee) -> None:
    for stepper in trainee._steppers:
        stepper.hand_over()
    assert trainee._optimiser is not None
    trainee._optimiser.step()


def main() -> None:
    """Print the parts, the step and the bare product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="topk")
    for name, default in (("d-in", 640), ("d-sae", 20480), ("batch", 2048), ("k", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    trainee = make_trainee(given.architecture, given.d_in, given.d_sae, given.batch, given.k)
    data = batches(given.d_in, given.batch)
    bring_to_target(trainee, data[0])
    step = fastest(lambda number: trainee.step(data[number % len(data)], number), 20)
    rows = selection_parts(trainee, data[0], given.k) if given.architecture == "topk" else {}
    for name, value in (rows | step_parts(trainee, data[0])).items():
        print(f"{name:<44} {value:8.1f} ms")
    print(f"{'one step':<44} {step:8.1f} ms")
    print(f"{'the bare fp32 encoder product':<44} {product_ms(given.d_in, given.d_sae, given.batch):8.1f} ms")


if __name__ == "__main__":
    main()
