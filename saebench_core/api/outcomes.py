"""What a run came to, as a notebook holds it: cells with their scores and SAEs, tables, data frames, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from saebench_core.api.opening import Opened, plan_registry
from saebench_core.errors import InputError, SaebenchError, nearest
from saebench_core.registry import AXES, Registry
from saebench_core.report import console_text, long_frame, wide_frame
from saebench_core.results import CellRecord, CellResult, MetricValue, read_curves, results_json
from saebench_core.sae import SparseAutoencoder
from saebench_core.tasks import pick_device

if TYPE_CHECKING:
    import pandas

__all__ = ["CellOutcome", "Results"]

Value = str | int | float


@final
class CellOutcome:
    """What one cell came to: scores by name, the SAE, its certificate and curve.

    Attributes:
        result: the record, as ``saebench results --json`` prints it.
    """

    def __init__(self, record: CellRecord, opened: Opened) -> None:
        self.result: CellResult = record.result
        self._opened = opened

    def __repr__(self) -> str:
        one = self.result
        l0 = "L0 measured" if one.l0_target is None else f"L0={one.l0_target:g}"
        parts = (one.backbone.name, one.site, one.architecture.name, one.constraint.name, l0, f"s{one.seed}")
        return f"<{' | '.join(parts)}: {one.status}>"

    @property
    def scores(self) -> Mapping[str, MetricValue]:
        """Scores by name, with floor and ceiling; what does not apply has the reason."""
        return self.result.metrics

    def __getitem__(self, score: str) -> MetricValue:
        """Return one score.

        Raises:
            InputError: if the cell has none of that name.
        """
        if score not in self.scores:
            known = ", ".join(self.scores) or "none"
            raise InputError(f"no score {score!r}{nearest(score, self.scores)}; there are: {known}{self._why()}")
        return self.scores[score]

    @property
    def certificate(self) -> Mapping[str, Any]:
        """What was held random, with hashes.

        Raises:
            SaebenchError: if the SAE is not trained.
        """
        self.path("certificate")
        return self.result.certificate or {}

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The SAE, acting on raw activations, on the device of the registry.

        Raises:
            SaebenchError: if it is not trained, with the error of the cell.
        """
        device = pick_device(self._opened.registry.runtime.device)
        return self._opened.catalog.load_sae(self.path("sae"), str(device))

    def curve(self) -> list[dict[str, Any]]:
        """Return the points of the training curve: ``{"step", "rows", "time_ms", "values": {name: number}}``.

        Raises:
            SaebenchError: if there is none.
        """
        return read_curves(self.path("curves"))

    def items(self, metric: str) -> pandas.DataFrame:
        """Return a metric's per-item table: a latent, feature, class or image a row.

        Raises:
            SaebenchError: if there is none.
        """
        import pandas

        return pandas.read_parquet(self.path(f"items/{metric}"))

    def path(self, artifact: str) -> Path:
        """Return where an artifact lies.

        Args:
            artifact: ``sae`` (a folder), ``certificate``, ``curves``, ``drift``, ``items/<metric>``.

        Raises:
            SaebenchError: if the cell has none of that name.
        """
        known = self.result.artifacts
        if artifact not in known:
            there = ", ".join(known) or "none"
            raise SaebenchError(f"{self!r} has no {artifact!r}; there are: {there}{self._why()}")
        return self._opened.workdir / known[artifact]

    def _why(self) -> str:
        return f" ({self.result.error})" if self.result.error else ""


@final
class Results:
    """The cells of a registry with what each has so far.

    ``results["frozen_decoder", 0]`` is the cell of a constraint and a seed; iterating gives all cells in order.

    Attributes:
        registry: what was run.
        workdir: where it lies.
        cells: the cells concerned, in the registry's order.
        worked: tasks that had work to do; 0 where everything was there.
    """

    def __init__(self, opened: Opened, records: Sequence[CellRecord], worked: int = 0) -> None:
        self.registry: Registry = opened.registry
        self.workdir: Path = opened.workdir
        self.cells = tuple(CellOutcome(record, opened) for record in records)
        self.worked = worked
        self._opened = opened
        self._records = tuple(records)

    @classmethod
    def read(cls, registry: Registry, *, workdir: str | Path = ".saebench", only: Sequence[str] = ()) -> Results:
        """Return what a workdir has of a registry; nothing is computed. The arguments are those of `run`.

        Raises:
            InputError: if the workdir can be no folder, or no cell matches.
        """
        opened = plan_registry(registry, Path(workdir), only)
        return cls(opened, opened.records())

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[CellOutcome]:
        return iter(self.cells)

    def __getitem__(self, key: str | tuple[str, int]) -> CellOutcome:
        """Return the cell of a constraint, or of a constraint and a seed; arguments are those of `one`."""
        if isinstance(key, str):
            return self.one(constraint=key)
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"expected results[CONSTRAINT] or results[CONSTRAINT, SEED], got results[{key!r}]")
        return self.one(constraint=key[0], seed=key[1])

    def one(self, **axes: Value) -> CellOutcome:
        """Return the only cell with these values; the arguments are those of `select`.

        Raises:
            InputError: if there is none, or several.
        """
        found = self.select(**axes)
        if len(found) > 1:
            told = "\n".join(f"  {cell!r}" for cell in found.cells[:8])
            raise InputError(f"{_told(axes)}: {len(found)} cells match; give more axes ({', '.join(AXES)}):\n{told}")
        return found.cells[0]

    def select(self, **axes: Value | Sequence[Value]) -> Results:
        """Return the cells with these values.

        Args:
            axes: ``backbone``, ``site``, ``architecture``, ``constraint``, ``l0``, ``seed``; entries go by name or
                type, and a list matches any of its values.

        Raises:
            InputError: if there is no such axis, or no cell matches.
        """
        planned = {cell.cell_id: cell for cell in self.registry.cells}
        kept = list(self._records)
        for axis, wanted in axes.items():
            if axis not in AXES:
                raise InputError(f"no axis {axis!r}{nearest(axis, AXES)}; there are: {', '.join(AXES)}")
            choices = set(wanted) if isinstance(wanted, Sequence | Set) and not isinstance(wanted, str) else {wanted}
            values = {record.result.cell_id: planned[record.result.cell_id].axis(axis) for record in kept}
            kept = [record for record in kept if values[record.result.cell_id] & choices]
            if not kept:
                known = sorted({str(value) for found in values.values() for value in found})
                hint = nearest(str(wanted), known)
                raise InputError(f"{axis}={wanted!r}: no cell matches{hint}; there are: {', '.join(known)}")
        return Results(self._opened, kept, self.worked)

    @property
    def failed(self) -> list[CellOutcome]:
        """Cells that failed; ``cell.result.error`` says why."""
        return [cell for cell in self.cells if cell.result.status == "failed"]

    def to_frame(self, *, wide: bool = False) -> pandas.DataFrame:
        """Return a data frame with a row for each cell and score, or for each cell with a column for each score.

        Args:
            wide: a row a cell, values only.
        """
        return (wide_frame if wide else long_frame)(self._records)

    def to_json(self) -> str:
        """Return the document that ``saebench results --json`` prints; equal results give equal bytes."""
        return results_json([record.result for record in self._records])

    def table(self, *, every: bool = False) -> str:
        """Return the trained SAEs beside their twins, as the command line prints them into a file.

        Args:
            every: show every score, not only the main ones.
        """
        if not any(cell.result.status in {"done", "failed"} for cell in self.cells):
            return f"{self.registry.name}: 0 of {len(self)} cells done"
        scores = None if every else self.registry.headline
        return console_text(self._opened.sweep(), self._records, scores=scores, notice=self.registry.notice)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        counts = Counter(cell.result.status for cell in self.cells)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        return f"Results({self.registry.name!r}, {len(self)} cells: {states})"


def _told(axes: Mapping[str, object]) -> str:
    return ", ".join(f"{axis}={value!r}" for axis, value in axes.items()) or "without an axis"
