"""The train task: a group of cells on one stream, each published as an SAE with certificate and curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from saebench_core.activations import LiveReader, ShuffledRows, StoredReader, measure, statistics_rows
from saebench_core.activations.readers import WINDOW_ROWS
from saebench_core.errors import InputError, SaebenchError
from saebench_core.interfaces.architecture import Architecture
from saebench_core.interfaces.backbone import GroundTruth
from saebench_core.interfaces.constraint import BaseDraw, Constraint, Start, Statistics, Truth
from saebench_core.plan import Product, Task, core_digest
from saebench_core.randomness import named_generator
from saebench_core.registry import Cell
from saebench_core.store import content_key
from saebench_core.tasks.finish import Finished, GroupInputs, Made
from saebench_core.tasks.references import shape_of
from saebench_core.tasks.workbench import Workbench
from saebench_core.training.certificate import Origin
from saebench_core.training.fitting import available_bytes, kept_bytes, parts_that_fit, passing_bytes
from saebench_core.training.loop import train_group
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee

__all__ = ["GroupError", "base_draw", "load_statistics", "start_of", "train"]

_HELDOUT_ROWS = 4096


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
    truth = _truth(bench, cell)
    return Statistics(facts["rows"], tensors["mean"], facts["mean_square_norm"], tensors["covariance"], truth)


def _truth(bench: Workbench, cell: Cell) -> Truth | None:
    """Return the backbone's features where it knows them; only then it is loaded for this."""
    if not isinstance(cell.backbone.instance, GroundTruth):
        return None
    backbone = cast(GroundTruth, bench.backbone(cell.backbone))
    return Truth(backbone.features().cpu(), backbone.probabilities().cpu())


def _train_rows(bench: Workbench, cell: Cell, identity: Mapping[str, Any]) -> LiveReader | StoredReader:
    """Return the rows that a cell is trained on; those that are streamed are never stored."""
    read = bench.live if cell.training.activations == "streamed" else bench.reader
    return read(cell.backbone, identity, cell.site, "train", cell.training.total_rows)


def _stream(bench: Workbench, cell: Cell, identity: Mapping[str, Any]) -> ShuffledRows:
    """Return the batches that all cells of a group see."""
    reader, settings = _train_rows(bench, cell, identity), cell.training
    source = content_key({"backbone": identity, "site": cell.site})
    counted = bench.counted_windows(f"{source}/{reader.rows}/{settings.buffer_rows}")
    return ShuffledRows(
        reader,
        reader.rows,
        settings.total_rows,
        settings.batch_size,
        cell.seed,
        source,
        settings.buffer_rows if settings.activations == "streamed" else None,
        reader.exact,
        counted,
    )


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
    inputs = GroupInputs(
        bench,
        statistics := load_statistics(bench, first, identity),
        _scale(settings, statistics),
        bench.reader(first.backbone, identity, first.site, "calibration", settings.calibration_rows),
        bench.reader(first.backbone, identity, first.site, "evaluation", settings.evaluation_rows),
    )
    failures: dict[str, str] = {}
    for part in _fitting(missing, bench):
        failures |= _train_part(part, inputs, _stream(bench, first, identity), task.label, twins)
    if failures:
        raise GroupError(failures)


def _scale(settings: TrainingSettings, statistics: Statistics) -> float:
    """Return what activations are divided by before training.

    Raises:
        InputError: if every row is zero, so that there is nothing to train on.
    """
    if not statistics.mean_square_norm > 0:
        raise InputError("all activations are zero; there is nothing to train on")
    return statistics.mean_square_norm**0.5 if settings.normalise == "mean_square" else 1.0


_Missing = tuple[Cell, Product]


def _fitting(missing: Sequence[_Missing], bench: Workbench) -> list[Sequence[_Missing]]:
    """Cut a group into parts that fit the memory which is free now; each SAE ends the same in any part."""
    cells = [cell for cell, _ in missing]
    training, d_in = cells[0].training, cells[0].d_in
    each = max(kept_bytes(d_in, cell.d_sae, cast(Constraint, cell.constraint.instance).trains) for cell in cells)
    rows = training.buffer_rows if training.activations == "streamed" else 3 * WINDOW_ROWS
    shared = 4 * d_in * (4 * training.batch_size + rows) + max(passing_bytes(d_in, cell.d_sae) for cell in cells)
    return parts_that_fit(missing, each, shared, available_bytes(bench.device))


def _train_part(
    missing: Sequence[_Missing],
    inputs: GroupInputs,
    stream: ShuffledRows,
    label: str,
    twins: Mapping[str, Path],
) -> dict[str, str]:
    """Train some cells of a group and publish those that end well; return the errors of the others."""
    bench, failures = inputs.bench, dict[str, str]()
    trainees = _trainees([cell for cell, _ in missing], inputs, failures)
    keeper = bench.checkpoints({cell.cell_id: product.key for cell, product in missing})
    heldout = next(iter(inputs.calibration.batches(_HELDOUT_ROWS)))
    members = {name: trainee for name, (trainee, _) in trainees.items()}
    outcome = train_group(members, stream, inputs.scale, heldout, bench.progress, label, keeper)
    for trainee in members.values():
        trainee.release()
    failures |= {name: _one_line(error) for name, error in outcome.failures.items()}
    for cell, product in missing:
        if cell.cell_id in failures:
            continue
        try:
            finished = Finished(cell, *trainees[cell.cell_id], outcome.curves[cell.cell_id], inputs, stream.repeated)
            sae, facts = finished.close(outcome.batch_order_sha256, twins.get(cell.cell_id))
            bench.make(product, lambda path, s=sae, f=facts, c=finished: c.write(path, s, f))  # type: ignore[misc]
            keeper.discard(cell.cell_id)
        except Exception as error:  # a plugin's finish or certify may raise anything
            failures[cell.cell_id] = _one_line(error)
    return failures


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0] if isinstance(error, SaebenchError) and text else f"{type(error).__name__}: {text[0] if text else ''}"
    )


def _trainees(cells: list[Cell], group: GroupInputs, failures: dict[str, str]) -> dict[str, Made]:
    made: dict[str, Made] = {}
    for cell in cells:
        try:
            made[cell.cell_id] = _trainee(cell, group)
        except Exception as error:  # a plugin's initialise or adapt may raise anything
            failures[cell.cell_id] = _one_line(error)
    return made


def _trainee(cell: Cell, group: GroupInputs) -> Made:
    shape = shape_of(cell)
    constraint = cast(Constraint, cell.constraint.instance)
    architecture = cast(Architecture, cell.recipe.instance)
    recipe = constraint.adapt(architecture.recipe(shape), shape)
    device = group.bench.device
    draw = base_draw(cell)
    drawn = constraint.initialise(draw, cell.constraint.config.init, group.statistics)
    tied = torch.equal(drawn.w_enc, drawn.w_dec.T)  # then one matrix in memory serves both
    w_dec = drawn.w_dec.to(device)
    start = Start(w_dec.T if tied else drawn.w_enc.to(device), w_dec)
    mean = (group.statistics.mean / group.scale).to(device, torch.float32)
    b_dec = mean if cell.training.b_dec_init == "mean" else torch.zeros_like(mean)
    trainee = Trainee(recipe, constraint, start, b_dec, cell.training, shape)
    return Made(trainee, Origin.of(draw, start, trainee.sae, trainee.frozen))
