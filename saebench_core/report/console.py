"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench_core.report.tables import Comparison, ScoreRow, Verdicts, comparisons
from saebench_core.report.words import FLAGS, entry_text, l0_text, learned_text, number, plain
from saebench_core.results import CellRecord, Sweep

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["console_text", "show"]

_NOT_NULL = "*"
_FLAGGED = "!"


def show(
    console: Console,
    sweep: Sweep,
    records: Sequence[CellRecord],
    *,
    scores: Sequence[str] | None = None,
    notice: str | None = None,
    verdicts: Verdicts | None = None,
) -> None:
    """Print the comparison: tables on a terminal, plain ASCII lines elsewhere.

    Args:
        console: where to print.
        sweep: what was run.
        records: its cells.
        scores: names of the scores to show; None for all.
        notice: a line about what the numbers may be used for.
        verdicts: what the statistics say, where known.
    """
    found = comparisons(records, scores, verdicts)
    if not console.is_terminal:
        console.print(
            console_text(sweep, records, scores=scores, notice=notice, verdicts=verdicts),
            markup=False, highlight=False, soft_wrap=True, end="",
        )  # fmt: skip
        return
    for comparison in found:
        console.print(_rich(comparison))
    for line in _footer(found, records, notice):
        console.print(line, markup=False, highlight=False)


def _title(comparison: Comparison) -> str:
    block = comparison.block
    seeds = len(comparison.seeds)
    return (
        f"{block.backbone} / {block.site} | {block.architecture} | {l0_text(block.l0_target)} | "
        f"mean ± sd over {seeds} seed{'s' * (seeds != 1)}"
    )


def _cells(comparison: Comparison) -> list[list[str]]:
    """Return the table's body: a row a constraint, then floor, ceiling, what learning earned and beside which twin."""
    body = []
    for index, constraint in enumerate(comparison.constraints):
        body.append([constraint, *(_marked(row, index) for row in comparison.rows)])
    body.append(["floor", *(number(row.floor) for row in comparison.rows)])
    body.append(["ceiling", *(number(row.ceiling) for row in comparison.rows)])
    body.append(["earned by learning", *(learned_text(row) for row in comparison.rows)])
    if any(row.best_twin for row in comparison.rows):
        body.append(["best twin", *(row.best_twin or "–" for row in comparison.rows)])  # noqa: RUF001
    if any(row.verdict for row in comparison.rows):
        body.append(["verdict", *(row.verdict or "–" for row in comparison.rows)])  # noqa: RUF001
    return body


def _marked(row: ScoreRow, index: int) -> str:
    entry = row.entries[index]
    left_out = entry.collapsed or entry.failed or entry.outdated
    marks = _NOT_NULL * (not entry.valid_null and entry.n > 0) + _FLAGGED * bool(entry.flags or left_out)
    return f"{entry_text(entry)}{' ' if marks else ''}{marks}"


def _rich(comparison: Comparison) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_title(comparison)), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for row in comparison.rows:
        header = Text(row.score.replace("/", "/\n", 1))  # narrow columns
        table.add_column(header, justify="right", overflow="fold")
    body, count = _cells(comparison), len(comparison.constraints)
    for index, line in enumerate(body):
        style = "bold" if index == 0 else ("dim" if index >= count else "")
        cells = [line[0], *("_\n".join(cell.rsplit("_", 1)) for cell in line[1:])]  # names of twins are long
        table.add_row(*map(Text, cells), style=style, end_section=index == count - 1)
    return table


def _footer(found: Sequence[Comparison], records: Sequence[CellRecord], notice: str | None) -> list[str]:
    entries = [entry for comparison in found for row in comparison.rows for entry in row.entries]
    lines = []
    if any(not entry.valid_null and entry.n > 0 for entry in entries):
        lines.append(f"{_NOT_NULL} not a null for this score: the constraint leaves what the score reads to learning")
    lines += [
        f"{comparison.block.architecture} was loaded: the rows below it are references trained at its L0, not twins; "
        "they share neither draw nor batches with it, and are compared unpaired"
        for comparison in found
        if not comparison.paired
    ]
    flags = sorted({flag for record in records for flag in record.result.flags})
    lines += [f"{_FLAGGED} {flag}: {FLAGS.get(flag, 'see the cell')}" for flag in flags]
    lines += _failures(records)
    return [*lines, *([notice] if notice else [])]


def _failures(records: Sequence[CellRecord]) -> list[str]:
    """Return a line for each error, with the constraints and seeds of the cells that have it."""
    met: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for cell in (record.result for record in records if record.result.status == "failed"):
        error = (cell.error or "no message").partition("\n")[0]
        seeds = met.setdefault((cell.backbone.name, cell.architecture.name, error), {})
        seeds.setdefault(cell.constraint.name, []).append(str(cell.seed))
    return [
        f"{_FLAGGED} failed: {backbone} | {architecture} | "
        + ", ".join(f"{name} (seed {', '.join(dict.fromkeys(found))})" for name, found in seeds.items())
        + f": {error}"
        for (backbone, architecture, error), seeds in met.items()
    ]


def console_text(
    sweep: Sweep,
    records: Sequence[CellRecord],
    *,
    scores: Sequence[str] | None = None,
    notice: str | None = None,
    verdicts: Verdicts | None = None,
) -> str:
    """Return the comparison as aligned ASCII lines, never cut to a width."""
    found = comparisons(records, scores, verdicts)
    lines = [f"sweep {sweep.name}"]
    for comparison in found:
        rows = [["", *(row.score for row in comparison.rows)], *_cells(comparison)]
        cells = [[plain(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", plain(_title(comparison))]
        for row in cells:
            first, *others = (cell for cell in row)
            padded = [
                first.ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
            ]
            lines.append("  ".join(padded).rstrip())
    footer = [plain(line) for line in _footer(found, records, notice)]
    return "\n".join([*lines, *([""] if footer else []), *footer]) + "\n"
