"""How long SAELens takes for rows of a world of the same law; runs in an environment of its own.

``python worlds_peer.py CONFIG ROWS`` prints seconds. CONFIG is the synthetic backbone's, as JSON. Log-uniform
probabilities, which SAELens does not have, are all their mean: as many features fire.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings

import torch

warnings.filterwarnings("ignore")
BATCH = 1024


def probability(given):
    from sae_lens.synthetic.firing_probabilities import ConstantFiringProbabilityConfig, ZipfianFiringProbabilityConfig

    if given["type"] == "constant":
        return ConstantFiringProbabilityConfig(given["p"])
    if given["type"] == "zipf":
        return ZipfianFiringProbabilityConfig(given["exponent"], given["high"], given["low"])
    if given["type"] != "log_uniform":
        raise SystemExit(f"no probabilities of type {given['type']} here")
    return ConstantFiringProbabilityConfig((given["high"] - given["low"]) / math.log(given["high"] / given["low"]))


def main(config, rows):
    from sae_lens.synthetic.hierarchy.config import HierarchyConfig
    from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig, SyntheticModel, SyntheticModelConfig

    trees, shared = config["hierarchy"], config["correlation"]
    if shared and shared["type"] != "low_rank":
        raise SystemExit(f"no correlations of type {shared['type']} here")
    hierarchy = trees and HierarchyConfig(
        total_root_nodes=trees["roots"],
        branching_factor=trees["branching"],
        max_depth=trees["depth"],
        mutually_exclusive_portion=trees["exclusive"],
        compensate_probabilities=trees["compensate"],
        scale_children_by_parent=trees["scale_by_parent"],
    )
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=config["n_features"],
            hidden_dim=config["d_in"],
            firing_probability=probability(config["probability"]),
            hierarchy=hierarchy,
            correlation=shared and LowRankCorrelationConfig(shared["rank"], shared["scale"], 0),
            std_firing_magnitudes=0.25,
            bias=False,
            seed=0,
        )
    )
    with torch.no_grad():
        model.sample(BATCH)
        start = time.perf_counter()
        for _ in range(-(-rows // BATCH)):
            model.sample(BATCH)
        return time.perf_counter() - start


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1]), int(sys.argv[2])))
