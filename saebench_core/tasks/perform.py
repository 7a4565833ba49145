"""Does one task, whatever its kind, and keeps the record of failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from saebench_core.errors import SaebenchError
from saebench_core.plan import Plan, Task
from saebench_core.store import write_atomically
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
        failures.keep(task, str(error), error.failures)
        return str(error)
    except Exception as error:
        text = str(error).strip().splitlines()
        message = text[0] if isinstance(error, SaebenchError) and text else f"{type(error).__name__}: {' '.join(text)}"
        failures.keep(task, message, {cell.cell_id: message for cell in task.cells})
        return message
    failures.clear(task)
    return None


def _perform(task: Task, plan: Plan, bench: Workbench) -> None:
    if task.done(bench.store):
        return
    identity = plan.identities[task.backbone.name]
    if task.kind == "activations" and task.split is not None:
        bench.reader(task.backbone, identity, task.site, task.split, task.rows)
    elif task.kind == "metric":
        prepare_metric(task, bench, identity)
    elif task.kind == "train":
        train(task, bench, identity, _twin_folders(task, plan, bench))
    else:
        trained, prepared = task.needs
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
    """Errors of tasks, kept on disk until the task succeeds."""

    def __init__(self, workdir: Path) -> None:
        self.root = workdir / "failures"

    def _path(self, task: Task) -> Path:
        return self.root / f"{task.failure_key}.json"

    def keep(self, task: Task, message: str, by_cell: Mapping[str, str]) -> None:
        """Keep the error of a task, and of the cells it concerns alone."""
        content = {"task": task.label, "error": message, "cells": dict(by_cell)}
        write_atomically(self._path(task), json.dumps(content, indent=1, sort_keys=True))

    def clear(self, task: Task) -> None:
        """Forget a task's error."""
        self._path(task).unlink(missing_ok=True)

    def of(self, task: Task) -> dict[str, Any] | None:
        """Return the kept error of a task: ``{"error", "cells"}``, or None."""
        try:
            return dict(json.loads(self._path(task).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
