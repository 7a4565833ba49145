"""The kit as authors use it: classes and decorator in pytest, the function, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saebench_core.catalog import Catalog
from saebench_core.conformance import (
    Check,
    ConformanceError,
    Finding,
    NotCheckable,
    check_plugin,
    checks_of,
    find_plugin,
    kit,
    run_check,
    subjects,
    testing,
)
from saebench_core.conformance.bench import Pair, raw_rows, settings
from saebench_core.conformance.kit import findings, subject_of
from saebench_core.errors import InputError
from tests.conformance.mutants.making import catalog, plugin, with_methods
from tests.helpers.distributions import Site, architecture, metric
from tests.helpers.registries import call, environment, process

BROKEN = architecture("leaky").replace("TopK(round(shape.l0))", "TopK(3)")
TESTS = """
from saebench_core.conformance import (
    ArchitectureConformance, BackboneConformance, ConstraintConformance, MetricConformance, parametrize_with_checks
)

UNEXPECTED = dict.fromkeys(("check_recipe", "check_fingerprint_is_json"), "no reason at all")


class TestSound(ArchitectureConformance):
    plugin = "sound"


class TestLeaky(ArchitectureConformance):
    plugin = "leaky"
    expected_failures = {"check_l0_is_met": "it always keeps three"}


class TestMissing(ConstraintConformance):
    plugin = "frozen_decodr"


class TestScores(MetricConformance):
    plugin = "feature_recovery"
    config = {"threshold": 0.7}
    backbone = {"type": "synthetic", "d_in": 6, "n_features": 12, "probability": {"type": "constant", "p": 0.2}}


class Base(BackboneConformance):
    pass


class TestRows(Base):
    plugin = "synthetic"

    @staticmethod
    def config(folder):
        assert not list(folder.iterdir())
        return {"d_in": 6, "n_features": 12}


@parametrize_with_checks("architecture", "leaky", expected_failures=UNEXPECTED)
def test_strict(check):
    check()


@parametrize_with_checks("architecture", "sound", expected_failures={"check_recipes": "misspelt"})
def test_misspelt(check):
    check()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("kit") / "site")
    made.add("sound-dist", {"sound_module": architecture("sound")})
    made.add("leaky-dist", {"leaky_module": BROKEN, "half": metric("half")}, {"a": "leaky_module", "b": "half"})
    made.add("dead-dist", {"dead_module": "import nothing_of_that_name"})
    return made.root


@pytest.fixture
def on_path(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    yield
    Site(site).forget()


def named(name="check_thing", function=lambda subject: None):
    return Check(name, "a thing holds", "mend the thing", function)


def raising(error):
    def function(subject):
        raise error

    return named(function=function)


def test_pytest_is_not_imported_by_the_kit():
    code = "import sys, saebench_core.conformance; print('pytest' in sys.modules, '_pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_check_has_a_name_a_summary_and_a_remedy():
    for one in catalog():
        listed = checks_of(one)
        names = [check.name for check in listed]
        assert len(set(names)) == len(names)
        for check in listed:
            assert check.name.startswith("check_")
            assert check.summary.endswith("."), check.name
            assert check.remedy
            assert not check.remedy.endswith("."), check.name


def test_how_a_check_can_end():
    subject = subject_of(find_plugin("constraint", "trained"), {}, catalog())
    assert run_check(named(), subject) == Finding("check_thing", "passed")
    skipped = run_check(raising(NotCheckable("nothing there")), subject)
    assert skipped == Finding("check_thing", "skipped", reason="nothing there")
    failed = run_check(raising(ConformanceError("3 found", "2")), subject)
    assert failed == Finding("check_thing", "failed", "3 found; allowed: 2", remedy="mend the thing")
    crashed = run_check(raising(ZeroDivisionError("by\nzero")), subject)
    assert crashed.message == "the plugin raised ZeroDivisionError: by zero; allowed: no exception here"
    expected = run_check(raising(ConformanceError("3 found", "2")), subject, "we know")
    assert (expected.status, expected.reason) == ("expected", "we know")
    strict = run_check(named(), subject, "we know")
    assert strict.status == "failed"
    assert "was expected to fail" in strict.message
    nothing = run_check(raising(NotCheckable("nothing there")), subject, "we know")
    assert (nothing.status, nothing.reason) == ("failed", "we know")
    assert "skipped, though it was expected to fail: nothing there" in nothing.message
    assert nothing.remedy == strict.remedy == "take it out of expected_failures"
    partly = run_check(named(function=lambda subject: "not tried: one"), subject)
    assert partly == Finding("check_thing", "passed", reason="not tried: one")
    with pytest.raises(KeyboardInterrupt):
        run_check(raising(KeyboardInterrupt()), subject)


def test_an_error_says_found_allowed_and_remedy():
    with pytest.raises(ConformanceError) as caught:
        raising(ConformanceError("3 found", "2"))(None)
    assert str(caught.value) == "check_thing: 3 found\nallowed: 2\nto do: mend the thing"
    with pytest.raises(ConformanceError) as caught:
        raising(ZeroDivisionError("by zero"))(None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugin_is_checked_by_object_and_by_name():
    found = check_plugin("trained", catalog=catalog(), kind="constraint")
    assert {finding.status for finding in found} == {"passed", "skipped"}
    assert [finding.check for finding in found] == [check.name for check in checks_of("constraint")]
    with pytest.raises(InputError, match="did you mean 'trained'"):
        check_plugin("traind", catalog=catalog())
    with pytest.raises(InputError, match="tau"):
        check_plugin(find_plugin("constraint", "soft_frozen_decoder"), {"tau": 3}, catalog=catalog())


class Keyed(plugin("constraint", "trained").spec.config):
    """A key that only a user knows."""

    key: str


class KeyedTopK(plugin("architecture", "topk").spec.config):
    """A key that only a user knows."""

    key: str


@pytest.mark.parametrize("broken", [False, True])
def test_a_finding_names_the_plugins_that_were_not_tried(broken):
    spec = plugin("constraint", "trained").spec
    keyed = replace(plugin("constraint", "trained"), name="keyed", spec=replace(spec, config=Keyed))
    spec = plugin("architecture", "topk").spec
    keyed_topk = replace(plugin("architecture", "topk"), name="keyed_topk", spec=replace(spec, config=KeyedTopK))
    methods = {"frozen": lambda self, inherited, roles, recipe: frozenset({"W_dce"})} if broken else {}
    trained = with_methods(plugin("constraint", "trained"), methods)
    others = Catalog([keyed, trained, keyed_topk, plugin("architecture", "pretrained")], [])
    for looked_at, name, left in (
        (trained, "check_every_architecture_is_held", "not tried, as they need keys: keyed_topk"),
        (plugin("architecture", "topk"), "check_every_constraint_holds", "not tried, as they need keys: keyed"),
    ):
        check = next(check for check in checks_of(looked_at) if check.name == name)
        finding = run_check(check, subject_of(looked_at, {}, others))
        assert finding.status == ("failed" if broken else "passed"), finding
        assert (finding.message if broken else finding.reason).endswith(left)


def test_cases_of_a_class_make_one_catalog(monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return catalog()

    for module in (testing, kit, subjects):
        monkeypatch.setattr(module, "make_catalog", counted)
    cases = {case.name: case for case in testing.cases_of("constraint", "trained")}
    cases["check_start"]()
    cases["check_adapt"]()
    assert len(made) == 1


def test_the_end_of_a_training_is_certified_before_norms_go_into_the_codes():
    architecture, constraint = plugin("architecture", "relu"), plugin("constraint", "trained")
    entry = architecture.spec.config(form="april_2024", d_sae=24)
    made = Pair(architecture, constraint, entry, constraint.spec.config()).made(settings(5))
    made.run(0, 5)
    certified, published = made.end(None)
    norms = certified.w_dec.norm(dim=1)
    assert not torch.allclose(norms, torch.ones(24))
    assert torch.allclose(published.w_dec.norm(dim=1), torch.ones(24))
    assert torch.allclose(published.reconstruct(raw_rows()), certified.reconstruct(raw_rows()), atol=1e-4)


def test_expected_failures_name_checks_and_reasons():
    subject = subject_of(find_plugin("constraint", "trained"), {}, catalog())
    with pytest.raises(InputError, match="did you mean 'check_start'"):
        next(findings(subject, {"check_strat": "why"}))
    with pytest.raises(InputError, match="check_start has no reason"):
        next(findings(subject, {"check_start": " "}))


def test_temporary_files_go_with_the_subject():
    subject = subject_of(find_plugin("constraint", "trained"), {}, catalog())
    folder = subject.new_folder()
    assert folder.is_dir()
    del subject
    assert not folder.exists()
    assert not folder.parent.exists()


def test_classes_and_decorator_in_pytest(site, tmp_path):
    (tmp_path / "test_mine.py").write_text(TESTS)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(site), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = outcomes_of(report)
    sound = {name: outcome for (group, name), outcome in outcomes.items() if group == "TestSound"}
    assert set(sound) == {check.name for check in checks_of("architecture")}
    assert set(sound.values()) == {"passed", "skipped"}
    leaky = {name: outcome for (group, name), outcome in outcomes.items() if group == "TestLeaky"}
    assert leaky == sound | {"check_l0_is_met": "xfailed"}
    (message,) = messages_of(report, "TestLeaky", "xfailed")
    assert message.startswith("it always keeps three (mean L0 3 for the target 4; allowed: ")
    assert all(messages_of(report, "TestSound", "skipped")), "each skip has a reason"
    strict = {name: outcome for (group, name), outcome in outcomes.items() if group == "test_strict"}
    failed = {"check_recipe", "check_l0_is_met", "check_fingerprint_is_json"}
    assert {name for name, outcome in strict.items() if outcome == "failed"} == failed
    assert "the check is skipped, though it was expected to fail: architectures read nothing" in done.stdout
    assert "to do: take it out of expected_failures" in done.stdout
    assert "was expected to fail" in done.stdout
    assert "to do: meet `shape.l0`" in done.stdout
    misspelt = {name: outcome for (group, name), outcome in outcomes.items() if group == "test_misspelt"}
    assert set(misspelt.values()) == {"failed"}
    assert "did you mean 'check_recipe'" in done.stdout
    assert outcomes["TestMissing", "check_is_installed"] == "failed"
    assert "did you mean 'frozen_decoder'" in done.stdout
    for group, kind in (("TestScores", "metric"), ("TestRows", "backbone")):
        found = {name: outcome for (other, name), outcome in outcomes.items() if other == group}
        assert set(found) == {check.name for check in checks_of(kind)}
        assert "failed" not in found.values()
    assert not any(group == "Base" for group, _ in outcomes)


def outcomes_of(report: Path):
    """Return the outcome of every test, by class or function, and check."""
    return {place: outcome for place, (outcome, _) in ended(report).items()}


def messages_of(report: Path, group: str, wanted: str):
    """Return what the tests of a class that ended so have said."""
    return [told for (other, _), (outcome, told) in ended(report).items() if (other, outcome) == (group, wanted)]


def ended(report: Path):
    """Return outcome and message of every test, by class or function, and check; xfail is told from skip."""
    from xml.etree import ElementTree

    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        function, _, rest = case.get("name").partition("[")
        group = case.get("classname").rpartition(".")[2]
        group = function if function != "test_conformance" else group
        outcome, message = "passed", ""
        for part in case:
            if part.tag in ("failure", "error", "skipped"):
                names = {"pytest.xfail": "xfailed", "pytest.skip": "skipped"}
                outcome, message = names.get(part.get("type"), "failed"), part.get("message")
        found[group, rest.removesuffix("]")] = (outcome, message)
    return found


def test_the_command_names_check_reason_and_remedy(site, tmp_path):
    done = process("plugins", "check", "leaky", cwd=tmp_path, site=site)
    assert done.code == 1, done.err
    lines = done.out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "FAILED" in line]
    assert lines[place].split() == ["architecture", "leaky", "check_l0_is_met", "FAILED"]
    assert "mean L0 3 for the target 4; allowed: within 2%" in lines[place + 1]
    assert lines[place + 2].strip().startswith("to do: meet `shape.l0`")
    assert sum("passed" in line for line in lines) >= 15
    assert lines[-1] == f"plugins: 1, checks: {len(checks_of('architecture'))}, failed: 1"


def test_the_command_checks_a_distribution_and_tells_what_did_not_load(on_path, tmp_path):
    done = call("plugins", "check", "Leaky_Dist", "--json", cwd=tmp_path)
    told = json.loads(done.out)
    assert (done.code, told["schema"], told["failures"]) == (1, 1, [])
    assert [(plugin["kind"], plugin["name"]) for plugin in told["plugins"]] == [
        ("architecture", "leaky"),
        ("metric", "half"),
    ]
    checks = {check["check"]: check for check in told["plugins"][0]["checks"]}
    assert {name for name, check in checks.items() if check["status"] == "failed"} == {"check_l0_is_met"}
    assert set(checks["check_l0_is_met"]) == {"check", "status", "message", "reason", "remedy"}
    dead = call("plugins", "check", "dead-dist", cwd=tmp_path)
    assert dead.code == 1
    assert "dead-dist:plugin" in dead.out
    assert "nothing_of_that_name" in dead.out
    assert "to do: mend the module" in dead.out


def test_the_commands_exit_codes(on_path, tmp_path):
    sound = call("plugins", "check", "sound-dist", cwd=tmp_path)
    assert (sound.code, sound.out.splitlines()[-1].endswith("failed: 0")) == (0, True)
    given = call("plugins", "check", "soft_frozen_decoder", "--set", "tau=0.9", cwd=tmp_path)
    assert given.code == 0, given.out
    wrong = call("plugins", "check", "soft_frozen_decoder", "--set", "tau=9", cwd=tmp_path)
    assert (wrong.code, "tau" in wrong.err) == (2, True)
    unknown = call("plugins", "check", "sounds", cwd=tmp_path)
    assert (unknown.code, "did you mean 'sound'" in unknown.err) == (2, True)
    needs = call("plugins", "check", "pretrained", cwd=tmp_path)
    assert (needs.code, "--set KEY=VALUE" in needs.err) == (2, True)
    other = call("plugins", "check", "sound", "--kind", "metric", cwd=tmp_path)
    assert (other.code, "no plugin" in other.err) == (2, True)
    many = call("plugins", "check", "leaky-dist", "--set", "d_sae=30", cwd=tmp_path)
    assert (many.code, "one plugin at a time" in many.err) == (2, True)
