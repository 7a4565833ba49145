"""The notebook's and the command line's door: open a registry, plan it, run it, read its results."""

from saebench_core.api.exporting import export_activations
from saebench_core.api.opening import Opened, open_registry, reopen
from saebench_core.api.process import Interruption
from saebench_core.api.running import Listener, RunReport, run_opened

__all__ = [
    "Interruption",
    "Listener",
    "Opened",
    "RunReport",
    "export_activations",
    "open_registry",
    "reopen",
    "run_opened",
]
