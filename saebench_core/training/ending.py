"""The end of a training: what is certified, and what is published of it."""

from __future__ import annotations

from saebench_core.interfaces.context import ActivationReader
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.calibration import quantile_threshold
from saebench_core.training.trainee import Trainee

__all__ = ["ended", "published"]


def ended(
    trainee: Trainee, scale: float, twin: SparseAutoencoder | None, reader: ActivationReader
) -> tuple[SparseAutoencoder, float | None]:
    """Fold, finish and calibrate; return what is certified, in raw space, and the calibrated threshold if there is one.

    Args:
        trainee: after its last step.
        scale: what activations were divided by.
        twin: the finished SAE that the constraint needs, if it needs one.
        reader: held-out rows in raw space.
    """
    sae = trainee.constraint.finish(trainee.sae.folded(scale), twin)
    sae = trainee.constraint.calibrate(sae, twin, reader)
    calibrated = sae.rule.calibrated()
    if calibrated is None:
        return sae, None
    threshold = quantile_threshold(sae, reader, calibrated.l0)
    sae.tensors[calibrated.tensor].fill_(threshold)
    return sae, threshold


def published(trainee: Trainee, certified: SparseAutoencoder) -> SparseAutoencoder:
    """Return what is saved: free decoder norms have gone into the codes."""
    return certified.unit_decoder() if trainee.folds_norms else certified
