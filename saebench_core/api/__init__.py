"""The notebook's and the command line's door: open a registry, plan it, run it, read its results."""

from saebench_core.api.charts import charts_of, galleries_of, latents_to_rate
from saebench_core.api.exporting import export_activations
from saebench_core.api.notebook import run
from saebench_core.api.opening import Opened, open_registry, plan_registry, reopen
from saebench_core.api.outcomes import CellOutcome, Results
from saebench_core.api.process import Interruption
from saebench_core.api.rating import Rated, RatedConstraint, read_ratings, write_sheet
from saebench_core.api.running import Listener, RunReport, run_opened
from saebench_core.api.scoring import GIVEN, Scores, score
from saebench_core.api.tensors import ROWS
from saebench_core.api.twins import train_twins

__all__ = [
    "GIVEN",
    "ROWS",
    "CellOutcome",
    "Interruption",
    "Listener",
    "Opened",
    "Rated",
    "RatedConstraint",
    "Results",
    "RunReport",
    "Scores",
    "charts_of",
    "export_activations",
    "galleries_of",
    "latents_to_rate",
    "open_registry",
    "plan_registry",
    "read_ratings",
    "reopen",
    "run",
    "run_opened",
    "score",
    "train_twins",
    "write_sheet",
]
