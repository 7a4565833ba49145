"""What a plugin must be before it is used; each refusal says what to change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from saebench_core.catalog.plugin import Spec
from saebench_core.errors import PluginError
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec
from saebench_core.interfaces.backbone import BackboneConfig, BackboneSpec
from saebench_core.interfaces.constraint import ConstraintConfig, ConstraintSpec
from saebench_core.interfaces.entry import EntryConfig, Kind, entry_type
from saebench_core.interfaces.loaded import LoadedConfig, LoadedSpec
from saebench_core.interfaces.metric import MetricConfig, MetricSpec

__all__ = ["HOOKS", "checked_name", "checked_specs"]

HOOKS: Final[Mapping[str, tuple[Kind, type[Any], type[EntryConfig]]]] = {
    "register_backbones": ("backbone", BackboneSpec, BackboneConfig),
    "register_architectures": ("architecture", ArchitectureSpec, ArchitectureConfig),
    "register_constraints": ("constraint", ConstraintSpec, ConstraintConfig),
    "register_metrics": ("metric", MetricSpec, MetricConfig),
}
"""What each hook is to return: the kind, its spec, and the base of its configurations."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def checked_specs(hook: str, returned: object) -> Sequence[Spec]:
    """Return what a hook returned, as a sequence.

    Raises:
        PluginError: if it is none.
    """
    if isinstance(returned, (list, tuple)):
        return returned
    raise PluginError(
        f"{hook} returned a {type(returned).__name__}; it must return a list of {HOOKS[hook][1].__name__}"
    )


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
