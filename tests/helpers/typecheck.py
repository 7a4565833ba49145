"""The type checker of the tests: beartype, where an annotation can be checked at run time."""

from __future__ import annotations

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintException
from pydantic import JsonValue

TENSOR_MODULES = (
    "saebench_core.kernels",
    "saebench_core.rules",
    "saebench_core.objectives",
    "saebench_core.sae",
    "saebench_core.sae_files",
    "saebench_core.formats",
    "saebench_core.randomness",
    "saebench_core.activations",
    "saebench_core.interfaces.architecture",
    "saebench_core.interfaces.backbone",
    "saebench_core.interfaces.constraint",
    "saebench_core.interfaces.metric",
    "saebench_core.training",
    "saebench_plugins",
)
"""Where shapes are annotated; the rest of the core handles records and files, which pydantic and mypy check."""

_RULES = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as mypy has it
        hint_overrides=FrozenDict({JsonValue: object}),  # recursive: pydantic checks it, beartype cannot
    )
)


def checked(function):
    """Return the function with its annotations enforced.

    A parameter that is a protocol without ``runtime_checkable`` (a context, a reader) has no run-time check:
    asking for its attributes would load backbones. Such a function stays as it is.
    """
    try:
        return _RULES(function)
    except BeartypeDecorHintException:
        return function
