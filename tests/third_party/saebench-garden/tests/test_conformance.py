"""What saebench_core asks of every plugin."""

from typing import ClassVar

from saebench_core.conformance import (
    ArchitectureConformance,
    BackboneConformance,
    ConstraintConformance,
    MetricConformance,
)


class TestToyModel(BackboneConformance):
    plugin = "toy_model"
    config: ClassVar = {"n_features": 12, "d_hidden": 5, "steps": 200}


class TestLearnedK(ArchitectureConformance):
    plugin = "learned_k"
    config: ClassVar = {"expansion": 2}


class TestShuffledDecoder(ConstraintConformance):
    plugin = "shuffled_decoder"


class TestCoherence(MetricConformance):
    plugin = "coherence"
