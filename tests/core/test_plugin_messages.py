"""What is said of plugins that are not there: the failure that was meant comes first, what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench_core.catalog import PluginChoice, make_catalog
from tests.helpers.distributions import architecture
from tests.helpers.registries import call


def test_of_many_failures_the_one_that_is_asked_for_is_told(site, tmp_path):
    for name in ("first", "second", "third"):
        site.add(f"{name}-dist", {f"{name}_module": f"1 +\\\n  nothing_called_{name}\n"})
    catalog = make_catalog()
    told = catalog.failed("second_dist")
    assert "second-dist:plugin: NameError: name 'nothing_called_second' is not defined" in told
    assert f"({site.root / 'second_module.py'}, line " in told
    assert "nothing_called_first" not in told and told.endswith("2 others (see: saebench plugins list)")
    assert catalog.failed("mine") == "; failed to load: 3 plugins (see: saebench plugins list)"


def test_the_line_of_the_plugin_is_told_not_that_of_a_library(site, tmp_path, monkeypatch):
    site.add("calling-dist", {"calling_module": "import json\n\njson.loads('{')\n"})
    site.add("missing-dist", {}, {"plugin": "no_module_of_this_name"})
    (tmp_path / "mine.py").write_text("x = 1\nx.nothing\n")
    monkeypatch.chdir(tmp_path)
    errors = {one.distribution: one.error for one in make_catalog(PluginChoice(files=(Path("mine.py"),))).failures}
    assert errors["calling-dist"].endswith(f"({site.root / 'calling_module.py'}, line 3)")
    assert errors["missing-dist"] == "ModuleNotFoundError: No module named 'no_module_of_this_name'"
    assert errors["mine.py"].endswith(f"({tmp_path / 'mine.py'}, line 2)")


@pytest.mark.parametrize("name", ["nosuch", "saebench-cor", "saebench-core:nosuch"])
def test_leaving_out_what_is_not_there_is_refused(tmp_path, name):
    outcome = call("--no-plugin", name, "plugins", "list", cwd=tmp_path)
    assert outcome.code == 2 and f"--no-plugin {name}: nothing installed is called so" in outcome.err
    assert "Traceback" not in outcome.err


def test_what_may_be_left_out(tmp_path):
    (tmp_path / "mine.py").write_text(architecture("mine"))
    for name in ("saebench-core:architecture-topk", "Saebench_Core:architecture_topk,mine.py"):
        outcome = call("--plugin-file", "mine.py", "--no-plugin", name, "plugins", "list", cwd=tmp_path)
        assert outcome.code == 0 and " topk " not in outcome.out


def test_an_unknown_key_gets_the_nearest_and_all(tmp_path):
    outcome = call("plugins", "check", "angular_band", "--set", "leest=0.1", cwd=tmp_path)
    assert outcome.code == 2
    assert "there is no key 'leest'; did you mean 'least'?; keys: " in outcome.err
    assert "least, most" in outcome.err and "Extra inputs" not in outcome.err
