"""Runs tasks one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable

from saebench_core.plan import Plan, Task
from saebench_core.tasks.perform import Failures, perform
from saebench_core.tasks.workbench import Workbench

__all__ = ["run_inline"]


def run_inline(
    plan: Plan,
    bench: Workbench,
    failures: Failures,
    on_start: Callable[[Task, int], None],
    on_done: Callable[[Task, str | None], None],
) -> int:
    """Do all tasks of a plan in order; one that fails takes along only what needs it.

    Args:
        plan: the graph.
        bench: tools.
        failures: where errors are kept.
        on_start: called before a task that has work to do, with how many products it is to make.
        on_done: called after it, with the error or None.

    Returns:
        How many tasks had work to do.
    """
    worked = 0
    for task in _ordered(plan):
        if task.done(bench.store):
            for product in task.products:
                failures.clear(product)
            continue
        if not _ready(task, bench):
            continue
        worked += 1
        on_start(task, task.left(bench.store))
        on_done(task, perform(task, plan, bench, failures))
    return worked


def _ordered(plan: Plan) -> list[Task]:
    """Return the tasks so that one backbone is finished before the next is loaded, needs first."""
    order = {name: index for index, name in enumerate(dict.fromkeys(task.backbone.name for task in plan.tasks))}
    return sorted(plan.tasks, key=lambda task: order[task.backbone.name])


def _ready(task: Task, bench: Workbench) -> bool:
    """Say whether what a task reads is there; a score needs its own cell's SAE, and those it is compared with."""
    mine = {cell.cell_id for cell in (*task.cells, *(other for other, _ in task.beside))}
    for needed in task.needs:
        if needed.kind == "train" and task.kind == "score":
            products = [
                product for cell, product in zip(needed.cells, needed.products, strict=True) if cell.cell_id in mine
            ]
            if not all(bench.store.has(product.kind, product.key) for product in products):
                return False
        elif not needed.done(bench.store):
            return False
    return True
