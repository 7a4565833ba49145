"""What a plugin must be before it is used; each refusal says what to change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

from saebench_core.errors import PluginError
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec
from saebench_core.interfaces.backbone import BackboneConfig, BackboneSpec
from saebench_core.interfaces.constraint import ConstraintConfig, ConstraintSpec
from saebench_core.interfaces.entry import EntryConfig, Kind, entry_type
from saebench_core.interfaces.loaded import LoadedConfig, LoadedSpec
from saebench_core.interfaces.metric import MetricConfig, MetricSpec

__all__ = ["HOOKS", "checked_name", "refuse_defaults"]

HOOKS: Final[Mapping[str, tuple[Kind, type[Any], type[EntryConfig]]]] = {
    "register_backbones": ("backbone", BackboneSpec, BackboneConfig),
    "register_architectures": ("architecture", ArchitectureSpec, ArchitectureConfig),
    "register_constraints": ("constraint", ConstraintSpec, ConstraintConfig),
    "register_metrics": ("metric", MetricSpec, MetricConfig),
}
"""What each hook is to return: the kind, its spec, and the base of its configurations."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def refuse_defaults(function: Any) -> None:
    """Refuse default values: whether pluggy passes such an argument differs between its versions.

    Raises:
        PluginError: with the argument's name.
    """
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            raise PluginError(f"{function.__name__}: the argument {parameter.name!r} has a default; hooks must not")


def checked_name(hook: str, spec: Any) -> str:
    """Return the name that a spec registers.

    Raises:
        PluginError: if the spec is not what the hook is to return.
    """
    kind, spec_type, config_type = HOOKS[hook]
    if kind == "architecture" and isinstance(spec, LoadedSpec):
        spec_type, config_type = LoadedSpec, LoadedConfig
    if not isinstance(spec, spec_type):
        raise PluginError(f"expected a {spec_type.__name__}, got {type(spec).__name__}")
    config = spec.config
    if not (isinstance(config, type) and issubclass(config, config_type)):
        raise PluginError(f"{spec_type.__name__}.config must be a subclass of {config_type.__name__}")
    settings = config.model_config
    if settings.get("extra") != "forbid" or not settings.get("frozen"):
        raise PluginError(f"{config.__name__} must keep extra='forbid' and frozen=True")
    name = entry_type(config)
    if not _NAME.fullmatch(name):
        raise PluginError(f"the name {name!r} must be lower-case letters, digits and underscores")
    if not spec.summary or "\n" in spec.summary:
        raise PluginError(f"{name}: the summary must be one line")
    return name
