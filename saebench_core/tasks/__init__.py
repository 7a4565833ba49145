"""What each kind of task does; executors only decide where and when."""

from saebench_core.tasks.collect import collect_records
from saebench_core.tasks.perform import perform
from saebench_core.tasks.workbench import Workbench, pick_device

__all__ = ["Workbench", "collect_records", "perform", "pick_device"]
