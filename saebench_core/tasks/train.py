"""The train task: a group of cells on one stream, each published as an SAE with certificate and curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch
from safetensors.torch import load_file, save_file

from saebench_core.activations import LiveReader, ShuffledRows, StoredReader, measure, statistics_rows
from saebench_core.errors import SaebenchError
from saebench_core.interfaces.architecture import Architecture
from saebench_core.interfaces.constraint import BaseDraw, Constraint, Start, Statistics
from saebench_core.interfaces.context import ActivationReader
from saebench_core.plan import Product, Task, core_digest
from saebench_core.randomness import named_generator
from saebench_core.registry import Cell
from saebench_core.sae import SparseAutoencoder
from saebench_core.store import content_key
from saebench_core.tasks.references import shape_of
from saebench_core.tasks.workbench import Workbench
from saebench_core.training.calibration import quantile_threshold
from saebench_core.training.certificate import Origin, certify, realised
from saebench_core.training.loop import Curve, train_group
from saebench_core.training.trainee import Trainee

__all__ = ["GroupError", "base_draw", "load_statistics", "start_of", "train"]

_HELDOUT_ROWS = 4096
_L0_TOLERANCE = 0.02
_RISE = 0.01
_COLLAPSED_L0 = 0.01


class GroupError(SaebenchError):
    """Some SAEs of a group failed; the others are published.

    Attributes:
        failures: error text by cell id.
    """

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__("; ".join(dict.fromkeys(failures.values())))
        self.failures = dict(failures)


def base_draw(cell: Cell) -> BaseDraw:
    """Return the random numbers that all twins of a cell share; they depend on seed and sizes only."""
    return BaseDraw.from_generator(named_generator(cell.seed, "weights"), cell.d_sae, cell.d_in)


def start_of(cell: Cell, statistics: Statistics) -> Start:
    """Return a cell's weights as they are drawn."""
    constraint = cast(Constraint, cell.constraint.instance)
    return constraint.initialise(base_draw(cell), cell.constraint.config.init, statistics)


def load_statistics(bench: Workbench, cell: Cell, identity: Mapping[str, Any]) -> Statistics:
    """Return statistics of the training activations, computed once a backbone and site."""
    rows = min(cell.training.total_rows, statistics_rows(cell.d_in))
    identity_of_product = {"backbone": identity, "site": cell.site, "rows": rows, "core": core_digest("activations")}
    product = Product.of("statistics", identity_of_product)

    def build(folder: Path) -> None:
        found = measure(_train_rows(bench, cell, identity), rows)
        save_file({"mean": found.mean, "covariance": found.covariance}, folder / "statistics.safetensors")
        facts = {"rows": found.rows, "mean_square_norm": found.mean_square_norm}
        (folder / "statistics.json").write_text(json.dumps(facts), encoding="utf-8")

    folder = bench.make(product, build)
    tensors = load_file(folder / "statistics.safetensors")
    facts = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    return Statistics(facts["rows"], tensors["mean"], facts["mean_square_norm"], tensors["covariance"])


def _train_rows(bench: Workbench, cell: Cell, identity: Mapping[str, Any]) -> LiveReader | StoredReader:
    """Return the rows that a cell is trained on; those that are streamed are never stored."""
    read = bench.live if cell.training.activations == "streamed" else bench.reader
    return read(cell.backbone, identity, cell.site, "train", cell.training.total_rows)


def _stream(reader: LiveReader | StoredReader, cell: Cell, source: str) -> ShuffledRows:
    """Return the batches that all cells of a group see."""
    settings = cell.training
    return ShuffledRows(
        reader,
        reader.rows,
        settings.total_rows,
        settings.batch_size,
        cell.seed,
        source,
        settings.buffer_rows if settings.activations == "streamed" else None,
        reader.exact,
    )


@final
@dataclass(frozen=True)
class _Group:
    """Inputs that all SAEs of a group share."""

    bench: Workbench
    statistics: Statistics
    scale: float
    calibration: LiveReader | StoredReader
    evaluation: LiveReader | StoredReader


def train(task: Task, bench: Workbench, identity: Mapping[str, Any], twins: Mapping[str, Path]) -> None:
    """Train the cells of a task that have no product yet, and publish each.

    Args:
        task: a train task.
        bench: tools.
        identity: the backbone's part of product keys.
        twins: folder of the twin that a cell's constraint starts from, by cell id.

    Raises:
        GroupError: if some cells failed; the others are published first.
    """
    missing = [
        (cell, product)
        for cell, product in zip(task.cells, task.products, strict=True)
        if not bench.store.has(product.kind, product.key)
    ]
    if not missing:  # another process has published them since this task was looked at
        return
    first = missing[0][0]
    settings = first.training
    reader = _train_rows(bench, first, identity)
    group = _Group(
        bench,
        statistics := load_statistics(bench, first, identity),
        statistics.mean_square_norm**0.5 if settings.normalise == "mean_square" else 1.0,
        bench.reader(first.backbone, identity, first.site, "calibration", settings.calibration_rows),
        bench.reader(first.backbone, identity, first.site, "evaluation", settings.evaluation_rows),
    )
    failures: dict[str, str] = {}
    trainees = _trainees([cell for cell, _ in missing], group, failures)
    source = content_key({"backbone": identity, "site": first.site})
    stream = _stream(reader, first, source)
    heldout = next(iter(group.calibration.batches(_HELDOUT_ROWS)))
    outcome = train_group(
        {name: trainee for name, (trainee, _) in trainees.items()},
        stream,
        group.scale,
        heldout,
        bench.progress,
        task.label,
    )
    failures |= {name: _one_line(error) for name, error in outcome.failures.items()}
    for cell, product in missing:
        if cell.cell_id in failures:
            continue
        try:
            finished = _Finished(cell, *trainees[cell.cell_id], outcome.curves[cell.cell_id], group, stream.repeated)
            folder = twins.get(cell.cell_id)
            sae, facts = finished.close(outcome.batch_order_sha256, folder)
            bench.make(product, lambda path, s=sae, f=facts, c=finished: c.write(path, s, f))  # type: ignore[misc]
        except Exception as error:  # a plugin's finish or certify may raise anything
            failures[cell.cell_id] = _one_line(error)
    if failures:
        raise GroupError(failures)


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0] if isinstance(error, SaebenchError) and text else f"{type(error).__name__}: {text[0] if text else ''}"
    )


@final
class _Made(NamedTuple):
    """A trainee, and the hashes from before its first step."""

    trainee: Trainee
    origin: Origin


def _trainees(cells: list[Cell], group: _Group, failures: dict[str, str]) -> dict[str, _Made]:
    made: dict[str, _Made] = {}
    for cell in cells:
        try:
            made[cell.cell_id] = _trainee(cell, group)
        except Exception as error:  # a plugin's initialise or adapt may raise anything
            failures[cell.cell_id] = _one_line(error)
    return made


def _trainee(cell: Cell, group: _Group) -> _Made:
    shape = shape_of(cell)
    constraint = cast(Constraint, cell.constraint.instance)
    architecture = cast(Architecture, cell.recipe.instance)
    recipe = constraint.adapt(architecture.recipe(shape), shape)
    device = group.bench.device
    draw = base_draw(cell)
    drawn = constraint.initialise(draw, cell.constraint.config.init, group.statistics)
    start = Start(*(tensor.to(device) for tensor in drawn))
    mean = (group.statistics.mean / group.scale).to(device, torch.float32)
    b_dec = mean if cell.training.b_dec_init == "mean" else torch.zeros_like(mean)
    trainee = Trainee(recipe, constraint, start, b_dec, cell.training, shape)
    return _Made(trainee, Origin.of(draw, trainee.sae, trainee.frozen))


@final
@dataclass(frozen=True)
class _Finished:
    """One SAE after the loop."""

    cell: Cell
    trainee: Trainee
    origin: Origin
    curve: Curve
    group: _Group
    repeated: bool

    def close(self, batch_order_sha256: str, twin: Path | None) -> tuple[SparseAutoencoder, dict[str, Any]]:
        """Fold, finish, calibrate and certify; return the SAE in raw space and its facts."""
        trainee, group = self.trainee, self.group
        folded = trainee.sae.folded(group.scale)
        loaded = group.bench.load_sae(twin) if twin else None
        sae = trainee.constraint.finish(folded, loaded)
        thresholds = self._calibrate(sae, group.calibration)
        found = realised(sae, group.evaluation)
        certificate = certify(self.origin, trainee.start, trainee.sae, sae, trainee.constraint, batch_order_sha256)
        certificate |= found
        facts = {
            "certificate": certificate,
            "flags": self._flags(found),
            "thresholds": thresholds,
            "scale": group.scale,
            "heldout_explained_variance": [[step, value] for step, value in sorted(self.curve.heldout.items())],
        }
        return sae, facts

    def _calibrate(self, sae: SparseAutoencoder, reader: ActivationReader) -> dict[str, float | None]:
        calibrated = sae.rule.calibrated()
        if calibrated is None:
            return {}
        threshold = quantile_threshold(sae, reader, calibrated.l0)
        sae.tensors[calibrated.tensor].fill_(threshold)
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
        (folder / "seconds.json").write_text(json.dumps({"train": round(self.curve.seconds, 3)}), encoding="utf-8")
