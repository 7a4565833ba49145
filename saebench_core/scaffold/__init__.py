"""Starting points for plugins: a complete distribution of each kind, filled in from templates in the wheel."""

from saebench_core.scaffold.names import Names, names_of
from saebench_core.scaffold.writing import KINDS, Written, write_distribution

__all__ = ["KINDS", "Names", "Written", "names_of", "write_distribution"]
