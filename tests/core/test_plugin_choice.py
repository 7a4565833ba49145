"""Which plugins are loaded: allowed and blocked distributions, and those of the core."""

from __future__ import annotations

import pytest

from saebench_core.catalog import Catalog, PluginChoice, make_catalog
from tests.helpers.distributions import CORE_ARCHITECTURES, architecture, the_failure


def origins(catalog: Catalog) -> set[str]:
    return {plugin.distribution for plugin in catalog}


@pytest.mark.parametrize(
    ("variable", "loaded"),
    [
        ("", {"saebench-core"}),
        ("one-dist", {"saebench-core", "one-dist"}),
        (" one-dist , two-dist", {"saebench-core", "one-dist", "two-dist"}),
        ("One_Dist", {"saebench-core", "one-dist"}),
        ("two-dist:plugin", {"saebench-core", "two-dist"}),
        ("two-dist:other", {"saebench-core"}),
    ],
)
def test_allow_list(site, monkeypatch, variable, loaded):
    for name in ("one", "two"):
        site.add(f"{name}-dist", {f"allow_{name}": architecture(name)})
    monkeypatch.setenv("SAEBENCH_LOAD_PLUGINS", variable)
    catalog = make_catalog()
    assert origins(catalog) == loaded
    assert set(catalog.names("architecture")) >= CORE_ARCHITECTURES


def test_a_distribution_that_is_not_admitted_is_not_even_imported(site, monkeypatch):
    site.add("broken-dist", {"never_imported": "raise SystemError('imported')\n"})
    monkeypatch.setenv("SAEBENCH_LOAD_PLUGINS", "")
    assert make_catalog().failures == ()
    monkeypatch.delenv("SAEBENCH_LOAD_PLUGINS")
    assert "imported" in the_failure(make_catalog()).error


@pytest.mark.parametrize("how", ["environment", "option", "both"])
def test_block_list(site, monkeypatch, how):
    for name in ("one", "two", "three"):
        site.add(f"{name}-dist", {f"block_{name}": architecture(name)})
    option = []
    if how != "option":
        monkeypatch.setenv("SAEBENCH_BLOCK_PLUGINS", "one-dist, TWO_dist" if how == "environment" else "one-dist")
    if how != "environment":
        option = ["two-dist:plugin"] + (["one-dist"] if how == "option" else [])
    catalog = make_catalog(PluginChoice.from_environment(option))
    assert origins(catalog) == {"saebench-core", "three-dist"}


def test_the_cores_own_can_be_blocked(site):
    catalog = make_catalog(PluginChoice(block=frozenset({"saebench-core:architecture-topk"})))
    assert set(catalog.names("architecture")) == CORE_ARCHITECTURES - {"topk"}


def test_nothing_installed_is_told():
    catalog = make_catalog(PluginChoice(block=frozenset({"saebench-core"})))
    assert list(catalog) == []
    assert "pip install -e ." in catalog.failures[0].error
