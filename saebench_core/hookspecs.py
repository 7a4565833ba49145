"""The four hooks. Their docstrings are the contract; pluggy sees nothing else of a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saebench_core.interfaces.architecture import ArchitectureSpec
    from saebench_core.interfaces.backbone import BackboneSpec
    from saebench_core.interfaces.constraint import ConstraintSpec
    from saebench_core.interfaces.loaded import LoadedSpec
    from saebench_core.interfaces.metric import MetricSpec

__all__ = [
    "HOOKSPEC_VERSION",
    "PROJECT",
    "hookimpl",
    "register_architectures",
    "register_backbones",
    "register_constraints",
    "register_metrics",
]

PROJECT: Final = "saebench"
"""Name of the pluggy project and of the entry-point group."""

HOOKSPEC_VERSION: Final = 1
"""Number of the hooks as they are here; raised when a hook or an argument comes, is deprecated, or goes.

What is deprecated keeps working for two minor versions, and plugins that use it get a notice."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backbones() -> Sequence[BackboneSpec]:  # type: ignore[empty-body]
    """Return the backbones that a plugin offers.

    Called once, when the catalog is made, before anything is loaded: return specs, load nothing. Importing
    the plugin's module must not import a heavy library (transformers, open_clip, timm, mlflow).

    Returns:
        A plain sequence of `BackboneSpec`. A name (the configuration's ``type``) that another distribution
        offers too is refused, and both are named.

    Raises:
        Exception: anything raised is kept as a load failure of this plugin; the others are not harmed.

    New arguments may come; an implementation that does not take them keeps working.

    .. versionadded:: 0.1
    """


@hookspec
def register_architectures() -> Sequence[ArchitectureSpec | LoadedSpec]:  # type: ignore[empty-body]
    """Return the SAE architectures that a plugin offers.

    Called as `register_backbones` is, with the same rules. An architecture combines a selection rule and loss
    terms from ``saebench_core``, or its own; every constraint is applied to it by the roles of its tensors.

    Returns:
        A plain sequence of `ArchitectureSpec`; `LoadedSpec` for an SAE that is loaded as it is.

    .. versionadded:: 0.1
    """


@hookspec
def register_constraints() -> Sequence[ConstraintSpec]:  # type: ignore[empty-body]
    """Return the baseline constraints that a plugin offers.

    Called as `register_backbones` is, with the same rules. A constraint says what it randomises, which tensors
    it freezes and how it certifies that.

    Returns:
        A plain sequence of `ConstraintSpec`.

    .. versionadded:: 0.1
    """


@hookspec
def register_metrics() -> Sequence[MetricSpec]:  # type: ignore[empty-body]
    """Return the metrics that a plugin offers.

    Called as `register_backbones` is, with the same rules. A metric states range, direction, unit, formula and
    source of each of its scores.

    Returns:
        A plain sequence of `MetricSpec`.

    .. versionadded:: 0.1
    """
