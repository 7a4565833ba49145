"""The one place that imports mlflow: a client with the few calls that a tracker needs.

Everything goes through `MlflowClient`; the fluent API keeps global state and marks interrupted runs as finished.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, final

from saebench_core.tracking.view import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Backend", "RunState", "Status"]

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_DEFAULTS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default waits for minutes; a sync makes up for what is lost
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class RunState(NamedTuple):
    """What a tracker reads of a run."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


def _state(run: Run) -> RunState:
    return RunState(run.info.run_id, run.info.status, run.data.tags, run.data.params)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what mlflow's own dependencies warn about, and its lines about tables at the first use."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _open(uri: str) -> MlflowClient:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with _quiet():
        from mlflow import MlflowClient

        for name in ("mlflow.store.db.utils", "alembic"):  # mlflow's import has set their levels anew
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=uri)


@final
class Backend:
    """A tracking server or database; opening it makes or migrates a database, so hold a lock."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = _open(uri)

    def experiment(self, name: str, artifact_location: str | None, tags: Mapping[str, str]) -> str:
        """Return the id of an experiment, making it, or restoring a deleted one; tags that people edited stay."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name, artifact_location, dict(tags)))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        for key, value in tags.items():
            if key not in found.tags:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def experiment_id(self, name: str) -> str | None:
        """Return the id of an experiment that is there, or None."""
        found = self._client.get_experiment_by_name(name)
        return None if found is None or found.lifecycle_stage == "deleted" else str(found.experiment_id)

    def find(self, experiment_id: str, tag: str, value: str) -> RunState | None:
        """Return the oldest run of an experiment that carries a tag; values are hashes, so nothing to escape."""
        runs = self._client.search_runs(
            [experiment_id], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        return _state(runs[0]) if runs else None

    def running(self, experiment_id: str) -> Iterator[RunState]:
        """Yield the runs of an experiment that say they are running."""
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment_id], "attributes.status = 'RUNNING'", page_token=token)
            yield from map(_state, page)
            token = page.token
            if not token:
                return

    def create(self, experiment_id: str, name: str, start_ms: int, tags: Mapping[str, str]) -> RunState:
        """Make a run; it is RUNNING until `finish`."""
        return _state(self._client.create_run(experiment_id, start_ms, dict(tags), name))

    def log(
        self,
        run_id: str,
        metrics: Iterable[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log all of it in as few requests as the server's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        self._client.log_batch(
            run_id,
            [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in metrics],
            [Param(key, value) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def upload(self, run_id: str, path: Path, folder: str | None) -> None:
        """Copy a file below the run's artifacts."""
        self._client.log_artifact(run_id, str(path), folder)

    def upload_text(self, run_id: str, text: str, place: str) -> None:
        """Write a text below the run's artifacts."""
        self._client.log_text(run_id, text, place)

    def reopen(self, run_id: str) -> None:
        """Mark a run as running again."""
        self._client.update_run(run_id, status="RUNNING")

    def finish(self, run_id: str, status: Status, end_ms: int) -> None:
        """Mark a run as ended."""
        self._client.set_terminated(run_id, status, end_ms)

    def delete(self, run_id: str) -> None:
        """Move a run to MLflow's bin, from where a user can restore it."""
        self._client.delete_run(run_id)
