"""Single files are plugins too: the same loader, the same checks, and a digest of the content in the keys."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import saebench_core as sb
from saebench_core.api import open_registry
from saebench_core.catalog import PluginChoice, make_catalog
from tests.helpers.distributions import Site, architecture, metric
from tests.helpers.registries import call, changed, listing, plan_of, process

MINE = changed(("{type: topk, d_sae: 16}", "{type: topk, d_sae: 16}\n  - {type: mine, d_sae: 16}"))


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("SAEBENCH_LOAD_PLUGINS", "SAEBENCH_BLOCK_PLUGINS", "SAEBENCH_PLUGIN_FILES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my.py").write_text(architecture("mine"))
    (tmp_path / "registry.yaml").write_text(MINE)
    return tmp_path


def catalog_of(*paths, **options):
    return make_catalog(PluginChoice(files=tuple(paths), **options))


def test_a_file_is_a_plugin(folder):
    before = listing(folder)
    catalog = catalog_of(folder / "my.py")
    plugin = catalog.get("architecture", "mine")
    assert catalog.failures == catalog.notices == ()
    assert plugin.distribution == plugin.origin == str(folder / "my.py")
    assert plugin.path == folder / "my.py"
    assert len(plugin.version) == 12 and set(plugin.version) <= set("0123456789abcdef")
    assert plugin.spec.config(d_sae=4).type == "mine"
    assert "topk" in catalog.names("architecture")
    assert listing(folder) == before, "nothing is written beside it"


def test_a_file_is_loaded_once_and_anew_when_it_has_changed(folder):
    first = catalog_of(folder / "my.py").get("architecture", "mine")
    again = catalog_of(folder / "my.py").get("architecture", "mine")
    assert again.spec.config is first.spec.config, "isinstance holds among catalogs"
    assert again.identity() == first.identity()
    (folder / "my.py").write_text(architecture("mine").replace("a test's own", "a test's new"))
    later = catalog_of(folder / "my.py").get("architecture", "mine")
    assert later.spec.summary == "a test's new"
    assert later.version != first.version
    assert later.source_digest != first.source_digest


def test_keys_hold_the_content_and_not_the_place(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other_name.py").write_text(architecture("mine"))
    one = catalog_of(folder / "my.py").get("architecture", "mine")
    other = catalog_of(tmp_path / "elsewhere" / "other_name.py").get("architecture", "mine")
    assert one.distribution != other.distribution
    assert one.identity() == other.identity()
    (folder / "my.py").write_text(architecture("mine") + "# edited\n")
    assert catalog_of(folder / "my.py").get("architecture", "mine").identity() != one.identity()


def test_two_files_of_one_name_both_work(tmp_path):
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "plugin.py")
        paths[-1].write_text(architecture(name))
    catalog = catalog_of(*paths)
    assert catalog.failures == ()
    kinds = {name: catalog.get("architecture", name).spec.build for name in ("one", "two")}
    assert kinds["one"] is not kinds["two"]
    assert [catalog.get("architecture", name).path for name in ("one", "two")] == paths


def test_a_file_that_is_named_twice_is_loaded_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "link.py").symlink_to("my.py")
    catalog = catalog_of(Path("my.py"), folder / "my.py", Path("link.py"))
    assert catalog.failures == ()
    assert catalog.get("architecture", "mine").distribution == "my.py", "as it was given first"


def test_a_name_that_is_taken_is_refused_and_both_are_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "my.py").write_text(architecture("topk"))
    catalog = catalog_of(Path("my.py"))
    (failure,) = catalog.failures
    assert "offered by saebench-core" in failure.error
    assert "and my.py " in failure.error
    assert failure.error.endswith("--no-plugin saebench-core:architecture-topk or --no-plugin my.py")
    assert "topk" not in catalog.names("architecture")
    left_out = catalog_of(Path("my.py"), block=PluginChoice.from_environment(["my.py"]).block)
    assert left_out.get("architecture", "topk").distribution == "saebench-core"
    core_out = catalog_of(Path("my.py"), block=PluginChoice.from_environment(["saebench-core:architecture-topk"]).block)
    assert core_out.get("architecture", "topk").distribution == "my.py"


def test_files_are_loaded_though_only_some_distributions_are(folder):
    assert "mine" in catalog_of(folder / "my.py", allow=frozenset()).names("architecture")


BROKEN = {
    "import": ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
    "syntax": ("def broken(:\n", "SyntaxError"),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "no hook": ("VALUE = 1\n", "implements no hook"),
    "misspelt": (architecture("mine").replace("_architectures()", "_architecture()"), "did you mean"),
    "signature": (architecture("mine").replace("architectures()", "architectures(core)"), "cannot be passed"),
    "encoding": ("# coding: no-such-encoding\n", "unknown encoding"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_reported_and_the_rest_works(folder, case):
    source, expected = BROKEN[case]
    (folder / "broken.py").write_text(source)
    modules = set(sys.modules)
    catalog = catalog_of(folder / "broken.py", folder / "my.py")
    (failure,) = catalog.failures
    assert failure.plugin == failure.distribution == str(folder / "broken.py")
    assert expected in failure.error
    assert "\n" not in failure.error
    assert "mine" in catalog.names("architecture")
    if case in ("import", "exit"):
        assert f'File "{folder / "broken.py"}", line' in failure.details
        left = [str(sys.modules[name].__file__) for name in set(sys.modules) - modules]
        assert [Path(file).name for file in left] == ["my.py"]


def test_what_is_no_python_file_is_reported(folder):
    (folder / "my.txt").write_text("")
    (folder / "package").mkdir()
    failures = {Path(f.plugin).name: f.error for f in catalog_of(*(folder / n for n in NO_FILES)).failures}
    assert set(failures) == set(NO_FILES)
    for name, expected in NO_FILES.items():
        assert expected in failures[name]


NO_FILES = {
    "mi.py": "no such file; did you mean 'my.py'?",
    "my.txt": "a plugin file is a Python file, so its name ends in .py",
    "package": "is a folder; give a Python file, or install the package",
}


@pytest.mark.parametrize("name", NO_FILES)
def test_the_command_line_refuses_what_is_no_python_file(folder, name):
    (folder / "my.txt").write_text("")
    (folder / "package").mkdir()
    outcome = call("--plugin-file", name, "plugins", "list", cwd=folder)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"--plugin-file {name}: ")
    assert NO_FILES[name] in outcome.err


def test_the_environment_names_files(folder, monkeypatch):
    (folder / "other.py").write_text(metric("other"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SAEBENCH_PLUGIN_FILES", os.pathsep.join(["my.py", "", "other.py"]))
    catalog = make_catalog()
    assert (catalog.get("architecture", "mine").distribution, catalog.get("metric", "other").distribution) == (
        "my.py", "other.py",
    )  # fmt: skip
    assert call("validate", cwd=folder).out == "registry.yaml: 16 cells\n"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SAEBENCH_PLUGIN_FILES", "~/my.py")
    assert make_catalog().get("architecture", "mine").path == folder / "my.py"
    both = PluginChoice.from_environment(files=[Path("other.py")])
    assert [path.name for path in both.files] == ["my.py", "other.py"]


def test_the_list_shows_the_file(folder):
    document = json.loads(call("--plugin-file", "my.py", "plugins", "list", "--json", cwd=folder).out)
    (row,) = [row for row in document["plugins"] if row["name"] == "mine"]
    assert (row["kind"], row["distribution"], len(row["version"])) == ("architecture", "my.py", 12)
    assert "SAEBENCH_PLUGIN_FILES" not in os.environ
    lines = call("--plugin-file", "my.py", "plugins", "list", cwd=folder).out
    assert f"[my.py {row['version']}]" in lines
    assert "mine" not in call("plugins", "list", cwd=folder).out


def test_every_command_reads_it_and_an_edit_makes_anew_what_it_shapes(folder):
    options = ["--plugin-file", "my.py"]
    small = ["--set", "training.steps=2", "--set", "seeds=[0]"]
    refused = call("validate", cwd=folder)
    assert refused.code == 2
    assert "no architecture is called 'mine'" in refused.err
    ran = call(*options, "run", "--no-tracking", *small, cwd=folder)
    assert ran.code == 0, ran.err
    for command in (["results"], ["status"], ["report"], ["plan"], ["gc"]):
        outcome = call(*options, *command, *(small if command != ["gc"] else []), cwd=folder)
        assert outcome.code == 0, f"{command}: {outcome.err}"
    cells = json.loads(call(*options, "results", "--json", *small, cwd=folder).out)["cells"]
    assert {(cell["architecture"]["type"], cell["status"]) for cell in cells} == {("topk", "done"), ("mine", "done")}

    def waiting():
        tasks = json.loads(call(*options, "plan", "--json", *small, cwd=folder).out)["tasks"]
        return {(task["kind"], "mine" in task["label"]) for task in tasks if not task["done"]}

    assert waiting() == set()
    (folder / "my.py").write_text(architecture("mine") + "# edited\n")
    assert all(mine for kind, mine in waiting() if kind == "score")
    assert {kind for kind, _ in waiting()} == {"train", "score"}


def test_the_kit_checks_a_file(folder):
    (folder / "my.py").write_text("import mlflow\n" + metric("mine"))
    outcome = call("--plugin-file", "my.py", "plugins", "check", "my.py", "--json", cwd=folder)
    (plugin,) = json.loads(outcome.out)["plugins"]
    assert (plugin["kind"], plugin["name"], plugin["distribution"]) == ("metric", "mine", "my.py")
    checks = {check["check"]: check for check in plugin["checks"]}
    assert checks["check_building_twice"]["status"] == "passed"
    assert checks["check_import_is_light"]["status"] == "failed"
    assert "mlflow" in checks["check_import_is_light"]["message"], "the file was imported in a process of its own"
    assert outcome.code == 1


def test_an_edit_makes_anew_what_the_file_shapes_and_nothing_else(folder):
    before = plan_of(MINE, catalog_of(folder / "my.py"))
    (folder / "my.py").write_text(architecture("mine") + "# edited\n")
    after = plan_of(MINE, catalog_of(folder / "my.py"))
    moved = {
        cell.architecture.type
        for cell in after.cells
        if before.train[cell.cell_id][1].key != after.train[cell.cell_id][1].key
    }
    assert moved == {"mine"}


def test_from_python(folder):
    opened = open_registry(
        str(folder / "registry.yaml"), folder / "work", choice=PluginChoice(files=(folder / "my.py",))
    )
    assert len(opened.plan.cells) == 16


def test_from_python_by_the_environment(folder, monkeypatch):
    with pytest.raises(sb.InputError, match="'mine'"):
        sb.Registry.from_file(folder / "registry.yaml")
    monkeypatch.setenv("SAEBENCH_PLUGIN_FILES", str(folder / "my.py"))
    assert sb.Registry.from_file(folder / "registry.yaml").catalog.get("architecture", "mine").path == folder / "my.py"
    opened = open_registry(str(folder / "registry.yaml"), folder / "work")
    assert len(opened.plan.cells) == 16


def test_several_files_in_a_process_of_its_own(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "my.py").write_text(metric("other"))
    outcome = process("--plugin-file", "my.py", "--plugin-file", "sub/my.py", "plugins", "list", cwd=folder)
    assert outcome.code == 0, outcome.err
    assert "[my.py " in outcome.out
    assert f"[{Path('sub/my.py')} " in outcome.out


def test_a_file_beside_a_distribution(folder, tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    site.add("my-metric", {"file_beside": metric("mine")})
    try:
        catalog = catalog_of(folder / "my.py")
    finally:
        site.forget()
    assert catalog.failures == ()
    assert catalog.get("metric", "mine").distribution == "my-metric"
    assert catalog.get("architecture", "mine").path == folder / "my.py"


@pytest.mark.skipif(os.pathsep != ":", reason="elsewhere no file can have such a name")
def test_a_name_with_the_separator_of_paths_is_refused(folder):
    (folder / "a:b.py").write_text(architecture("other"))
    outcome = call("--plugin-file", "a:b.py", "plugins", "list", cwd=folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("--plugin-file a:b.py: ':' separates paths")
