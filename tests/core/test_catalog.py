"""Plugins are found by entry points, checked, and told apart; one that is broken harms no other."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from saebench_core.catalog import PluginChoice, make_catalog
from saebench_core.errors import InputError
from tests.helpers.distributions import CORE_ARCHITECTURES, architecture, metric, the_failure
from tests.helpers.registries import call

ROOT = Path(__file__).parents[2]


def test_a_third_party_stands_beside_the_built_ins(site):
    site.add("my-sae", {"my_sae": architecture("mine")}, version="2.3")
    catalog = make_catalog()
    plugin = catalog.get("architecture", "mine")
    assert (plugin.distribution, plugin.version, plugin.spec.summary) == ("my-sae", "2.3", "a test's own")
    assert plugin.identity() == {"distribution": "my-sae", "version": "2.3", "source": plugin.source_digest}
    assert set(catalog.names("architecture")) >= CORE_ARCHITECTURES
    assert catalog.failures == ()


HOOK = "def register_architectures():"
CASES = {
    "broken import": ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
    "syntax error": ("def broken(:\n", "SyntaxError"),
    "exit at import": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "misspelt hook": (
        architecture("mine").replace(HOOK, "def register_architecture():"),
        "unknown hook 'register_architecture'; did you mean 'register_architectures'?",
    ),
    "argument with default": (
        architecture("mine").replace(HOOK, "def register_architectures(extra=3):"),
        "extra",
    ),
    "unknown argument": (
        architecture("mine").replace(HOOK, "def register_architectures(extra):"),
        "register_architectures(extra): the hook takes no argument, so 'extra' cannot be passed; remove it",
    ),
    "keyword argument": (
        architecture("mine").replace(HOOK, "def register_architectures(*, extra):"),
        "register_architectures(*, extra): the hook takes no argument, so 'extra' cannot be passed",
    ),
    "wrapper": (
        architecture("mine").replace("@hookimpl", "@hookimpl(wrapper=True)").replace("return [Arch", "yield [Arch"),
        "register_architectures: is a wrapper",
    ),
    "nothing returned": (
        architecture("mine").replace("return [Arch", "[Arch"),
        "register_architectures returned a NoneType; it must return a list of ArchitectureSpec",
    ),
    "one spec, no list": (
        architecture("mine").replace("return [Arch", "return (Arch").replace('own")]', 'own"))'),
        "register_architectures returned a ArchitectureSpec; it must return a list of ArchitectureSpec",
    ),
    "raising hook": (architecture("mine").replace("return [Arch", "raise KeyError('oops')\n    ["), "KeyError: 'oops'"),
    "no hook at all": ("VALUE = 3\n", "implements no hook; hooks: register_architectures, register_backbones"),
    "no spec": (
        architecture("mine").replace("return [ArchitectureSpec(", "return [dict("),
        "expected a ArchitectureSpec, got dict",
    ),
    "spec of another kind": (
        metric("mine").replace("def register_metrics", "def register_architectures"),
        "expected a ArchitectureSpec, got MetricSpec",
    ),
    "config of another kind": (
        architecture("mine")
        .replace("    Architecture,", "    MetricConfig, Architecture,")
        .replace("    return [Arch", "    spec = Arch")
        .replace('own")]', 'own")\n    object.__setattr__(spec, "config", MetricConfig)\n    return [spec]'),
        "ArchitectureSpec.config must be a subclass of ArchitectureConfig",
    ),
    "config that takes anything": (
        architecture("mine").replace('    type: Lit', '    model_config = {"extra": "allow"}\n    type: Lit'),
        "Config must keep extra='forbid' and frozen=True",
    ),
    "config that can change": (
        architecture("mine").replace('    type: Lit', '    model_config = {"frozen": False}\n    type: Lit'),
        "Config must keep extra='forbid' and frozen=True",
    ),
    "config without type": (
        architecture("mine").replace('    type: Literal["mine"] = "mine"', '    other: int = 3'),
        "Config needs a field `type: Literal",
    ),
    "bad name": (architecture("My-SAE"), "the name 'My-SAE' must be lower-case"),
    "summary of two lines": (
        architecture("mine").replace("a test's own", "one\\ntwo"),
        "mine: the summary must be one line",
    ),
    "empty summary": (architecture("mine").replace("a test's own", ""), "mine: the summary must be one line"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_broken_plugin_is_reported_and_the_rest_works(site, case):
    source, expected = CASES[case]
    site.add("broken-dist", {f"broken_{list(CASES).index(case)}": source}, version="0.9")
    site.add("good-dist", {"good_plugin": architecture("good")})
    catalog = make_catalog()
    failure = the_failure(catalog)
    assert failure.plugin == "broken-dist:plugin"
    assert failure.version == "0.9"
    assert expected in failure.error
    assert "\n" not in failure.error
    assert "Traceback" in failure.details
    assert "mine" not in catalog.names("architecture")
    assert "good" in catalog.names("architecture")


def test_an_entry_point_must_name_a_module(site):
    site.add("broken-dist", {"named_object": architecture("mine")}, {"plugin": "named_object:Mine"})
    assert "names a ABCMeta; it must name a module" in the_failure(make_catalog()).error


@pytest.mark.parametrize("names", ["a", "z"])
def test_a_hook_is_implemented_once(site, names):
    other = "\n\n@hookimpl(specname='register_architectures')\ndef NAME():\n    return []\n".replace("NAME", names)
    site.add("broken-dist", {f"twice_hooked_{names}": architecture("mine") + other})
    error = the_failure(make_catalog()).error
    assert error.startswith("register_architectures: is implemented by ")
    assert {"register_architectures", names} <= set(error.replace(";", " ").split())


def test_one_function_may_have_two_names(site):
    source = architecture("mine").replace("@hookimpl", "@hookimpl(specname='register_architectures')")
    source = source.replace("def register_architectures", "def offered") + "\n\nalso = offered\n"
    site.add("my-sae", {"two_names": source})
    catalog = make_catalog()
    assert catalog.failures == ()
    assert "mine" in catalog.names("architecture")


def damaged(site, points):
    """Add what is left of a distribution whose metadata is gone."""
    info = site.root / "broken-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[saebench]\n{points}\n")


@pytest.mark.parametrize("finder", ["importlib.metadata", "importlib_metadata"])
def test_a_distribution_without_metadata_harms_nothing(site, tmp_path, finder):
    importlib.import_module(finder)  # the second one takes the first one's place in a process that imports it
    site.add("good-dist", {"good_beside": architecture("good"), "left_over": architecture("left")})
    damaged(site, "plugin = left_over\nother = not_there_any_more")
    catalog = make_catalog()
    plugin = catalog.get("architecture", "left")
    assert (plugin.distribution, plugin.version, plugin.origin) == ("unknown", "", "unknown:plugin")
    assert the_failure(catalog, "unknown").plugin == "unknown:other"
    assert "good" in catalog.names("architecture")
    told = call("plugins", "list", cwd=tmp_path)
    assert told.code == 0
    assert "FAILED        unknown:other: ModuleNotFoundError" in told.err


def test_a_module_is_registered_once(site):
    site.add("broken-dist", {"twice": architecture("mine")}, {"one": "twice", "two": "twice"})
    catalog = make_catalog()
    assert the_failure(catalog).plugin == "broken-dist:two"
    assert "mine" in catalog.names("architecture")


def test_one_module_may_offer_two_kinds(site):
    both = architecture("mine") + metric("mine").replace("Config", "MetricsConfig").replace("MetricMetrics", "Metric")
    site.add("my-sae", {"two_kinds": both.replace("(MetricsConfig)", "(MetricConfig)")})
    catalog = make_catalog()
    assert catalog.failures == ()
    assert "mine" in catalog.names("architecture")
    assert "mine" in catalog.names("metric")


def test_the_name_of_a_built_in_is_refused_and_both_are_named(site):
    site.add("broken-dist", {"duplicate_topk": architecture("topk")}, version="4.2")
    catalog = make_catalog()
    (failure,) = catalog.failures
    assert failure.plugin == "architecture:topk"
    assert "saebench-core" in failure.error
    assert "broken-dist 4.2" in failure.error
    assert failure.error.endswith(
        "leave one out with --no-plugin broken-dist:plugin or --no-plugin saebench-core:architecture-topk"
    )
    assert "topk" not in catalog.names("architecture"), "neither wins silently"
    with pytest.raises(InputError, match=r"broken-dist 4\.2"):
        catalog.get("architecture", "topk")
    left_out = make_catalog(PluginChoice.from_environment(["broken-dist"]))
    assert left_out.get("architecture", "topk").distribution == "saebench-core"


def test_two_entry_points_of_one_distribution_are_told_apart(site):
    modules = {"same_name_one": architecture("same"), "same_name_two": architecture("same")}
    site.add("one", modules, {"a": "same_name_one", "b": "same_name_two"})
    (failure,) = make_catalog().failures
    assert failure.error == (
        "the architecture 'same' is offered by one:a 1.0 and one:b 1.0; "
        "leave one out with --no-plugin one:a or --no-plugin one:b"
    )


def test_a_hook_that_returns_a_name_twice_is_told(site):
    source = architecture("same").replace("return [", "return 2 * [")
    site.add("one", {"same_name_twice": source})
    (failure,) = make_catalog().failures
    assert failure.error == (
        "the architecture 'same' is offered 2 times by one:plugin; "
        "keep one, or leave it out with --no-plugin one:plugin"
    )


def test_a_collision_is_found_by_its_name_and_by_every_distribution(site, tmp_path):
    site.add("a-dist", {"collides_a": architecture("same")})
    site.add("b-dist", {"collides_b": architecture("same")})
    site.add("C_Dist", {"collides_c": architecture("same")})
    for name in ("a-dist", "b-dist", "B_Dist", "c-dist", "same", "architecture:same"):
        told = call("plugins", "check", name, cwd=tmp_path)
        assert (told.code, told.out.splitlines()[-1]) == (1, "plugins: 0, checks: 1, failed: 1"), told
        assert "architecture:same" in told.out
        assert "is offered by C_Dist 1.0 and a-dist 1.0 and b-dist 1.0" in told.out
    only = call("plugins", "check", "same", "--kind", "architecture", cwd=tmp_path)
    assert only.code == 1
    other = call("plugins", "check", "same", "--kind", "metric", cwd=tmp_path)
    assert (other.code, other.out) == (2, "")
    assert "no plugin or distribution is called 'same'" in other.err
    assert "; failed to load: architecture:same: the architecture 'same' is offered by" in other.err


def test_a_kind_that_is_none_is_refused(tmp_path):
    told = call("plugins", "check", "topk", "--kind", "metrics", cwd=tmp_path)
    assert (told.code, told.out) == (2, "")
    assert "'metrics' is no kind of plugin; did you mean 'metric'?; kinds: backbone, " in told.err


def test_the_same_name_in_another_kind_is_no_duplicate(site):
    site.add("my-metric", {"metric_called_topk": metric("topk")})
    catalog = make_catalog()
    assert catalog.failures == ()
    assert catalog.get("metric", "topk").distribution == "my-metric"
    assert catalog.get("architecture", "topk").distribution == "saebench-core"


def test_order_is_sorted_whatever_the_order_of_installation(site):
    for name in ("zebra", "ant", "mole"):
        site.add(f"{name}-dist", {f"order_{name}": architecture(name)})
    catalog = make_catalog()
    names = catalog.names("architecture")
    assert names == sorted(names)
    assert [plugin.name for plugin in catalog.of_kind("architecture")] == names
    kinds = [plugin.kind for plugin in catalog]
    assert list(dict.fromkeys(kinds)) == ["backbone", "architecture", "constraint", "metric"]


def test_an_unknown_name_gets_the_nearest_and_the_failures(site):
    site.add("broken-dist", {"broken_for_message": "import no_such_module_anywhere\n"})
    with pytest.raises(InputError) as caught:
        make_catalog().get("architecture", "batch_topkk")
    message = str(caught.value)
    assert "no architecture is called 'batch_topkk'; did you mean 'batch_topk'?" in message
    assert "broken-dist:plugin: ModuleNotFoundError" in message


def test_source_digest_follows_the_plugin_and_what_it_imports_of_its_package(site):
    main = "from digest_pkg import _used\nfrom ._relative import VALUE\nimport digest_pkg._plain\n"
    modules = {
        "digest_pkg.plugin": main + architecture("digested"),
        "digest_pkg._used": "from digest_pkg._deep import VALUE\n",
        "digest_pkg._deep": "VALUE = 1\n",
        "digest_pkg._relative": "VALUE = 1\n",
        "digest_pkg._plain": "VALUE = 1\n",
        "digest_pkg._unused": "VALUE = 1\n",
        "digest_pkg.__init__": "",
    }
    site.add("digest-dist", modules)

    def digest():
        return make_catalog().get("architecture", "digested").source_digest

    first = digest()
    assert digest() == first
    seen = {first}
    for name in ("plugin", "_used", "_deep", "_relative", "_plain", "__init__"):
        path = site.root / "digest_pkg" / f"{name}.py"
        before = path.read_text()
        path.write_text(before + "# edited\n")
        seen.add(digest())
        path.write_text(before)
    assert len(seen) == 7, "an edit of each file changes the digest"
    assert digest() == first
    (site.root / "digest_pkg" / "_unused.py").write_text("VALUE = 2\n")
    assert digest() == first, "a module that the plugin does not import is not part of it"


def test_every_plugin_file_has_one_entry_point_and_the_reverse():
    root = ROOT / "plugins" / "saebench_plugins"
    files = Counter(
        ".".join(("saebench_plugins", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if not path.name.startswith("_")
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["saebench"]
    assert Counter(declared.values()) == files
    for name, value in declared.items():
        kind, _, file = value.removeprefix("saebench_plugins.").partition(".")
        assert name == f"{kind.removesuffix('s')}-{file.replace('_', '-')}"


def test_built_ins_come_by_the_entry_points_that_are_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["saebench"]
    installed = {point.name for point in entry_points(group="saebench") if point.dist.name == "saebench-core"}
    assert installed == set(declared), "install the checkout again: pip install -e ."
    catalog = make_catalog(PluginChoice(frozenset()))
    assert catalog.failures == ()
    assert {f"{plugin.kind}-{plugin.name.replace('_', '-')}" for plugin in catalog} == set(declared)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_every_plugin_loads_no_heavy_library():
    heavy = ["transformers", "open_clip", "timm", "mlflow", "sklearn", "gguf", "pandas", "pyarrow", "matplotlib"]
    code = (
        "import sys; from saebench_core.catalog import make_catalog, PluginChoice\n"
        "catalog = make_catalog(PluginChoice(frozenset()))\n"
        f"print(catalog.failures, len(list(catalog)) > 10, [name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code) == "() True []"


def test_importing_package_and_command_line_leaves_torch_out():
    heavy = ["torch", "mlflow", "numpy", "pydantic"]
    code = f"import sys, saebench_core, saebench_core.cli; print([n for n in {heavy} if n in sys.modules])"
    assert run_python(code) == "[]"
