"""Does one task, whatever its kind, and keeps the record of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

from saebench_core.errors import SaebenchError, is_interruption
from saebench_core.plan import Plan, Product, Task
from saebench_core.store import write_atomically
from saebench_core.tasks.load import load
from saebench_core.tasks.references import with_measured_l0
from saebench_core.tasks.score import prepare_metric, score
from saebench_core.tasks.train import GroupError, train
from saebench_core.tasks.workbench import Workbench

__all__ = ["Failures", "perform"]


def perform(task: Task, plan: Plan, bench: Workbench, failures: Failures) -> str | None:
    """Do a task; return None, or the error in one line, which is kept.

    A task whose products are there does nothing. Whatever a plugin raises is a failure of this task alone;
    interruption by the user goes through.
    """
    try:
        _perform(task, plan, bench)
    except GroupError as error:
        for cell, product in zip(task.cells, task.products, strict=True):
            if cell.cell_id in error.failures:
                failures.keep(product, task.label, error.failures[cell.cell_id])
            else:
                failures.clear(product)
        return str(error)
    except (Exception, SystemExit) as error:  # a plugin may try to end the process; the other tasks go on
        if is_interruption(error):
            raise KeyboardInterrupt from error
        text = str(error).strip().splitlines()
        message = text[0] if isinstance(error, SaebenchError) and text else f"{type(error).__name__}: {' '.join(text)}"
        for product in task.products:
            if not bench.store.has(product.kind, product.key):
                failures.keep(product, task.label, message)
        return message
    for product in task.products:
        failures.clear(product)
    return None


def _perform(task: Task, plan: Plan, bench: Workbench) -> None:
    if task.done(bench.store):
        return
    identity = plan.identities[task.backbone.name]
    if task.kind == "activations" and task.split is not None:
        bench.reader(task.backbone, identity, task.site, task.split, task.rows)
    elif task.kind == "metric":
        prepare_metric(task, bench, identity)
    elif task.kind == "load":
        load(task, bench, identity)
    elif task.kind == "train":
        ready = with_measured_l0(task, plan.measured, bench.store)
        train(ready, bench, identity, _twin_folders(task, plan, bench))
    else:
        trained, prepared = task.needs[:2]
        sae = dict(zip((cell.cell_id for cell in trained.cells), trained.products, strict=True))[task.cells[0].cell_id]
        score(task, bench, identity, sae, prepared.products[0])


def _twin_folders(task: Task, plan: Plan, bench: Workbench) -> dict[str, Path]:
    return {
        cell_id: bench.store.path(product.kind, product.key) / "sae"
        for cell_id, product in plan.twins.items()
        if cell_id in {cell.cell_id for cell in task.cells}
    }


@final
class Failures:
    """Why products could not be made, kept on disk until they are."""

    def __init__(self, workdir: Path) -> None:
        self.root = workdir / "failures"

    def _path(self, product: Product) -> Path:
        return self.root / f"{product.key}.json"

    def keep(self, product: Product, label: str, message: str) -> None:
        """Keep the error of a product, with the label of the task that was to make it."""
        write_atomically(self._path(product), json.dumps({"task": label, "error": message}, indent=1, sort_keys=True))

    def clear(self, product: Product) -> None:
        """Forget a product's error."""
        self._path(product).unlink(missing_ok=True)

    def of(self, product: Product) -> str | None:
        """Return the kept error of a product, or None."""
        try:
            return str(json.loads(self._path(product).read_text(encoding="utf-8"))["error"])
        except FileNotFoundError:
            return None
