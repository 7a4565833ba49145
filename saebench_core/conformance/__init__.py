"""The conformance kit: named checks that authors of plugins run on their own plugins, as the built-in ones are checked.

In pytest derive a class from `ArchitectureConformance` and its like, or use `parametrize_with_checks`; elsewhere call
`check_plugin`, or ``saebench plugins check NAME``.
"""

from saebench_core.conformance.architectures import ArchitectureSubject
from saebench_core.conformance.backbones import BackboneSubject
from saebench_core.conformance.checks import Check, ConformanceError, NotCheckable
from saebench_core.conformance.constraints import ConstraintSubject
from saebench_core.conformance.judging import MetricSubject
from saebench_core.conformance.kit import Finding, check_plugin, checks_of, find_plugin, run_check, subject_of
from saebench_core.conformance.loaded import LoadedSubject
from saebench_core.conformance.subjects import PluginSubject
from saebench_core.conformance.testing import (
    ArchitectureConformance,
    BackboneConformance,
    ConstraintConformance,
    MetricConformance,
    parametrize_with_checks,
)

__all__ = [
    "ArchitectureConformance",
    "ArchitectureSubject",
    "BackboneConformance",
    "BackboneSubject",
    "Check",
    "ConformanceError",
    "ConstraintConformance",
    "ConstraintSubject",
    "Finding",
    "LoadedSubject",
    "MetricConformance",
    "MetricSubject",
    "NotCheckable",
    "PluginSubject",
    "check_plugin",
    "checks_of",
    "find_plugin",
    "parametrize_with_checks",
    "run_check",
    "subject_of",
]
