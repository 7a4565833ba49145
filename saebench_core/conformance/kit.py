"""Runs the checks of a plugin, and says of each how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from saebench_core.catalog import Catalog, Plugin, make_catalog
from saebench_core.conformance import architectures, backbones, common, constraints, loaded, metrics, models
from saebench_core.conformance.architectures import ArchitectureSubject
from saebench_core.conformance.backbones import BackboneSubject
from saebench_core.conformance.checks import Check, ConformanceError, NotCheckable, checks_in
from saebench_core.conformance.constraints import ConstraintSubject
from saebench_core.conformance.judging import MetricSubject
from saebench_core.conformance.loaded import LoadedSubject
from saebench_core.conformance.subjects import Config, PluginSubject
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.entry import Kind
from saebench_core.interfaces.loaded import LoadedSpec

__all__ = ["Finding", "Status", "check_plugin", "checks_of", "find_plugin", "findings", "run_check", "subject_of"]

Status = Literal["passed", "failed", "expected", "skipped"]

_UNEXPECTED: Final = "take it out of expected_failures"


@final
@dataclass(frozen=True)
class Finding:
    """How one check ended.

    Attributes:
        check: its name.
        status: ``passed``; ``failed``; ``expected``: it failed, as was said beforehand; ``skipped``: it does not
            concern the plugin.
        message: what was found and what is allowed, with the numbers; empty where it passed.
        reason: why it was skipped, or was expected to fail; where it passed, what it had to leave out.
        remedy: what to do about a failure.
    """

    check: str
    status: Status
    message: str = ""
    reason: str = ""
    remedy: str = ""


def checks_of(plugin: Plugin | Kind) -> tuple[Check[Any], ...]:
    """Return the checks of a plugin, or of a kind, in the order in which they run."""
    if isinstance(plugin, Plugin) and isinstance(plugin.spec, LoadedSpec):
        return checks_in(common, loaded)
    kind = plugin.kind if isinstance(plugin, Plugin) else plugin
    own = {
        "backbone": (backbones, models),
        "architecture": (architectures,),
        "constraint": (constraints,),
        "metric": (metrics,),
    }[kind]
    return checks_in(common, *own)


def find_plugin(kind: Kind, name: str, catalog: Catalog | None = None) -> Plugin:
    """Return an installed plugin.

    Raises:
        InputError: if there is none of that name, with the nearest one.
    """
    return (catalog or make_catalog()).get(kind, name)


def subject_of(
    plugin: Plugin,
    config: Config | None = None,
    catalog: Catalog | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> PluginSubject:
    """Return what the checks of a plugin look at; arguments as `check_plugin`."""
    if isinstance(plugin.spec, LoadedSpec):
        return LoadedSubject(plugin, config, catalog)
    kinds: dict[Kind, type[PluginSubject]] = {
        "backbone": BackboneSubject,
        "architecture": ArchitectureSubject,
        "constraint": ConstraintSubject,
        "metric": MetricSubject,
    }
    subject = kinds[plugin.kind](plugin, config, catalog)
    if isinstance(subject, MetricSubject):
        subject.backbone = backbone
    return subject


def run_check(check: Check[Any], subject: PluginSubject, expected: str | None = None) -> Finding:
    """Run one check.

    Args:
        check: what is to hold.
        subject: what it looks at.
        expected: reason for which it is expected to fail; it is strict, so a check that passes or is skipped has
            failed.
    """
    try:
        left_out = check(subject) or ""
    except NotCheckable as reason:
        if expected is not None:
            message = f"the check is skipped, though it was expected to fail: {reason}"
            return Finding(check.name, "failed", message, expected, _UNEXPECTED)
        return Finding(check.name, "skipped", reason=str(reason))
    except ConformanceError as error:
        message = f"{error.found}; allowed: {error.allowed}"
        if expected is not None:
            return Finding(check.name, "expected", message, expected, error.remedy)
        return Finding(check.name, "failed", message, remedy=error.remedy)
    if expected is not None:
        message = "the check passes, though it was expected to fail"
        return Finding(check.name, "failed", message, expected, _UNEXPECTED)
    return Finding(check.name, "passed", reason=left_out)


def findings(subject: PluginSubject, expected_failures: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Run the checks of a subject one by one.

    Raises:
        InputError: if an expected failure names no check, or has no reason.
    """
    listed, expected = checks_of(subject.plugin), demand_reasons(subject.plugin, expected_failures or {})
    for check in listed:
        yield run_check(check, subject, expected.get(check.name))


def demand_reasons(plugin: Plugin, expected_failures: Mapping[str, str]) -> Mapping[str, str]:
    """Return the expected failures if each names a check of the plugin and has a reason.

    Raises:
        InputError: with the nearest name.
    """
    names = [check.name for check in checks_of(plugin)]
    for name, reason in expected_failures.items():
        if name not in names:
            raise InputError(f"expected_failures: {plugin.kind}s have no check {name!r}{nearest(name, names)}")
        if not reason.strip():
            raise InputError(f"expected_failures: {name} has no reason; say why it is expected to fail")
    return expected_failures


def check_plugin(
    plugin: Plugin | str,
    config: Config | None = None,
    expected_failures: Mapping[str, str] | None = None,
    catalog: Catalog | None = None,
    backbone: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
) -> list[Finding]:
    """Run every check of a plugin.

    Args:
        plugin: as the catalog has it, or its ``type``.
        config: keys of its entry beside ``type``, or a function that makes them, given a temporary folder.
        expected_failures: name of a check to the reason for which it is expected to fail; strict.
        catalog: other plugins that it is tried with; by default all that are installed.
        backbone: for a metric, the entry of a backbone that it is tried on beside the kit's own.
        kind: of a plugin that is given by its ``type``, where several kinds have one of that name.

    Raises:
        InputError: if there is no such plugin, the configuration is not valid, or an expected failure names no check.
    """
    catalog = catalog if catalog is not None else make_catalog()
    if isinstance(plugin, str):
        plugin = catalog.find(plugin, kind)
    subject = subject_of(plugin, config, catalog, backbone)
    subject.config  # noqa: B018 - a configuration that is not valid is the caller's mistake, not the plugin's
    return list(findings(subject, expected_failures))
