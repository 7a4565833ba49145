"""registry.yaml to validated records and cells."""

from saebench_core.registry.cells import AXES, Cell, Entry
from saebench_core.registry.document import Document
from saebench_core.registry.expand import load_registry
from saebench_core.registry.model import registry_model, validate
from saebench_core.registry.record import Registry
from saebench_core.registry.schema import registry_schema

__all__ = [
    "AXES",
    "Cell",
    "Document",
    "Entry",
    "Registry",
    "load_registry",
    "registry_model",
    "registry_schema",
    "validate",
]
