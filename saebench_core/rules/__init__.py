"""Selection rules: how pre-activations become sparse codes, in training and in inference."""

from saebench_core.rules.base import CalibratedThreshold, Export, Role, Rule, TensorInfo
from saebench_core.rules.gated import Gated
from saebench_core.rules.jumprelu import JumpReLU
from saebench_core.rules.relu import ReLU
from saebench_core.rules.topk import BatchTopK, TopK

__all__ = [
    "BatchTopK",
    "CalibratedThreshold",
    "Export",
    "Gated",
    "JumpReLU",
    "ReLU",
    "Role",
    "Rule",
    "TensorInfo",
    "TopK",
]
