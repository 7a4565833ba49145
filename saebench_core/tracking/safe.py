"""A tracker that never stops a run: one warning, then silence, and `saebench sync` makes up for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

from saebench_core.results import CellRecord, Sweep
from saebench_core.tracking.probe import SERVERS, probe
from saebench_core.tracking.tracker import SweepStatus, Tracker

__all__ = ["SafeTracker"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


@final
class SafeTracker:
    """A `Tracker` whose failures are warnings.

    Attributes:
        problem: why it stopped, or None while it works.
    """

    def __init__(self, uri: str | None, workdir: Path, *, weights: bool = True) -> None:
        self.problem: str | None = None
        self._uri, self._workdir, self._weights = uri, workdir, weights
        self._tracker: Tracker | None = None

    def begin(self, sweep: Sweep) -> str | None:
        """Mark a sweep as running; return its run's id if the tracker works."""
        return self._guard(lambda tracker: tracker.begin(sweep))

    def cell(self, sweep: Sweep, record: CellRecord) -> None:
        """Log a cell."""
        self._guard(lambda tracker: tracker.cell(sweep, record))

    def attach(self, sweep: Sweep, path: Path) -> None:
        """Upload a file of the sweep as a whole."""
        self._guard(lambda tracker: tracker.attach(sweep, path))

    def end(self, sweep: Sweep, status: SweepStatus) -> None:
        """Mark a sweep as ended."""
        self._guard(lambda tracker: tracker.end(sweep, status))

    def close(self) -> None:
        """Stop being a writer; after a problem, what still says RUNNING is left for the next one to end."""
        if self._tracker is not None:
            self._tracker.close(clean=self.problem is None)
            self._tracker = None

    def _guard(self, action: Callable[[Tracker], T]) -> T | None:
        if self.problem is not None:
            return None
        try:
            if self._tracker is not None and self._tracker.uri.startswith(SERVERS):
                probe(self._tracker.uri)  # it may have died since
            if self._tracker is None:
                self._tracker = Tracker(self._uri, self._workdir, weights=self._weights)
            return action(self._tracker)
        except Exception as error:  # whatever mlflow, its database or its server may throw: the run goes on
            place = "" if self._uri is None else " --tracking-uri ..."  # a URI may hold a password
            what = str(error).strip().splitlines() or [type(error).__name__]
            self.problem = f"tracking stopped: {what[0]}; results are safe, run `saebench sync{place}` later"
            logger.warning(self.problem)
            logger.debug("the tracker failed", exc_info=True)
            return None
