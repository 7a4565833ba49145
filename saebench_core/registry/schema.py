"""The JSON Schema of registries, for editors."""

from __future__ import annotations

from typing import Any

from saebench_core.catalog import Catalog
from saebench_core.interfaces.loaded import LoadedConfig
from saebench_core.registry.model import registry_model
from saebench_core.training.settings import TrainingSettings

__all__ = ["registry_schema"]


def registry_schema(catalog: Catalog) -> dict[str, Any]:
    """Return the JSON Schema of registries that use the catalog's plugins."""
    schema = registry_model(catalog).model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.setdefault("TrainingSettings", TrainingSettings.model_json_schema())
    for plugin in catalog.of_kind("backbone"):
        definition = definitions.get(plugin.spec.config.__name__, {})
        if "training" in definition.get("properties", {}):
            description = definition["properties"]["training"].get("description", "")
            definition["properties"]["training"] = {
                "anyOf": [{"$ref": "#/$defs/TrainingSettings"}, {"type": "null"}],
                "default": None,
                "description": description,
            }
    _name_twins(definitions, catalog)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "saebench registry"}


def _name_twins(definitions: dict[str, Any], catalog: Catalog) -> None:
    """Say which entries the twin of a loaded SAE may be: those of all architectures that are trained."""
    configs = [plugin.spec.config for plugin in catalog.of_kind("architecture")]
    trained = [config.__name__ for config in configs if not issubclass(config, LoadedConfig)]
    for config in configs:
        twin = definitions.get(config.__name__, {}).get("properties", {}).get("twin")
        if issubclass(config, LoadedConfig) and twin is not None:
            choices = [{"$ref": f"#/$defs/{name}"} for name in trained if name in definitions]
            definitions[config.__name__]["properties"]["twin"] = {
                "anyOf": choices,
                "required": ["type"],
                "description": twin.get("description", ""),
            }
