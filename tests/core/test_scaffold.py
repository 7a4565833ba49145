"""`saebench plugins new`: what it writes installs without a network and passes its own tests at once."""

from __future__ import annotations

import ast
import builtins
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from saebench_core import __version__
from saebench_core.catalog.requirements import check_core_version
from saebench_core.errors import InputError
from saebench_core.scaffold import KINDS, names_of, write_distribution, writing
from tests.helpers.distributions import Site, architecture
from tests.helpers.registries import call, environment, listing

ROOT = Path(__file__).parents[2]
HOOKS = {kind: f"register_{kind}s" for kind in KINDS}
SMALL = ("--set", "training.steps=20", "--set", "seeds=[0]")


def files_of(kind, package):
    return {
        "README.md", "pyproject.toml", "registry.yaml", ".gitignore", f"tests/test_{kind}.py",
        f"src/{package}/__init__.py", f"src/{package}/py.typed", f"src/{package}/{kind}.py",
    }  # fmt: skip


def install(folder, target):
    """Install a distribution into a folder, as pip does it without a network."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", target, folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def own_tests(folder, target, *options):
    """Run a distribution's tests in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(target))


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A distribution of each kind, written and installed."""
    folder = tmp_path_factory.mktemp("made")
    outcome = call("plugins", "new", f"my-{request.param}-x", "--kind", request.param, cwd=folder)
    assert outcome.code == 0, outcome.err
    install(folder / f"my-{request.param}-x", folder / "target")
    return request.param, folder, outcome


def test_what_is_written_passes_its_own_tests(made):
    kind, folder, _ = made
    done = own_tests(folder / f"my-{kind}-x", folder / "target")
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 15, "the kit has run"
    assert "failed" not in done.stdout


def test_it_runs_at_once(made, monkeypatch):
    kind, folder, _ = made
    package, site = f"my_{kind}_x", Site(folder / "target")
    monkeypatch.syspath_prepend(str(site.root))
    try:
        outcome = call("run", "--no-tracking", *SMALL, cwd=folder / f"my-{kind}-x")
        listed = call("plugins", "list", cwd=folder)
        informed = call("plugins", "info", package, cwd=folder)
    finally:
        site.forget()
    assert outcome.code == 0, outcome.err
    assert (informed.code, informed.out.splitlines()[0]) == (0, f"{kind} {package}: {KINDS[kind]}")
    (line,) = [line for line in listed.out.splitlines() if package in line]
    assert line.split()[:2] == [kind, package]
    assert line.endswith(f"{KINDS[kind]}  [my-{kind}-x 0.1.0]")
    assert listed.err == ""


def test_the_floor_of_the_metric_lies_below_its_twins(tmp_path, monkeypatch):
    """What the example shows can be read: rows that are zero count for nobody, so no guess is better than a twin."""
    folder = write_distribution("my-floor", "metric", tmp_path).folder
    install(folder, tmp_path / "target")
    site = Site(tmp_path / "target")
    monkeypatch.syspath_prepend(str(site.root))
    try:
        changes = ("--set", "training.steps=300", "--set", "seeds=[0]")
        outcome = call("run", "--no-tracking", *changes, cwd=folder)
        told = call("results", "--json", *changes, cwd=folder)
    finally:
        site.forget()
    assert outcome.code == 0, outcome.err
    cells = {
        cell["constraint"]["type"]: cell["metrics"]["my_floor/close_rows"] for cell in json.loads(told.out)["cells"]
    }
    assert set(cells) == {"trained", "frozen_decoder", "untrained"}
    assert {score["floor"] for score in cells.values()} == {0.0}
    assert cells["trained"]["value"] > max(cells["frozen_decoder"]["value"], cells["untrained"]["value"])
    assert 0.9 < cells["trained"]["ceiling"] < 1.0, "some rows of the toy are zero"


def test_the_commands_that_it_names(made):
    kind, folder, outcome = made
    name, package = f"my-{kind}-x", f"my_{kind}_x"
    written, following = outcome.out.split("next:\n")
    assert written.splitlines()[0] == f"wrote {name}:"
    assert {line.strip() for line in written.splitlines()[1:]} == files_of(kind, package)
    commands = [line.strip() for line in following.splitlines()]
    assert commands == [
        f"cd {name}", "pip install -e '.[test]'", "pytest", f"saebench plugins info {package}", "saebench run",
    ]  # fmt: skip
    readme = (folder / name / "README.md").read_text()
    assert all(f"$ {command}\n" in readme for command in commands[1:])
    project = tomllib.loads((folder / name / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["saebench"] == {f"{kind}-{name}": f"{package}.{kind}"}
    assert "pytest" in project["optional-dependencies"]["test"][0]
    major, minor, _ = __version__.split(".")
    assert project["dependencies"] == [f"saebench-core>={major}.{minor},<{major}.{int(minor) + 1}", "pydantic", "torch"]
    assert project["keywords"] == ["saebench-plugin"]


def test_it_installs_as_a_checkout_with_what_the_core_is_built_with(tmp_path):
    """``pip install --no-build-isolation -e .`` needs hatchling, and nothing that this environment lacks."""
    folder = write_distribution("my-editable", "constraint", tmp_path).folder
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], capture_output=True)
    assert made.returncode == 0, made.stderr
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (purelib,) = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split()
    (Path(purelib) / "base.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in sys.path if p))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-index", "--no-build-isolation", "-e", f"{folder}[test]"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    module = folder / "src" / "my_editable" / "constraint.py"
    module.write_text(module.read_text().replace(KINDS["constraint"], "Edited in place"))
    code = "from saebench_core.catalog import make_catalog; print(make_catalog().find('my_editable').spec.summary)"
    seen = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment())
    assert seen.stdout == "Edited in place\n", seen.stderr


def test_its_tests_fail_when_the_example_is_broken(tmp_path):
    """The tests that are written are worth something: they find a rule that says other values than it selects."""
    folder = write_distribution("my-broken", "architecture", tmp_path).folder
    install(folder, tmp_path / "target")
    module = tmp_path / "target" / "my_broken" / "architecture.py"
    text = module.read_text()
    assert text.count("rows - rows.amin(dim=1, keepdim=True)") == 1
    module.write_text(text.replace("rows - rows.amin(dim=1, keepdim=True)", "1 + rows * rows"))
    done = own_tests(folder, tmp_path / "target", "-k", "values or scale_folds or recipe")
    assert done.returncode == 1
    assert "FAILED tests/test_architecture.py::test_values_are_what_stands_above_the_next_largest" in done.stdout
    assert "FAILED tests/test_architecture.py::TestConformance::test_conformance[check_scale_folds]" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_tidy(kind, tmp_path):
    folder = write_distribution("My.Sae_2", kind, tmp_path / "new" / "place").folder
    assert folder == tmp_path / "new" / "place" / "my-sae-2"
    assert set(listing(folder)) == files_of(kind, "my_sae_2")
    source = (folder / "src" / "my_sae_2" / f"{kind}.py").read_text()
    assert f"def {HOOKS[kind]}() -> list[" in source
    assert 'type: Literal["my_sae_2"] = "my_sae_2"' in source
    assert "class MySae2(" in source
    assert not [path for path in folder.rglob("*") if path.is_file() and ("{{" in (t := path.read_text()) or "{%" in t)]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    ruff = [sys.executable, "-m", "ruff"]
    own = ["--isolated", "--line-length", "120"]
    for command in (
        [*ruff, "check", *own, "--select", "E,F,W,I,UP,B,RUF,SIM", "."],
        [*ruff, "format", *own, "--check"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def known_types(tmp_path_factory):
    """What mypy has found out about the packages that all kinds import: it takes a minute."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_typed(kind, tmp_path, known_types):
    folder = write_distribution("my-typed", kind, tmp_path).folder
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(known_types), "src", "tests"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(folder / "src"))
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_the_templates():
    packed = {Path(file.distribution_path).as_posix() for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "saebench_core" / "scaffold").rglob("*.j2")}
    assert len(templates) >= 4 + 2 * len(KINDS)
    assert templates <= packed


@pytest.mark.parametrize(
    ("given", "distribution", "package", "camel"),
    [
        ("my-sae", "my-sae", "my_sae", "MySae"),
        ("My_SAE", "my-sae", "my_sae", "MySae"),
        ("a.b--c", "a-b-c", "a_b_c", "ABC"),
        ("x2", "x2", "x2", "X2"),
    ],
)
def test_names_follow_from_one(given, distribution, package, camel):
    names = names_of(given)
    assert (names.distribution, names.package, names.camel) == (distribution, package, camel)


BAD_NAMES = {
    "2sae": "a letter first",
    "-sae": "cannot be the name",
    "sae-": "cannot be the name",
    "my sae": "cannot be the name",
    "../sae": "cannot be the name",
    "ümlaut": "cannot be the name",
    "": "cannot be the name",
    "sae\n": "cannot be the name",
    "a" * 41: "give at most 40",
    "class": "a word of Python itself; choose another name, such as class-sae",
    "match": "a word of Python itself",
    "json": "a package json is installed already",
    "torch": "a package torch is installed already",
    "saebench-core": "a package saebench_core is installed already",
    "TopK": "an installed architecture is called 'topk' already",
    "batch-topk": "an installed architecture is called 'batch_topk' already",
    "batch--topk": "an installed architecture is called 'batch_topk' already",
    "Batch-_.topk": "an installed architecture is called 'batch_topk' already",
}


@pytest.mark.parametrize("given", BAD_NAMES)
def test_a_name_that_cannot_be_used_is_refused(given, tmp_path):
    outcome = call("plugins", "new", "--kind", "architecture", "--", given, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert BAD_NAMES[given] in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_taken_for_its_kind_only(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    site.add("other-dist", {"scaffold_other": architecture("my_sae")})
    try:
        refused = call("plugins", "new", "my-sae", "--kind", "architecture", cwd=tmp_path)
        made = call("plugins", "new", "my-sae", "--kind", "metric", cwd=tmp_path)
    finally:
        site.forget()
    assert refused.code == 2
    assert "an installed architecture is called 'my_sae' already" in refused.err
    assert made.code == 0, made.err


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "my-sae").mkdir()
    (tmp_path / "my-sae" / "mine").write_text("mine")
    (tmp_path / "gone-sae").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    for name, options, words in (
        ("my-sae", [], "my-sae: is there already"),
        ("My_Sae", [], "my-sae: is there already"),
        ("gone-sae", [], "gone-sae: is there already"),
        ("new-sae", ["--directory", "file"], "--directory file: is no folder"),
        ("new-sae", ["--directory", "file/below"], "--directory file/below: is no folder"),
        ("new-sae", ["--directory", "/proc/below"], "--directory /proc/below: cannot be written to"),
        ("new-sae", ["--kind", "architectur"], "'architectur' is no kind of plugin; did you mean 'architecture'?"),
    ):
        outcome = call("plugins", "new", name, "--kind", "metric", *options, cwd=tmp_path)
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert words in outcome.err
    assert listing(tmp_path) == before
    missing = call("plugins", "new", "my-other", cwd=tmp_path)
    assert missing.code == 2
    assert "--kind" in missing.err


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    outcome = call("plugins", "new", "my-sae", "--kind", "metric", cwd=tmp_path)
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ("0.1.0", ">=0.1,<0.2"),
        ("1.4.2", ">=1.4,<1.5"),
        ("0.2.0.dev3", ">=0.2.0.dev3,<0.3"),
        ("2.0rc1", ">=2.0rc1,<2.1"),
    ],
)
def test_it_asks_for_a_core_that_this_one_is(installed, wanted):
    assert writing._wanted_core(installed) == wanted
    assert check_core_version("mine", [f"saebench-core{wanted}"], installed) is None


HIDING = {"tensor": "Tensor", "mapping": "Mapping", "field": "Field", "none": "None", "runtime-error": "RuntimeError"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_classes_hide_nothing(kind, tmp_path):
    for given, name in (HIDING | {"test-conformance": "TestConformance"}).items():
        written = write_distribution(given, kind, tmp_path)
        defined, used = set(), set()
        for path in written.folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    defined.add(node.name)
                if isinstance(node, ast.ImportFrom) and not node.module.startswith(written.names.package):
                    used |= {alias.asname or alias.name for alias in node.names}
        assert any(each.startswith(written.names.camel) for each in defined)
        assert not defined & (used | set(dir(builtins)))
        assert written.names.camel in {name, f"{name}{kind.capitalize()}"}


def test_a_class_that_would_hide_an_import_has_the_kind_in_its_name(tmp_path):
    folder = write_distribution("tensor", "architecture", tmp_path).folder
    install(folder, tmp_path / "target")
    done = own_tests(folder, tmp_path / "target", "-k", "values or scale_folds or recipe")
    assert done.returncode == 0, done.stdout
    assert "class TensorArchitecture(sb.Architecture)" in (folder / "src" / "tensor" / "architecture.py").read_text()


def test_unknown_kinds_are_refused_from_python_too(tmp_path):
    with pytest.raises(InputError, match="kinds: architecture, constraint, metric, backbone"):
        write_distribution("my-sae", "rule", tmp_path)
    assert list(tmp_path.iterdir()) == []
