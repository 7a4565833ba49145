"""The kit is tested by broken plugins: each is found by the check that is meant for it, and its sound parent passes."""

from __future__ import annotations

import functools
import importlib

import pytest

from saebench_core.catalog import Catalog, Plugin, PluginChoice, make_catalog
from saebench_core.conformance import checks_of, run_check, subject_of
from tests.conformance.mutants import of_architectures, of_backbones, of_constraints, of_metrics
from tests.conformance.mutants.making import Mutant, catalog, plugin
from tests.helpers.distributions import Site, architecture

HEAVY = "import vllm\n" + architecture("heavy")
MUTANTS = [*of_architectures.MUTANTS, *of_constraints.MUTANTS, *of_metrics.MUTANTS, *of_backbones.MUTANTS]
LABELS = [f"{mutant.plugin.kind}: {mutant.name}" for mutant in MUTANTS]


def check_of(plugin, name):
    return next(check for check in checks_of(plugin) if check.name == name)


@functools.cache
def parent_of(number):
    """The subject of a parent, shared by the mutants that were made from it with the same keys."""
    mutant = MUTANTS[number]
    for earlier in range(number):
        if (MUTANTS[earlier].parent, MUTANTS[earlier].config) == (mutant.parent, mutant.config):
            return parent_of(earlier)
    return subject_of(mutant.parent, mutant.config, catalog())


@pytest.mark.uses_global_rng(reason="some mutants draw from it; the kit puts it back")
@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=LABELS)
def test_a_mutant_is_found_and_its_parent_passes(number):
    mutant = MUTANTS[number]
    sound = run_check(check_of(mutant.parent, mutant.check), parent_of(number))
    assert sound.status == "passed", sound.message or sound.reason
    found = run_check(check_of(mutant.plugin, mutant.check), subject_of(mutant.plugin, mutant.config, catalog()))
    assert found.status == "failed", f"{mutant.check} does not find it: {found}"
    assert mutant.says in found.message
    assert found.remedy


def test_a_heavy_import_is_found(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    site.add("weighty", {"weighty": HEAVY, "vllm": "", "slim": architecture("slim")}, {})
    monkeypatch.syspath_prepend(str(site.root))
    try:
        made = {}
        for name in ("weighty", "slim"):
            module = importlib.import_module(name)
            spec = module.register_architectures()[0]
            made[name] = Plugin("architecture", name, spec, "weighty", "1.0", "")
        everything = Catalog(list(made.values()), [])
        findings = {
            name: run_check(check_of(one, "check_import_is_light"), subject_of(one, None, everything))
            for name, one in made.items()
        }
        assert findings["slim"].status == "passed"
        assert findings["weighty"].status == "failed"
        assert "importing weighty loads vllm" in findings["weighty"].message
    finally:
        site.forget()


def test_a_heavy_import_of_the_module_that_is_loaded_is_found(tmp_path, monkeypatch):
    """Its configuration comes from a module that is light."""
    site = Site(tmp_path / "site")
    moved = "import vllm\nfrom settings_of_heavy import Config\n" + architecture("heavy").replace(
        'class Config(ArchitectureConfig):\n    type: Literal["heavy"] = "heavy"\n', ""
    )
    assert "class Config" not in moved
    modules = {"heavy_entry": moved, "settings_of_heavy": architecture("heavy"), "vllm": ""}
    site.add("weighty", modules)
    site.add("slim-dist", {"slim_entry": moved.replace("import vllm\n", "")})
    monkeypatch.syspath_prepend(str(site.root))
    try:
        for chosen, says in (("weighty", "importing heavy_entry loads vllm"), ("slim-dist", "")):
            everything = make_catalog(PluginChoice(frozenset({chosen})))
            heavy = everything.get("architecture", "heavy")
            assert heavy.spec.config.__module__ == "settings_of_heavy"
            finding = run_check(check_of(heavy, "check_import_is_light"), subject_of(heavy, None, everything))
            assert (finding.status, says in finding.message) == ("failed" if says else "passed", True), finding
    finally:
        site.forget()


def test_every_check_has_a_mutant():
    meant = {(kind_of(mutant), mutant.check) for mutant in MUTANTS}
    common = {"check_import_is_light"} | {name for _, name in meant if name in common_names()}
    for kind in ("backbone", "architecture", "constraint", "metric"):
        names = {check.name for check in checks_of(kind)} - common
        assert names <= {name for other, name in meant if other == kind}, kind
    loaded = {check.name for check in checks_of(plugin("architecture", "pretrained"))} - common
    assert loaded <= {name for other, name in meant if other == "loaded"}
    assert common == common_names()


def kind_of(mutant: Mutant):
    return "loaded" if mutant.parent.name == "pretrained" else mutant.plugin.kind


def common_names():
    kinds = [{check.name for check in checks_of(kind)} for kind in ("backbone", "constraint", "metric")]
    return set.intersection(*kinds) - {"check_same_seed_same_numbers"}
