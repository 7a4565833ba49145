"""The end of a training: fold, finish, calibrate, certify, and write what is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from saebench_core.activations import LiveReader, StoredReader
from saebench_core.interfaces.constraint import Statistics
from saebench_core.registry import Cell
from saebench_core.sae import SparseAutoencoder
from saebench_core.tasks.references import shape_of
from saebench_core.tasks.workbench import Workbench
from saebench_core.training.certificate import Origin, certify, realised, tensor_hashes
from saebench_core.training.ending import check_folding, check_frozen, ended, published
from saebench_core.training.loop import Curve
from saebench_core.training.trainee import Trainee

__all__ = ["Finished", "GroupInputs", "Made"]

_L0_TOLERANCE: Final = 0.02
_RISE: Final = 0.01
_COLLAPSED_L0: Final = 0.01


@final
@dataclass(frozen=True)
class GroupInputs:
    """Inputs that all SAEs of a group share."""

    bench: Workbench
    statistics: Statistics
    scale: float
    calibration: LiveReader | StoredReader
    evaluation: LiveReader | StoredReader


@final
class Made(NamedTuple):
    """A trainee, and the hashes from before its first step."""

    trainee: Trainee
    origin: Origin


@final
@dataclass(frozen=True)
class Finished:
    """One SAE after the loop."""

    cell: Cell
    trainee: Trainee
    origin: Origin
    curve: Curve
    group: GroupInputs
    repeated: bool

    def close(self, batch_order_sha256: str, twin: Path | None) -> tuple[SparseAutoencoder, dict[str, Any]]:
        """Fold, finish, calibrate and certify; return the SAE in raw space and its facts.

        Raises:
            PluginError: if folding changes the SAE, or a frozen tensor has moved.
        """
        trainee, group = self.trainee, self.group
        if trainee.constraint.trains:
            check_folding(trainee, group.scale, group.calibration)
        loaded = group.bench.load_sae(twin) if twin else None
        sae, threshold = ended(trainee, group.scale, loaded, group.calibration)
        certificate = certify(self.origin, trainee.start, trainee.sae, sae, trainee.constraint, batch_order_sha256)
        check_frozen(certificate)
        sae = published(trainee, sae)
        found = realised(sae, group.evaluation)
        certificate |= found | {"dropped_terms": dict(trainee.recipe.objective.dropped)}
        certificate |= {"twin": tensor_hashes(loaded)} if loaded else {}
        facts = {
            "certificate": certificate,
            "flags": self._flags(found),
            "thresholds": self._thresholds(threshold),
            "scale": group.scale,
            "screen": trainee.screen,
            "heldout_explained_variance": [[step, value] for step, value in sorted(self.curve.heldout.items())],
        }
        return sae, facts

    def _thresholds(self, threshold: float | None) -> dict[str, float | None]:
        if threshold is None:
            return {}
        average = self.trainee.threshold_average
        return {"calibrated": threshold, "average": None if average is None else average * self.group.scale}

    def _flags(self, found: Mapping[str, float]) -> list[str]:
        """Name what a reader must know before believing the cell."""
        flags = ["repeated_rows"] if self.repeated else []
        target = self.cell.l0
        if abs(found["realised_l0"] - target) > _L0_TOLERANCE * target:
            flags.append("missed_l0")
        variances = [value for _, value in sorted(self.curve.heldout.items())]
        late = variances[-1] - variances[int(len(variances) * 0.8) - 1] if len(variances) >= 5 else 0.0
        if (
            found["realised_l0"] < _COLLAPSED_L0 * target
            or found["alive_share"] == 0
            or (variances and variances[-1] <= 0)
        ):
            flags.append("collapsed")
        if late > _RISE:
            flags.append("not_converged")
        return flags

    def write(self, folder: Path, sae: SparseAutoencoder, facts: Mapping[str, Any]) -> None:
        """Write the SAE as SAELens reads it, the certificate, the facts and the curve."""
        cell = self.cell
        metadata = {
            "model_name": cell.backbone.name,
            "hook_name": cell.site,
            "architecture": cell.recipe.identity,
            "constraint": cell.constraint.identity,
            "l0": shape_of(cell).l0,
            "saebench": {
                "cell_id": cell.cell_id,
                "cell": cell.identity,
                "scale": facts["scale"],
                "thresholds": facts["thresholds"],
                "target_l0": cell.l0,
                "realised_l0": facts["certificate"]["realised_l0"],
            },
        }
        sae.save(folder / "sae", metadata)
        for name in ("certificate", "facts"):
            content = facts["certificate"] if name == "certificate" else facts
            text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        self.curve.write(folder / "curves.jsonl")
        (folder / "drift.json").write_text(json.dumps(self.curve.drift, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "seconds.json").write_text(json.dumps({"train": round(self.curve.seconds, 3)}), encoding="utf-8")
