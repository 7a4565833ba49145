"""The kit in pytest: base classes and a decorator. pytest is imported where they are used, not before."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, final

from saebench_core.catalog import make_catalog
from saebench_core.conformance.kit import checks_of, demand_reasons, find_plugin, run_check, subject_of
from saebench_core.conformance.subjects import Config, PluginSubject
from saebench_core.errors import SaebenchError
from saebench_core.interfaces.entry import Kind

__all__ = [
    "ArchitectureConformance",
    "BackboneConformance",
    "Case",
    "ConstraintConformance",
    "MetricConformance",
    "cases_of",
    "parametrize_with_checks",
]

F = TypeVar("F", bound=Callable[..., None])


@final
class Case:
    """One check of one plugin, to be called in a test."""

    def __init__(self, name: str, subject: Callable[[], PluginSubject], expected: Mapping[str, str]) -> None:
        self.name = name
        self._subject = subject
        self._expected = expected

    def __repr__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Run the check; skip the test where it has nothing to look at, xfail where it was expected to fail."""
        pytest = importlib.import_module("pytest")
        subject = self._subject()
        expected = demand_reasons(subject.plugin, self._expected).get(self.name)
        check = next(check for check in checks_of(subject.plugin) if check.name == self.name)
        finding = run_check(check, subject, expected)
        if finding.status == "skipped":
            pytest.skip(finding.reason)
        if finding.status == "expected":
            pytest.xfail(f"{finding.reason} ({finding.message})")
        if finding.status == "failed":
            lines = [f"{subject.plugin.kind} {subject.plugin.name}: {finding.check}", finding.message]
            lines += [f"expected to fail: {finding.reason}"] if finding.reason else []
            pytest.fail("\n".join([*lines, f"to do: {finding.remedy}"]), pytrace=False)


def cases_of(
    kind: Kind,
    plugin: str,
    config: Config | None = None,
    expected_failures: Mapping[str, str] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> list[Case]:
    """Return the checks of an installed plugin as callables that share what is made of it once.

    A plugin that is not installed has one case, which fails with the reason.
    """
    expected = expected_failures or {}
    catalog = make_catalog()

    @functools.cache
    def subject() -> PluginSubject:
        return subject_of(find_plugin(kind, plugin, catalog), config, catalog, backbone)

    try:
        names = [check.name for check in checks_of(find_plugin(kind, plugin, catalog))]
        names += [name for name in expected if name not in names]  # so that a misspelt one fails
    except SaebenchError:
        names = ["check_is_installed"]
    return [Case(name, subject, expected) for name in names]


def parametrize_with_checks(
    kind: Kind,
    plugin: str,
    config: Config | None = None,
    expected_failures: Mapping[str, str] | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Parametrise a test over the checks of an installed plugin; the test takes ``check`` and calls it.

    Args:
        kind: of the plugin.
        plugin: its ``type``.
        config: keys of its entry beside ``type``, or a function that makes them, given a temporary folder.
        expected_failures: name of a check to the reason for which it is expected to fail; strict.
        backbone: for a metric, the entry of a backbone that it is tried on beside the kit's own.
    """
    cases = cases_of(kind, plugin, config, expected_failures, backbone)
    mark = importlib.import_module("pytest").mark
    marked: Callable[[F], F] = mark.parametrize("check", cases, ids=[case.name for case in cases])
    return marked


class _Conformance:
    """Base of the test classes: a class that names its plugin has a test for each check.

    Attributes:
        kind: of the plugin.
        plugin: its ``type``.
        config: keys of its entry beside ``type``, or a static method that makes them, given a temporary folder.
        expected_failures: name of a check to the reason for which it is expected to fail; strict.
    """

    kind: ClassVar[Kind]
    plugin: ClassVar[str] = ""
    config: ClassVar[Config] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}
    backbone: ClassVar[Mapping[str, Any] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.plugin:
            return

        def test_conformance(self: _Conformance, check: Case) -> None:
            check()

        marked = parametrize_with_checks(cls.kind, cls.plugin, cls.config, cls.expected_failures, cls.backbone)
        setattr(cls, "test_conformance", marked(test_conformance))  # noqa: B010 - each class has its own parameters


class BackboneConformance(_Conformance):
    """Tests of a backbone."""

    kind = "backbone"


class ArchitectureConformance(_Conformance):
    """Tests of an architecture, trained or loaded."""

    kind = "architecture"


class ConstraintConformance(_Conformance):
    """Tests of a constraint."""

    kind = "constraint"


class MetricConformance(_Conformance):
    """Tests of a metric.

    Attributes:
        backbone: entry of a backbone that it is tried on beside the kit's own, such as ``{"type": "synthetic"}``.
    """

    kind = "metric"
