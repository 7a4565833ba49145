"""Every hook has a section under its exact signature in docs/hooks.md, whose example is a plugin that works."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from saebench_core import hookspecs
from saebench_core.catalog import Catalog, make_catalog
from saebench_core.catalog.checks import HOOKS
from saebench_core.conformance import check_plugin
from tests.helpers.distributions import Site

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
PARTS = ("**Called**", "**Arguments.**", "**Returns**", "**Errors", "**Since**", "Used by the built-in")


def specified():
    """Names of the hooks that pluggy knows."""
    return [name for name, value in vars(hookspecs).items() if hasattr(value, "saebench_spec")]


def heading(name):
    """Return a hook's signature as it is written in the code."""
    signature = inspect.signature(getattr(hookspecs, name))
    parameters = ", ".join(f"{each.name}: {each.annotation}" for each in signature.parameters.values())
    return f"## {name}({parameters}) -> {signature.return_annotation}"


def section(name):
    assert PAGE.count(f"\n{heading(name)}\n") == 1, f"docs/hooks.md has no heading {heading(name)!r}"
    return PAGE.partition(f"\n{heading(name)}\n")[2].partition("\n## ")[0]


def test_headings_are_the_signatures_and_no_others():
    written = re.findall(r"^## (register_.*)$", PAGE, re.MULTILINE)
    assert [f"## {title}" for title in written] == [heading(name) for name in specified()]
    assert set(specified()) == set(HOOKS)


@pytest.mark.parametrize("name", specified())
def test_a_section_says_all_that_a_contract_has(name):
    text = section(name)
    places = [text.find(part) for part in PARTS]
    assert -1 not in places and places == sorted(places), dict(zip(PARTS, places, strict=True))
    since = re.search(r"\.\. versionadded:: (\S+)", inspect.getdoc(getattr(hookspecs, name)))[1]
    assert f"**Since** version {since}." in text
    kind, spec, config = HOOKS[name]
    assert f"`{spec.__name__}`" in text and f"`{config.__name__}`" in text
    assert f"```{{catalog}} files_{kind}\n```" in text


def test_every_hook_has_a_test():
    tested = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {f"test_hook_{name}" for name in specified()} <= tested


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Install the example of a hook's section, and return its plugin and what is installed."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.root))

    def installed(hook):
        (source,) = re.findall(r"^```python\n(.*?)^```$", section(hook), re.MULTILINE | re.DOTALL)
        made.add("example", {f"example_of_{hook}": source})
        catalog = make_catalog()
        assert catalog.failures == ()
        (plugin,) = [plugin for plugin in catalog if plugin.distribution == "example"]
        assert plugin.kind == HOOKS[hook][0]
        assert isinstance(plugin.spec, HOOKS[hook][1])
        return plugin, catalog

    yield installed
    made.forget()


def failures(plugin, catalog):
    """Return what the conformance kit has against a plugin, beside a few built-ins that it is tried with."""
    beside = [("architecture", "batch_topk"), ("constraint", "trained"), ("constraint", "frozen_decoder")]
    few = Catalog([plugin, *(catalog.get(kind, name) for kind, name in beside)], ())
    config = {"d_sae": 24} if plugin.kind == "architecture" else None
    return [each for each in check_plugin(plugin, config, catalog=few) if each.status not in ("passed", "skipped")]


def test_hook_register_backbones(example):
    assert failures(*example("register_backbones")) == []


def test_hook_register_architectures(example):
    assert failures(*example("register_architectures")) == []


def test_hook_register_constraints(example):
    assert failures(*example("register_constraints")) == []


def test_hook_register_metrics(example):
    assert failures(*example("register_metrics")) == []
