"""What SAELens says of a saved SAE against known features; runs in an environment of its own.

``python truth_peer.py FOLDER WORLD`` prints one JSON object. FOLDER is an SAE; WORLD a safetensors file with
``features``, ``x`` and ``codes``.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch
from safetensors.torch import load_file

warnings.filterwarnings("ignore")
BATCH = 1024


def main(folder, world):
    from sae_lens import SAE
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic.evals import (
        ClassificationMetricsCalculator,
        ShrinkageCalculator,
        feature_uniqueness,
        mean_correlation_coefficient,
    )

    sae, known = SAE.load_from_disk(folder, device="cpu"), load_file(world)
    firing = ClassificationMetricsCalculator(sae.W_dec, known["features"])
    shrinkage, variance = ShrinkageCalculator(), ExplainedVarianceCalculator()
    with torch.no_grad():
        for x, codes in zip(known["x"].split(BATCH), known["codes"].split(BATCH), strict=True):
            latents = sae.encode(x)
            firing.add_batch(latents, codes)
            shrinkage.add_batch(sae.decode(latents), x)
            variance.add_batch(sae.decode(latents), x)
        found = firing.compute()
        return {
            "mcc": mean_correlation_coefficient(sae.W_dec, known["features"]),
            "uniqueness": feature_uniqueness(sae.W_dec, known["features"]),
            "precision": found.precision,
            "recall": found.recall,
            "f1": found.f1_score,
            "shrinkage": shrinkage.compute(),
            "explained_variance": variance.compute(),
        }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
