"""The documentation says what the program does: commands, names, links and examples are checked against it."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from transformers import Gemma2Config

from saebench_core import BackboneConfig
from saebench_core.cli import app
from saebench_core.interfaces.architecture import ArchitectureSpec, Shape
from saebench_core.registry.model import RegistryModel, RuntimeSettings
from saebench_core.report.words import FLAGS
from saebench_core.results import CellResult, MetricValue
from saebench_core.rules import TopK
from saebench_core.tasks import finish, train
from saebench_core.training.settings import PRESETS, TrainingSettings
from tests.helpers.distributions import Site
from tests.helpers.registries import TINY, built_in, call, load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = [*PAGES, ROOT / "README.md"]
TEXT_OF_PAGES = "".join(path.read_text(encoding="utf-8") for path in PAGES)
CLI = typer.main.get_command(app)
LIGHT = {"validate", "plan", "status", "results", "schema", "presets", "plugins"}
BAD = """\
name: first
backbones:
  - {name: toy, type: synthetic, d_in: 16}
architectures:
  - {type: topk, expansion: 4, k: 8}
constraints:
  - {type: trained}
  - {type: soft_frozen_decoder, tau: 1.5}
l0: [3]
seeds: [0]
training: {steps: 100}
metrics:
  - {type: reconstruction}
"""


def script(path):
    """Import a file of the docs folder, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = script(DOCS / "_ext" / "catalog_pages.py")


def blocks(text, language):
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def built(name):
    """Return a page as Sphinx reads it: with what the directives make."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.sub(r"```\{catalog\} (\w+)\n```", lambda match: pages.render(match[1], built_in()), text)


def commands(path):
    lines = "".join(blocks(path.read_text(encoding="utf-8"), "console")).splitlines()
    assert all(line.startswith("$ saebench") for line in lines), f"{path.name}: a console block has other lines"
    return [shlex.split(line.removeprefix("$ saebench")) for line in lines]


def parsed(command, words):
    """Follow a command line down the groups and parse its options; return the path of commands."""
    parser = command.make_parser(command.context_class(command))
    parser.allow_interspersed_args = not hasattr(command, "commands")
    _, rest, _ = parser.parse_args(list(words))
    if not hasattr(command, "commands"):
        return []
    assert rest and rest[0] in command.commands, f"no such command: {' '.join(words)}"
    return [rest[0], *parsed(command.commands[rest[0]], rest[1:])]


def command_names(group, above=""):
    for name, command in group.commands.items():
        yield from command_names(command, f"{above}{name} ") if hasattr(command, "commands") else [f"{above}{name}"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_exist_with_their_options(path):
    named = set(command_names(CLI))
    for words in commands(path):
        assert " ".join(parsed(CLI, words)) in named, f"{path.name}: saebench {' '.join(words)}"


def test_an_unknown_option_would_be_found():
    with pytest.raises(Exception, match="--nothing"):
        parsed(CLI, ["plan", "--nothing"])


@pytest.fixture
def known_models(tmp_path_factory, monkeypatch):
    """Put the configuration of a model that the pages name into the hub's cache, as having loaded it once does."""
    cache = tmp_path_factory.mktemp("hub")
    model = cache / "models--google--gemma-2-2b"
    Gemma2Config().save_pretrained(model / "snapshots" / "0")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@pytest.mark.usefixtures("known_models")
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_light_commands_succeed_in_a_new_folder(path, tmp_path):
    assert call("init", cwd=tmp_path).code == 0
    for words in commands(path):
        if parsed(CLI, words)[0] in LIGHT:
            outcome = call(*words, cwd=tmp_path)
            assert outcome.code == 0, f"saebench {' '.join(words)}: {outcome.err}"


def test_every_command_is_shown():
    shown = {" ".join(parsed(CLI, words)) for path in TEXTS for words in commands(path)}
    named = "".join(path.read_text(encoding="utf-8") for path in TEXTS)
    for name in command_names(CLI):
        assert name in shown or f"`saebench {name}`" in named, f"saebench {name} is in no page"


def test_the_example_of_a_plugin_works(tmp_path, monkeypatch):
    source = blocks((DOCS / "plugins.md").read_text(encoding="utf-8"), "python")[0]
    toml = tomllib.loads(blocks((DOCS / "plugins.md").read_text(encoding="utf-8"), "toml")[0])
    site = Site(tmp_path / "site")
    site.add("example", {"plain_topk": source}, toml["project"]["entry-points"]["saebench"])
    monkeypatch.syspath_prepend(str(site.root))
    try:
        catalog = pages.make_catalog()
        plugin = catalog.get("architecture", "plain_topk")
        assert (plugin.distribution, catalog.failures) == ("example", ())
        entry = blocks((DOCS / "plugins.md").read_text(encoding="utf-8"), "yaml")[0]
        text = (
            BAD.replace(", k: 8", "")
            .replace("1.5", "0.5")
            .replace("architectures:\n  - {type: topk, expansion: 4}\n", entry)
        )
        cell = load(text, catalog=catalog).active[0]
        assert isinstance(plugin.spec, ArchitectureSpec)
        recipe = plugin.spec.build(cell.architecture.config).recipe(Shape(cell.d_in, cell.d_sae, cell.l0))
        assert (recipe.rule, recipe.centring, cell.d_sae) == (TopK(3), "none", 64)
    finally:
        site.forget()


def masked(text):
    """Return the words of an output, every number the same: numbers are a machine's own."""
    return re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", text).split()


def test_the_examples_in_python_print_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "python_api.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == len(blocks(page, "python"))
    names = {}
    for source, shown in examples:
        exec(source, names)
        told = capsys.readouterr()
        assert masked(told.out) == masked(shown), told.out
        assert told.err == ""
    assert [path.name for path in tmp_path.iterdir()] == [".saebench"]


def test_the_examples_of_the_theory_print_what_the_page_says(capsys):
    page = (DOCS / "theory.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == len(blocks(page, "python")) == 4
    names = {}
    for source, shown in examples:
        exec(source, names)
        assert capsys.readouterr().out == shown


def test_the_example_in_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry.yaml").write_text(TINY)
    (source,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    exec(source, {})
    assert "sweep tiny" in capsys.readouterr().out


def test_the_example_of_a_registry_is_valid():
    assert len(load(blocks((DOCS / "registry.md").read_text(encoding="utf-8"), "yaml")[0]).active) == 4


def test_the_example_of_a_world_runs_and_every_key_of_a_world_is_explained(tmp_path):
    page = (DOCS / "known_features.md").read_text(encoding="utf-8")
    (tmp_path / "known.yaml").write_text(blocks(page, "yaml")[0])
    short = [f"--set={key}" for key in ("training.steps=20", "metrics.0.rows=512", "metrics.3.rows=512")]
    outcome = call("run", "known.yaml", *short, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "true_pursuit" in outcome.out
    config = built_in().get("backbone", "synthetic").spec.config
    for key in config.model_fields.keys() - BackboneConfig.model_fields.keys() - {"type"}:
        assert f"`{key}`" in page, key


def test_the_examples_of_errors_are_real(tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD)
    good = BAD.replace(", k: 8", "").replace("1.5", "0.5")
    (tmp_path / "good.yaml").write_text(good)
    told = (
        call("validate", "bad.yaml", cwd=tmp_path).err
        + call("validate", "good.yaml", "--set", "l0=[500]", cwd=tmp_path).err
    )
    examples = "".join(blocks((DOCS / "registry.md").read_text(encoding="utf-8"), "text")).splitlines()
    assert sorted(examples) == sorted(told.splitlines())


def test_every_plugin_and_every_key_is_documented():
    index, reference = built("index.md"), built("builtins.md")
    for plugin in built_in():
        assert f"| `{plugin.name}` |" in index
        part = reference.partition(f"\n## {plugin.kind.capitalize()}s\n")[2].partition("\n## ")[0]
        shared, _, rest = part.partition("\n### ")
        own = f"\n### {rest}".partition(f"\n### `{plugin.name}`\n")[2].partition("\n### ")[0]
        assert f"Module: `{plugin.spec.config.__module__}`." in own and plugin.spec.source in own
        for key in plugin.spec.config.model_fields.keys() - {"type"}:
            assert f"| `{key}` |" in own + shared, f"{plugin.kind} {plugin.name}: {key}"


def test_every_score_is_documented():
    page = built("metrics.md")
    for plugin in built_in().of_kind("metric"):
        for name, info in pages.scores_of(plugin).items():
            assert f"`{plugin.name}/{name}`" in page
            assert info.formula in page
            assert info.source in page
        title = plugin.name.replace("_", " ").capitalize()
        assert f"\n### {title}\n" in page, f"floors and ceilings of {plugin.name} are not explained"


@pytest.mark.parametrize("model", [RegistryModel, TrainingSettings, RuntimeSettings])
def test_every_setting_is_documented(model):
    page = built("registry.md")
    for name in model.model_fields:
        assert f"| `{name}` |" in page
    for name in PRESETS:
        assert f"| `{name}` |" in page


@pytest.mark.parametrize("model", [CellResult, MetricValue])
def test_every_field_of_a_result_is_documented(model):
    page = built("results.md")
    for name in model.model_fields:
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", page, re.MULTILINE), name


def test_every_flag_is_documented_with_its_rule():
    page = built("results.md")
    for flag in FLAGS:
        assert f"| `{flag}` |" in page
        assert f"\n- `{flag}`: " in page
    rules = page.partition("The exact rules")[2].partition("\n## ")[0]
    assert f"more than {finish._L0_TOLERANCE:.0%}".replace("%", " %") in rules
    assert f"below {finish._COLLAPSED_L0:.0%}".replace("%", " %") in rules
    assert f"more than {finish._RISE:g}" in rules
    assert f"{train._HELDOUT_ROWS:,} calibration rows" in rules


def test_every_generated_table_is_used_and_exists():
    used = set(re.findall(r"^```\{catalog\} (\w+)$", "".join(p.read_text() for p in PAGES), re.MULTILINE))
    assert used == set(pages.PAGES)


def tree_of(text):
    """Return the files that a drawn tree names, as paths."""
    folder, found = "", set()
    for line in text.splitlines():
        if not line.startswith("  "):
            folder = ""
            continue
        name = line.split()[0]
        if line.startswith("    "):
            found.add(f"{folder}{name}")
        elif name.endswith("/"):
            folder = name
            found.add(f"{name}__init__.py")
        else:
            found.add(name)
    return found


def test_the_tree_names_every_module():
    drawn = next(block for block in blocks(built("architecture.md"), "text") if block.startswith("saebench_core/"))
    drawn = drawn.partition("plugins/saebench_plugins/")[0]
    there = {path.relative_to(ROOT / "saebench_core").as_posix() for path in (ROOT / "saebench_core").rglob("*.py")}
    assert tree_of(drawn) == there


def test_the_layers_are_those_that_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert "\n".join(layers) + "\n" in blocks(built("architecture.md"), "text")


def anchors(text):
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        place = path.parent / name if name else path
        assert place.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{path.name}: {target}"


def defined(text):
    """Return the names of functions and classes of a module."""
    nodes = ast.parse(text).body
    return {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_no_line_of_text_is_a_comment():
    """MyST leaves out lines that begin with a percent sign, which a line break may bring there."""
    assert re.findall(r"^%.*$", TEXT_OF_PAGES, re.MULTILINE) == []


def test_included_code_is_there():
    included = re.findall(r"^```\{literalinclude\} (\S+)\n(.*?)^```$", TEXT_OF_PAGES, re.MULTILINE | re.DOTALL)
    assert len(included) >= 12
    for name, options in included:
        text = (DOCS / name).read_text(encoding="utf-8")
        for option, value in re.findall(r"^:([\w-]+): (.+)$", options, re.MULTILINE):
            if option == "pyobject":
                assert value in defined(text), f"{name} has no {value}"
            elif option in ("start-at", "end-before"):
                assert value in text, f"{name} has no line {value!r}"


def test_the_curve_of_pursuit_is_what_the_script_measures():
    make_pursuit = script(DOCS / "make_pursuit.py")
    numbers = json.loads((DOCS / "images" / "pursuit.json").read_text(encoding="utf-8"))
    picture = (DOCS / "images" / "pursuit.svg").read_text(encoding="utf-8")
    assert picture == make_pursuit.chart_picture(make_pursuit.chart(numbers))
    for share, d_in, size in (("0.1", 32, 8), ("0.2", 100, 32), ("0.4", 32, 2), ("0.05", 256, 4)):
        found = make_pursuit.explained(d_in, size * d_in, max(1, round(float(share) * d_in)))
        assert found == pytest.approx(numbers[share][str(d_in)][str(size)], abs=2e-3)
    page = (DOCS / "theory.md").read_text(encoding="utf-8")
    told = [f"{numbers['0.2'][d_in]['32']:.2f}" for d_in in ("32", "100", "256")]
    assert f"explained to {told[0]}, {told[1]} and {told[2]} in 32, 100 and 256 dimensions" in " ".join(page.split())


def test_the_picture_comes_from_a_run(tmp_path):
    make_images = script(DOCS / "make_images.py")
    only = ["architecture=topk", "constraint=trained|untrained"]
    small = ["training.steps=2", "training.batch_size=32"]
    opened = make_images.open_registry("preset:smoke", tmp_path / "work", overrides=small, only=only)
    make_images.draw(opened, tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert "untrained" in picture and "earned" in picture
    assert re.findall(r"https?://[^\"]*", picture) == ["http://www.w3.org/2000/svg"]
