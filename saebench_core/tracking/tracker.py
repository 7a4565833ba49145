"""The tracker: sweeps as parent runs, cells as their children; whatever is logged twice stays once."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, final

from filelock import FileLock

from saebench_core.errors import InputError
from saebench_core.results import SCHEMA_VERSION, CellRecord, Sweep, read_curves
from saebench_core.store import canonical_json, content_key, file_sha256
from saebench_core.tracking.backend import Backend, RunState, Status
from saebench_core.tracking.probe import SERVERS, probe, sqlite_path
from saebench_core.tracking.view import Point, cell_metrics, cell_note, cell_params, cell_tags, curve_metrics, run_name
from saebench_core.tracking.writers import Writer, is_dead

__all__ = ["SweepStatus", "Tracker", "default_uri"]

logger = logging.getLogger(__name__)

SweepStatus = Literal["done", "failed", "interrupted"]

_RUN_STATUS: Final[Mapping[SweepStatus, Status]] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

_EXPERIMENT_NOTE: Final = """\
One run a sweep, below it one run a cell (backbone x site x architecture x constraint x L0 x seed).

Compare a trained SAE with its twins: filter by ``tags.`saebench.kind` = 'cell'``, group by the tag `saebench.group`
(it leaves out the seed, so the table shows means over seeds), or select the runs of one backbone, architecture and
L0 and press Compare. `<score>.floor` and `<score>.ceiling` stand beside each score that has them.
"""

_SAE_FILES: Final = ("cfg.json", "sae_weights.safetensors")


def default_uri(workdir: Path) -> str:
    """Return the tracking URI that is used where none is given: a database in the workdir.

    Raises:
        InputError: if the workdir's path cannot be part of such a URI.
    """
    path = str(workdir.absolute() / "mlflow" / "mlflow.db")
    if "%" in path or "?" in path:  # database URLs and mlflow disagree about how to escape them
        raise InputError(
            f"no MLflow database can be made in {str(workdir)!r}; allowed are paths without '%' and '?'; "
            "choose another workdir, or a server with --tracking-uri"
        )
    return f"sqlite:///{path}"


def _tag_sweep(sweep_id: str) -> str:
    return f"saebench.sweep.{sweep_id}"


def _one_line(text: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", text).strip("._") or "item"


@final
class Tracker:
    """Writes sweeps and cells to an MLflow server or database.

    Args:
        uri: tracking URI; None for a database in the workdir.
        workdir: what the artifacts' paths are relative to; locks lie here too.
        weights: whether to upload the SAE's weights; everything else goes in any case.
    """

    def __init__(self, uri: str | None, workdir: Path, *, weights: bool = True) -> None:
        self.workdir = workdir.absolute()
        self.uri = uri or default_uri(workdir)
        self.weights = weights
        self._folder = self.workdir / "mlflow"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writers = self._folder / "writers"
        self._writer: Writer | None = None
        file = sqlite_path(self.uri)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / "tracker.lock" if file is None else f"{file}.lock")
        with self._lock:  # a fresh database breaks for good when two processes make its tables at once
            probe(self.uri)
            self._backend = Backend(self.uri)
        self._experiments: dict[str, str] = {}
        self._cells: dict[str, dict[str, CellRecord]] = {}

    def begin(self, sweep: Sweep) -> str:
        """Mark a sweep as running and return its run's id; what a dead process left running is ended first."""
        self.reconcile(sweep)
        run = self._parent(sweep)
        self._backend.log(run.run_id, tags={"saebench.writer": self._name})
        self._backend.reopen(run.run_id)
        return run.run_id

    def cell(self, sweep: Sweep, record: CellRecord) -> bool:
        """Bring a cell's run up to its record; say whether anything had to be written.

        Cells that are pending or excluded have no run.
        """
        self._cells.setdefault(sweep.sweep_id, {})[record.result.cell_id] = record
        if record.result.status not in ("done", "failed"):
            return False
        digest = content_key([record.model_dump(mode="json"), self.weights])
        run = self._find_or_create(sweep, record)
        finished = run.status in ("FINISHED", "FAILED")
        if finished and run.tags.get("saebench.record") == digest:
            return self._join(run, sweep)
        self._write(run, sweep, record)
        # The digest comes last: a process that dies before it leaves a run that is written again.
        self._backend.log(run.run_id, tags={"saebench.record": digest})
        return True

    def attach(self, sweep: Sweep, path: Path) -> None:
        """Upload a file of the sweep as a whole, such as its report."""
        self._backend.upload(self._parent(sweep).run_id, path, None)

    def end(self, sweep: Sweep, status: SweepStatus, end_ms: int | None = None) -> None:
        """Mark a sweep as ended, now or at a given time."""
        run = self._parent(sweep)
        records = self._cells.get(sweep.sweep_id, {}).values()
        latest = max((record.finished_ms for record in records), default=sweep.started_ms)
        states = [record.result.status for record in records]
        counts = {
            "cells/total": len(sweep.cells),
            "cells/done": states.count("done"),
            "cells/failed": states.count("failed"),
        }
        self._backend.log(run.run_id, [Point(key, float(value), latest, 0) for key, value in counts.items()])
        target = _RUN_STATUS[status]
        if run.status != target:
            self._backend.finish(run.run_id, target, end_ms or time.time_ns() // 1_000_000)

    def close(self, *, clean: bool = True) -> None:
        """Stop being a writer; call it after `end`, or with ``clean=False`` where `end` did not come through."""
        if self._writer is not None:
            self._writer.close(clean=clean)
            self._writer = None

    def is_live(self, sweep: Sweep) -> bool:
        """Say whether another process is at this sweep just now."""
        run = self._backend.find(self._experiment(sweep), "saebench.sweep_id", sweep.sweep_id)
        return run is not None and run.status == "RUNNING" and not self._orphan(run)

    def reconcile(self, sweep: Sweep) -> int:
        """End the runs of a sweep's experiment that a dead process of this workdir left running; count them."""
        dead = [run for run in self._backend.running(self._experiment(sweep)) if self._orphan(run)]
        for run in dead:
            logger.info("run %s was left running by a process that died; it is marked as killed", run.run_id)
            self._backend.finish(run.run_id, "KILLED", time.time_ns() // 1_000_000)
        return len(dead)

    def experiment_id(self, name: str) -> str | None:
        """Return the id of a sweep's experiment if it is there."""
        return self._backend.experiment_id(name)

    @property
    def _name(self) -> str:
        if self._writer is None:
            self._writer = Writer(self._writers)
        return self._writer.name

    def _orphan(self, run: RunState) -> bool:
        name = run.tags.get("saebench.writer", "")
        if self._writer is not None and name == self._writer.name:
            return False
        return is_dead(self._writers, name)

    def _experiment(self, sweep: Sweep) -> str:
        if sweep.name not in self._experiments:
            server = self.uri.startswith((*SERVERS, "databricks"))
            location = None if server else (self._folder / "artifacts").as_uri()
            tags = {
                "mlflow.note.content": _EXPERIMENT_NOTE,
                "mlflow.experimentKind": "custom_model_development",  # the pages show metrics, not traces
                "saebench.schema": str(SCHEMA_VERSION),
            }
            with self._lock:
                self._experiments[sweep.name] = self._backend.experiment(sweep.name, location, tags)
        return self._experiments[sweep.name]

    def _parent(self, sweep: Sweep) -> RunState:
        experiment = self._experiment(sweep)
        with self._lock:
            run = self._backend.find(experiment, "saebench.sweep_id", sweep.sweep_id)
            if run is None:
                tags = {
                    "saebench.kind": "sweep",
                    "saebench.schema": str(SCHEMA_VERSION),
                    "saebench.sweep_id": sweep.sweep_id,
                    "saebench.writer": self._name,
                } | {f"saebench.env.{key}": value[:2000] for key, value in sweep.environment.items()}
                begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(sweep.started_ms / 1000))
                run = self._backend.create(experiment, f"{sweep.name} {begun}", sweep.started_ms, tags)
        if run.tags.get("saebench.attached") != "1":
            self._backend.upload_text(run.run_id, sweep.registry, "registry.yaml")
            self._backend.upload_text(run.run_id, canonical_json(sweep.environment), "environment.json")
            self._backend.log(run.run_id, tags={"saebench.attached": "1"})
        return run

    def _find_or_create(self, sweep: Sweep, record: CellRecord) -> RunState:
        experiment, result = self._experiment(sweep), record.result
        with self._lock:
            run = self._backend.find(experiment, "saebench.cell_id", result.cell_id)
            if run is not None and _contradicts(run, cell_params(record)):
                # Params cannot be changed; a run that shows settings of another version would mislead.
                self._backend.delete(run.run_id)
                run = None
            if run is None:
                tags = {
                    "mlflow.parentRunId": self._parent(sweep).run_id,
                    "saebench.cell_id": result.cell_id,
                    "saebench.writer": self._name,
                    _tag_sweep(sweep.sweep_id): "1",
                }
                seconds = sum(record.seconds.values())
                run = self._backend.create(
                    experiment, run_name(result), record.finished_ms - round(seconds * 1000), tags
                )
        return run

    def _join(self, run: RunState, sweep: Sweep) -> bool:
        tag = _tag_sweep(sweep.sweep_id)
        if run.tags.get(tag) == "1":
            return False
        self._backend.log(run.run_id, tags={tag: "1"})
        return True

    def _write(self, run: RunState, sweep: Sweep, record: CellRecord) -> None:
        points, refused = self._curves(record)
        tags = cell_tags(record) | {"mlflow.note.content": cell_note(record), _tag_sweep(sweep.sweep_id): "1"}
        if refused:
            tags["saebench.nonfinite"] = ",".join(refused)[:2000]
        params = {key: value for key, value in cell_params(record).items() if key not in run.params}
        self._backend.log(run.run_id, [*cell_metrics(record), *points], params, tags)
        self._upload(run, record)
        status: Status = "FINISHED" if record.result.status == "done" else "FAILED"
        self._backend.finish(run.run_id, status, record.finished_ms)

    def _curves(self, record: CellRecord) -> tuple[list[Point], list[str]]:
        relative = record.result.artifacts.get("curves")
        path = None if relative is None else self._inside(relative)
        if path is None or not path.is_file():
            return [], []
        return curve_metrics(read_curves(path))

    def _inside(self, relative: str) -> Path | None:
        """Return an artifact's path, or None if a journal from elsewhere points out of the workdir."""
        path = Path(os.path.normpath(self.workdir / relative))
        return path if path.is_relative_to(self.workdir) else None

    def _files(self, record: CellRecord) -> Iterator[tuple[Path, str | None]]:
        for name, relative in sorted(record.result.artifacts.items()):
            path = self._inside(relative)
            if path is None or not path.exists():
                logger.warning("artifact %s of cell %s is not at %s", name, record.result.cell_id, relative)
                continue
            folder = "/".join(map(_one_line, name.split("/")))
            if name == "sae":
                wanted = _SAE_FILES if self.weights else _SAE_FILES[:1]
                yield from ((path / file, folder) for file in wanted if (path / file).is_file())
            elif path.is_dir():
                yield from ((file, folder) for file in sorted(path.iterdir()) if file.is_file())
            else:
                yield path, folder if "/" in name else None  # two metrics may name their tables alike

    def _upload(self, run: RunState, record: CellRecord) -> None:
        files = list(self._files(record))
        document = record.model_dump_json(indent=1)
        digest = content_key([document, [[path.name, folder, file_sha256(path)] for path, folder in files]])
        if run.tags.get("saebench.uploaded") == digest:
            return
        for path, folder in files:
            self._backend.upload(run.run_id, path, folder)
        self._backend.upload_text(run.run_id, document, "cell.json")
        self._backend.log(run.run_id, tags={"saebench.uploaded": digest})


def _contradicts(run: RunState, params: Mapping[str, str]) -> bool:
    return any(run.params.get(key, value) != value for key, value in params.items())
