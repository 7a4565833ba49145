"""Loss terms: what a training step adds up, and how each term's weight moves.

All losses are sums over ``d_in`` and means over rows, on inputs scaled to unit mean-square norm; coefficients
of libraries that average over ``d_in`` do not transfer.
"""

from saebench_core.objectives.base import Objective, Step, Term, WeightedTerm
from saebench_core.objectives.orthogonality import Orthogonality
from saebench_core.objectives.reconstruction import AuxK, GateReconstruction, PrefixReconstruction, Reconstruction
from saebench_core.objectives.sparsity import L1, PowerPenalty, PreActivationLoss, StepL0, TanhPenalty, TargetL0

__all__ = [
    "L1",
    "AuxK",
    "GateReconstruction",
    "Objective",
    "Orthogonality",
    "PowerPenalty",
    "PreActivationLoss",
    "PrefixReconstruction",
    "Reconstruction",
    "Step",
    "StepL0",
    "TanhPenalty",
    "TargetL0",
    "Term",
    "WeightedTerm",
]
