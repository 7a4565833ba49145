"""A stranger's distribution with a plugin of each kind, built as a wheel, installed and used as anyone would."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import saebench_core
from tests.helpers import wheels
from tests.helpers.registries import built_in

ROOT = Path(__file__).parents[2]
GARDEN = Path(__file__).parent / "saebench-garden"
SAEBENCH = Path(sys.executable).with_name("saebench")
OFFERED = {
    ("backbone", "toy_model"),
    ("architecture", "learned_k"),
    ("constraint", "shuffled_decoder"),
    ("metric", "coherence"),
}
CROSSING = """\
name: crossing
backbones:
  - {{type: toy_model, n_features: 12, d_hidden: 6, steps: 50}}
architectures:
{architectures}
constraints:
{constraints}
l0: [2]
seeds: [0]
training: {{steps: 30, batch_size: 64, calibration_rows: 256, evaluation_rows: 256}}
metrics:
  - {{type: coherence, rows: 128}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheels.build(GARDEN, tmp_path_factory.mktemp("garden"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder in which the wheel is installed, for the path of other processes."""
    folder = tmp_path_factory.mktemp("installed")
    wheels.install(wheel, "--target", folder / "site", cwd=folder)
    return folder / "site"


@pytest.fixture(scope="module")
def world(site, tmp_path_factory):
    """The distribution's own registry after its run."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(GARDEN / "registry.yaml", folder)
    outcome = wheels.run(SAEBENCH, "run", "registry.yaml", cwd=folder, check=False, PYTHONPATH=str(site))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return SimpleNamespace(folder=folder, out=outcome.stdout, cells=results(folder, site))


def results(folder, site, registry="registry.yaml"):
    told = wheels.run(SAEBENCH, "results", registry, "--json", cwd=folder, PYTHONPATH=str(site)).stdout
    return json.loads(told)["cells"]


def lines(types, more=""):
    return "\n".join(f"  - {{type: {name}{more}}}" for name in types)


def without_required_keys(kind):
    """Names of the built-in plugins that a registry can name without further keys."""
    return [
        plugin.name
        for plugin in built_in().of_kind(kind)
        if not any(field.is_required() for field in plugin.spec.config.model_fields.values())
    ]


def test_the_wheel_has_what_a_typed_plugin_needs(wheel):
    assert wheel.name == "saebench_garden-1.2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"saebench_garden/{name}" for name in ("py.typed", "toy_model.py", "learned_k.py")} <= names
    assert "saebench_garden-1.2.0.dist-info/entry_points.txt" in names
    assert not any("test" in name for name in names)


def test_it_knows_public_names_only():
    for path in sorted(GARDEN.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("saebench") for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saebench_core"):
                conformance = path.is_relative_to(GARDEN / "tests") and node.module == "saebench_core.conformance"
                assert node.module == "saebench_core" or conformance, f"{path.name}: {node.module}"
                module = importlib.import_module(node.module)
                assert {alias.name for alias in node.names} <= set(module.__all__), path.name


def test_it_is_listed_beside_the_built_ins(site, tmp_path):
    told = wheels.run(SAEBENCH, "plugins", "list", "--json", cwd=tmp_path, PYTHONPATH=str(site)).stdout
    listing = json.loads(told)
    assert listing["failures"] == []
    mine = {(each["kind"], each["name"]) for each in listing["plugins"] if each["distribution"] == "saebench-garden"}
    assert mine == OFFERED
    assert {each["version"] for each in listing["plugins"] if each["distribution"] == "saebench-garden"} == {"1.2.0"}
    core = {(each["kind"], each["name"]) for each in listing["plugins"] if each["distribution"] == "saebench-core"}
    assert core == {(plugin.kind, plugin.name) for plugin in built_in()}


def test_every_cell_is_done_beside_built_ins(world):
    assert [cell["status"] for cell in world.cells] == ["done"] * 12
    for cell in world.cells:
        scores = set(cell["metrics"])
        assert {"coherence/closest", "coherence/together", "feature_recovery/mean", "reconstruction/l0"} <= scores
        silent = {name for name, value in cell["metrics"].items() if value["status"] != "ok"}
        assert all("_group_" in name for name in silent), "only frequency groups need frequencies that differ"
    assert "coherence/together" in world.out, "its headline score is in the table"


def test_twins_share_draw_and_batches(world):
    groups = {}
    for cell in world.cells:
        groups.setdefault((cell["backbone"]["name"], cell["architecture"]["type"]), []).append(cell["certificate"])
    assert sorted(map(len, groups.values())) == [3] * 4
    for twins in groups.values():
        for key in ("base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256"):
            (shared,) = {certificate[key] for certificate in twins}
            assert len(shared) == 64


def test_what_is_frozen_has_equal_hashes_and_the_shuffle_can_be_undone(world):
    trained = {
        (cell["backbone"]["name"], cell["architecture"]["type"]): cell
        for cell in world.cells
        if cell["constraint"]["type"] == "trained"
    }
    for cell in world.cells:
        frozen = cell["certificate"]["frozen"]
        assert all(hashes["before"] == hashes["after"] for hashes in frozen.values())
        if cell["constraint"]["type"] == "frozen_decoder":
            assert set(frozen) == {"W_dec"}
        if cell["constraint"]["type"] == "shuffled_decoder":
            twin = trained[cell["backbone"]["name"], cell["architecture"]["type"]]
            assert cell["certificate"]["unshuffled_w_dec_sha256"] == cell["certificate"]["twin"]["W_dec"]
            assert cell["metrics"]["reconstruction/l0"]["value"] == twin["metrics"]["reconstruction/l0"]["value"]
            assert cell["metrics"]["feature_recovery/mean"]["valid_null"] is True


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own
def test_mlflow_holds_distribution_and_version(world):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{world.folder / '.saebench' / 'mlflow' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.data.tags.get("saebench.cell_id"): run.data.tags for run in client.search_runs(experiments)}
    for cell in world.cells:
        tags = runs[cell["cell_id"]]
        for kind in ("backbone", "architecture", "constraint"):
            mine = (kind, cell[kind]["type"]) in OFFERED
            expected = "saebench-garden 1.2.0" if mine else f"saebench-core {saebench_core.__version__}"
            assert tags[f"saebench.plugin.{kind}"] == expected
        assert tags["saebench.plugin.metric.coherence"] == "saebench-garden 1.2.0"
        assert tags["saebench.plugin.metric.reconstruction"] == f"saebench-core {saebench_core.__version__}"


def test_every_constraint_holds_its_sae_and_its_constraint_every_architecture(site, tmp_path):
    constraints = without_required_keys("constraint")
    architectures = without_required_keys("architecture")
    assert {"frozen_encoder", "random_codes"} <= set(constraints) and {"topk", "gated"} <= set(architectures)
    text = {
        "its_sae": CROSSING.format(architectures=lines(["learned_k"], ", d_sae: 12"), constraints=lines(constraints)),
        "its_constraint": CROSSING.format(
            architectures=lines(architectures, ", d_sae: 12"), constraints=lines(["trained", "shuffled_decoder"])
        ),
    }
    cells = {}
    for name, registry in text.items():
        (tmp_path / f"{name}.yaml").write_text(registry)
        command = (SAEBENCH, "run", f"{name}.yaml", "--no-tracking")
        outcome = wheels.run(*command, cwd=tmp_path, check=False, PYTHONPATH=str(site))
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        cells[name] = results(tmp_path, site, f"{name}.yaml")
    frozen = {cell["constraint"]["type"]: set(cell["certificate"]["frozen"]) for cell in cells["its_sae"]}
    assert set(frozen) == set(constraints)
    assert frozen["frozen_decoder"] == {"W_dec"}
    assert frozen["frozen_encoder"] == {"W_enc", "b_enc"}, "the price decides what fires, so it is trained"
    assert {(cell["architecture"]["type"], cell["constraint"]["type"]) for cell in cells["its_constraint"]} == {
        (architecture, constraint) for architecture in architectures for constraint in ("trained", "shuffled_decoder")
    }
    for cell in cells["its_sae"] + cells["its_constraint"]:
        hashes = cell["certificate"]["frozen"].values()
        assert cell["status"] == "done" and all(each["before"] == each["after"] for each in hashes)


def test_the_commands_of_its_page_work(world, site):
    page = (ROOT / "docs" / "writing_a_plugin.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).splitlines()
    assert commands[0] == "pip install .", "what the fixture has done"
    assert {words.split()[1] for words in commands[1:]} == {"plugins", "plan", "run", "results", "report"}
    for words in commands[1:]:
        name, *arguments = words.split()
        assert name == "saebench"
        wheels.run(SAEBENCH, *arguments, cwd=world.folder, PYTHONPATH=str(site))


def own_tests(folder):
    """Copy what its author has beside the package, so that no conftest of this checkout is near."""
    shutil.copytree(GARDEN / "tests", folder / "tests")
    shutil.copy(GARDEN / "pyproject.toml", folder)
    return folder


def test_its_own_tests_pass(site, tmp_path):
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    told = wheels.run(*command, cwd=own_tests(tmp_path), PYTHONPATH=str(site)).stdout
    assert int(told.split(" passed")[0].split()[-1]) >= 70, "the kit has run on all four, and its numbers are checked"


def check_types(folder, python, **environment):
    command = (sys.executable, "-m", "mypy", "--strict", "--config-file", GARDEN / "pyproject.toml")
    packages = ("--python-executable", python, "--cache-dir", folder / "cache", "-p", "saebench_garden")
    return wheels.run(*command, *packages, cwd=folder, check=False, **environment)


@pytest.mark.slow
def test_its_types_are_right(site, tmp_path):
    outcome = check_types(tmp_path, sys.executable, MYPYPATH=str(site))
    assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stdout
    wrong = tmp_path / "wrong"
    shutil.copytree(site / "saebench_garden", wrong / "saebench_garden")
    path = wrong / "saebench_garden" / "learned_k.py"
    path.write_text(path.read_text().replace("Recipe(rule, ", "Recipe(3, "))
    assert (
        'incompatible type "int"; expected "Rule"' in check_types(tmp_path, sys.executable, MYPYPATH=str(wrong)).stdout
    )


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """An environment with both wheels, and the libraries of this one beside them; the checkout is not on its path."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    parts = ("pyproject.toml", "README.md", "LICENSE", "saebench_core", "plugins")
    core = wheels.build(ROOT, folder / "core", *parts)
    for each in (core, wheel):
        wheels.install(each, "--python", python, cwd=folder)
    here = Path(saebench_core.__file__).parents[1]
    (libraries,) = {Path(pytest.__file__).parents[1]}
    (installed,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (installed / "libraries.pth").write_text(f"{libraries}\n")  # a plain path: .pth files in there are not followed
    told = wheels.run(python, "-c", "import saebench_core, sys; print(saebench_core.__file__, sys.path)", cwd=folder)
    assert told.stdout.startswith(str(installed)) and str(here) not in eval(told.stdout.partition(" ")[2])
    return SimpleNamespace(folder=folder, python=python, saebench=python.with_name("saebench"))


@pytest.mark.slow
def test_wheels_alone_do_the_same(fresh, tmp_path):
    listing = json.loads(wheels.run(fresh.saebench, "plugins", "list", "--json", cwd=tmp_path).stdout)
    assert listing["failures"] == []
    mine = [each for each in listing["plugins"] if each["distribution"] == "saebench-garden"]
    assert {(each["kind"], each["name"]) for each in mine} == OFFERED
    assert len(listing["plugins"]) == len(OFFERED) + len(list(built_in()))
    shutil.copy(GARDEN / "registry.yaml", tmp_path)
    outcome = wheels.run(fresh.saebench, "run", "registry.yaml", cwd=tmp_path, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    cells = json.loads(wheels.run(fresh.saebench, "results", "registry.yaml", "--json", cwd=tmp_path).stdout)["cells"]
    assert [cell["status"] for cell in cells] == ["done"] * 12


@pytest.mark.slow
def test_wheels_alone_pass_its_tests_and_its_types(fresh, tmp_path):
    wheels.run(fresh.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=own_tests(tmp_path))
    outcome = check_types(tmp_path, fresh.python)
    assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stdout
