"""What commands print for people: the comparison, the plan, the state of cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saebench_core.api import Opened, Rated
from saebench_core.api.progress import duration, size
from saebench_core.report import show
from saebench_core.results import CellRecord

__all__ = ["descriptions", "print_comparison", "print_plan", "print_ratings", "print_status"]


def descriptions(work: Opened) -> dict[str, str]:
    """Return formula and source of every score."""
    return {
        f"{entry.name}/{name}": f"{info.formula} ({info.source})"
        for entry in work.registry.metrics
        for name, info in entry.instance.scores().items()
    }


def print_comparison(
    work: Opened, records: Sequence[CellRecord], every_score: bool = False, changed: bool = False
) -> None:
    """Print the trained SAEs beside their twins, and what failed.

    Args:
        work: an open registry.
        records: its cells.
        every_score: show all, not only the main ones.
        changed: whether values were changed with ``--set``, which may name cells that nobody has computed.
    """
    console = Console()
    if not any(record.result.status in {"done", "failed"} for record in records):
        count = sum(record.result.status == "pending" for record in records)
        command = "`saebench run` with the same --set" if changed else "`saebench run`"
        console.print(f"{work.registry.name}: 0 of {count} cells done; {command} computes them", highlight=False)
        return
    scores = None if every_score else work.registry.headline
    show(console, work.sweep(), records, scores=scores, notice=work.registry.notice)


def print_status(work: Opened, records: Sequence[CellRecord]) -> None:
    """Print one line a state, and every failed cell with its error."""
    console = Console(soft_wrap=True)
    counts = Counter(record.result.status for record in records)
    left = work.plan.total(work.plan.waiting(work.store))
    console.print(
        f"{work.registry.name}: " + ", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False
    )
    if counts["pending"]:
        console.print(f"about {duration(left.seconds)} of work left; `saebench run` goes on", highlight=False)
    elif counts["failed"]:
        console.print("nothing is pending; `saebench run` tries again what failed", highlight=False)
    labels = {cell.cell_id: cell.label for cell in work.registry.cells}
    for record in records:
        if record.result.status == "failed":
            text = f"failed  {record.result.cell_id}  {labels[record.result.cell_id]}: {record.result.error}"
            console.print(text, markup=False, highlight=False)


def _state(task: dict[str, Any], memory: int | None) -> str:
    """Return what the plan's last column says: how much of a task is there, or that it does not fit."""
    if task["done"]:
        return "done"
    if memory is not None and task["memory_bytes"] > memory:
        return "too large"
    return f"{task['left']} to do" if task["kind"] == "train" and task["left"] < task["cells"] else ""


def print_plan(work: Opened, summary: dict[str, Any]) -> None:
    """Print tasks by kind with what they are expected to take."""
    console = Console()
    active, excluded = len(work.plan.cells), len(work.registry.cells) - len(work.registry.active)
    sizes = {(cell.backbone.name, cell.site, cell.d_in, cell.d_sae) for cell in work.plan.cells}
    console.print(
        f"{work.registry.name}: {active} cells" + (f", {excluded} excluded" if excluded else ""), highlight=False
    )
    for name, site, d_in, d_sae in sorted(sizes):
        console.print(f"  {name} | {site} | d_in {d_in}, d_sae {d_sae}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("task", overflow="fold")
    for column in ("cells", "time", "memory", "disk", ""):
        table.add_column(column, justify="right", no_wrap=True)
    gpu = work.machine.gpu
    scores = [task for task in summary["tasks"] if task["kind"] == "score"]
    for task in summary["tasks"]:
        if task["kind"] != "score":
            table.add_row(
                task["label"], str(task["cells"] or ""), duration(task["seconds"]), size(task["memory_bytes"]),
                size(task["disk_bytes"]), _state(task, gpu.memory_bytes if gpu else None),
            )  # fmt: skip
    done = sum(task["done"] for task in scores)
    table.add_row(
        f"{len(scores)} scores",
        str(active),
        duration(sum(task["seconds"] for task in scores)),
        "",
        "",
        f"{done} done" if done else "",
    )
    console.print(table)
    left, environment = summary["to_do"], work.environment
    needs = f"up to {size(left['memory_bytes'])} of memory, {size(left['disk_bytes'])} of disk"
    models = any(not description.regenerates for description in work.registry.descriptions.values())
    place = f"on {environment.device}" + (f", model backbones in {environment.backbone_dtype}" if models else "")
    if gpu:
        place = f"on one {gpu.name} at half of its stated rates"
    text = f"to do: {left['tasks']} tasks, about {duration(left['seconds'])}, {needs}, {place}"
    console.print(text, highlight=False)
    if left["questions"]:
        asked = f"up to {left['questions']:,} questions to language models, whose answers take time of their own"
        console.print(asked, highlight=False)


def print_ratings(found: Rated) -> None:
    """Print how people rated latents, trained beside twins."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("constraint")
    for name in ("latents", "mean of 1 to 5", "rated 4 or 5", "first - this", "95 % interval"):
        table.add_column(name, justify="right")
    group = None
    for row in found.rows:
        if row.group != group:
            group = row.group
            table.add_row(f"[bold]{escape(group)}[/bold]")
        gap = "" if row.gap is None else f"{row.gap:+.2f}"
        interval = "" if row.interval is None else f"{row.interval[0]:+.2f} to {row.interval[1]:+.2f}"
        table.add_row(escape(row.constraint), str(row.latents), f"{row.mean:.2f}", f"{row.clear:.0%}", gap, interval)
    console.print(table, highlight=False)
    people = "one person" if found.raters == 1 else f"{found.raters} people"
    apart = "" if found.apart is None else f"; two ratings of a latent are {found.apart:.2f} apart on average"
    console.print(f"sheet {found.sheet}, {people}{apart}", highlight=False)
    for name, value in found.rank_correlations.items():
        told = f"rank correlation with the metric's scores, {name}: {value:+.2f}"
        console.print(told, highlight=False, markup=False)
