"""MLflow as a view on the journal: one writer, replayable, never in the way of a run.

Only `saebench_core.tracking.backend` imports mlflow, and only when a client is opened.
"""

from __future__ import annotations

from saebench_core.tracking.names import check_metric_name, metric_key
from saebench_core.tracking.safe import SafeTracker
from saebench_core.tracking.server import UiCommand, ui_command
from saebench_core.tracking.sync import SyncCount, sync
from saebench_core.tracking.tracker import Tracker, default_uri

__all__ = [
    "SafeTracker",
    "SyncCount",
    "Tracker",
    "UiCommand",
    "check_metric_name",
    "default_uri",
    "metric_key",
    "sync",
    "ui_command",
]
