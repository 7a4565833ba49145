"""The end of a training: what is certified, what is published of it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from saebench_core.errors import PluginError
from saebench_core.interfaces.context import ActivationReader
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.calibration import quantile_threshold
from saebench_core.training.trainee import Trainee

__all__ = ["check_folding", "check_frozen", "ended", "published"]


_ROWS: Final = 256
_TOLERANCE: Final = 0.01


def check_folding(trainee: Trainee, scale: float, reader: ActivationReader) -> None:
    """Refuse an SAE that computes something else once the scale of activations is folded into it.

    Args:
        trainee: after its last step.
        scale: what activations were divided by.
        reader: held-out rows in raw space.

    Raises:
        PluginError: if it does, with what its rule may have wrong.
    """
    x = next(iter(reader.batches(_ROWS)))
    bias = trainee.sae.tensors["b_dec"].detach()
    wanted = (trainee.sae.reconstruct(x / scale) - bias) * scale
    found = trainee.sae.folded(scale).reconstruct(x) - bias * scale
    error, size = float((found - wanted).norm()), float(wanted.norm())
    if error > _TOLERANCE * size:
        raise PluginError(
            f"{type(trainee.sae.rule).__name__} on raw rows differs from what was trained on scaled ones by "
            f"{error / max(size, 1e-30):.0%}: values must grow in proportion to pre-activations (relu(2 * pre) does, "
            "relu(pre) ** 2 does not), and tensors that live on their scale must say so (`scales` of TensorInfo)"
        )


def check_frozen(certificate: Mapping[str, Any]) -> None:
    """Refuse a certificate whose frozen tensors are not what they were.

    Raises:
        PluginError: with their names.
    """
    moved = [name for name, pair in certificate["frozen"].items() if pair["before"] != pair["after"]]
    if moved:
        raise PluginError(
            f"frozen tensors have moved: {', '.join(moved)}; `project`, `finish` and `calibrate` of the constraint "
            "must leave them as they are, or `frozen` must not name them"
        )


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
