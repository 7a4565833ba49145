"""Plugins and cores of different versions: what is refused, what works and is told, and how hooks may change."""

from __future__ import annotations

import sys
import warnings

import pluggy
import pytest

from saebench_core import __version__
from saebench_core.catalog import Hooks, PluginChoice, make_catalog
from saebench_core.catalog.requirements import check_core_version
from saebench_core.errors import PluginError
from tests.helpers.distributions import architecture, metric, the_failure


def test_a_distribution_that_needs_a_newer_core_is_refused_before_it_is_imported(site):
    newer = ["numpy", "saebench-core>=9,<10"]
    site.add("broken-dist", {"needs_newer": "raise SystemError('imported')\n"}, version="0.9", requires=newer)
    site.add("good-dist", {"needs_this": architecture("good")}, requires=[f"saebench-core>={__version__}"])
    catalog = make_catalog()
    failure = the_failure(catalog)
    assert failure.error == (
        f"needs saebench-core<10,>=9, installed is {__version__}: upgrade it (pip install --upgrade "
        f"'saebench-core<10,>=9'), or install a version of broken-dist for {__version__}"
    )
    assert "needs_newer" not in sys.modules
    assert "good" in catalog.names("architecture")
    assert catalog.notices == ()


@pytest.mark.parametrize(
    ("requires", "answer"),
    [
        ([], None),
        (["saebench-core"], None),
        (["Saebench_Core>=1.0"], None),
        (["saebench-core>=1.2"], None),
        (["saebench-core>=1.3"], "refused"),
        (["saebench-core>1.2"], "refused"),
        (["saebench-core~=1.3"], "refused"),
        (["saebench-core==1.3.*"], "refused"),
        (["saebench-core==2"], "refused"),
        (["saebench-core>=1.3; python_version < '3'"], None),
        (["saebench-core>=1.3; extra == 'new'"], None),
        (["saebench-core-extras>=9", "not a requirement at all"], None),
        (["saebench-core>=1.0,<1.2"], "notice"),
        (["saebench-core==1.1"], "notice"),
        (["saebench-core!=1.2"], "notice"),
        (["saebench-core<1.2", "saebench-core>=1.3"], "refused"),
        (["saebench-core>=1.3", "saebench-core<1.2"], "refused"),
        (["saebench-core<1.2", "saebench-core<1.1"], "notice"),
        (["saebench-core===some.build"], "notice"),
        (["saebench-core===some.build", "saebench-core>=1.3"], "refused"),
    ],
)
def test_which_requirements_are_met_by_core_1_2(requires, answer):
    if answer == "refused":
        with pytest.raises(PluginError, match=r"needs saebench-core.*, installed is 1\.2: upgrade it"):
            check_core_version("some-dist", requires, "1.2")
        return
    notice = check_core_version("some-dist", requires, "1.2")
    assert (notice is not None) is (answer == "notice")
    if notice:
        assert notice.startswith("was made for saebench-core")
        assert notice.endswith(", installed is 1.2: look for a newer version of some-dist")


def test_a_distribution_that_was_made_for_an_older_core_works_and_has_a_notice(site):
    modules = {"made_for_older": architecture("mine") + metric("mine").replace("Config", "Other")}
    modules["made_for_older"] = modules["made_for_older"].replace("MetricOther", "MetricConfig")
    site.add("old-dist", modules, version="3", requires=["saebench-core<0.1"])
    catalog = make_catalog()
    assert catalog.failures == ()
    (notice,) = catalog.notices
    assert (notice.plugin, notice.distribution, notice.version) == ("old-dist:plugin", "old-dist", "3")
    assert notice.text.startswith(f"was made for saebench-core<0.1, installed is {__version__}")
    assert catalog.get("metric", "mine").notices == catalog.get("architecture", "mine").notices == (notice.text,)


mark = pluggy.HookspecMarker("saebench")


class Later:
    """The hooks of a later version: one is deprecated, one has gained an argument and is to lose another."""

    @mark(warn_on_impl=DeprecationWarning("register_metrics goes in 0.9;\n offer scores instead"))
    def register_metrics(self):
        pass

    @mark(warn_on_impl_args={"settings": DeprecationWarning("the argument settings goes in 0.9")})
    def register_architectures(self, settings, core):
        pass


LATER = {
    "fewer arguments": (architecture("mine"), [], "a test's own"),
    "the new argument": (
        architecture("mine").replace("architectures()", "architectures(core)").replace('"a test\'s own"', "core"),
        [],
        "the core",
    ),
    "a deprecated argument": (
        architecture("mine").replace("architectures()", "architectures(settings, core)").replace(
            '"a test\'s own"', "core + settings"
        ),
        ["the argument settings goes in 0.9"],
        "the core and settings",
    ),
    "a deprecated hook": (metric("mine"), ["register_metrics goes in 0.9; offer scores instead"], "a test's own"),
}  # fmt: skip


@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_hooks_may_grow_and_be_deprecated(site, case, filters):
    source, notices, summary = LATER[case]
    site.add("old-dist", {f"later_{list(LATER).index(case)}": source}, version="2")
    hooks = Hooks(Later, {"settings": " and settings", "core": "the core"})
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        catalog = make_catalog(PluginChoice(frozenset({"old-dist"}), frozenset({"saebench-core"})), hooks)
    assert catalog.failures == ()
    (plugin,) = catalog
    assert plugin.spec.summary == summary
    assert [(notice.plugin, notice.text) for notice in catalog.notices] == [("old-dist:plugin", n) for n in notices]
    assert list(plugin.notices) == notices


def test_a_hook_of_a_later_version_is_told_from_a_misspelt_one_by_name(site):
    later = architecture("mine").replace("def register_architectures():", "def register_objectives():")
    site.add("broken-dist", {"later_hook": later})
    assert the_failure(make_catalog()).error.startswith("unknown hook 'register_objectives'")
