"""The public names: all of them resolve, editors see the same ones, and imports go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import saebench_core

ROOT = Path(__file__).parents[2]
CORE = ROOT / "saebench_core"
PLUGINS = ROOT / "plugins" / "saebench_plugins"


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield (module, name) of every import of a file, wherever it stands."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def test_every_name_resolves_and_is_listed():
    assert len(saebench_core.__all__) == len(set(saebench_core.__all__))
    for name in saebench_core.__all__:
        assert getattr(saebench_core, name) is not None
    assert dir(saebench_core) == sorted(saebench_core.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'SparseAutoencodr'"):
        saebench_core.SparseAutoencodr  # noqa: B018
    assert not hasattr(saebench_core, "kernelz")


def test_a_public_name_is_public_where_it_lives():
    import importlib

    for name, home in saebench_core._HOME.items():
        module = importlib.import_module(f"saebench_core.{home}")
        assert getattr(module, name) is getattr(saebench_core, name)
        assert name in module.__all__, f"{name} is not in {home}.__all__"


def test_editors_see_the_same_names_in_the_same_modules():
    (block,) = [
        node
        for node in tree(CORE / "__init__.py").body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    seen = {}
    for node in block.body:
        for alias in node.names:
            assert alias.asname == alias.name, "without `as`, type checkers take the name for private"
            assert alias.name not in seen
            seen[alias.name] = node.module.removeprefix("saebench_core.")
    assert seen == saebench_core._HOME


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_never_imports_from_its_own_root_nor_a_built_in(path):
    for module, name in imports(path):
        assert module.partition(".")[0] != "saebench_plugins"
        assert (module, name) != ("saebench_core", None)
        if module == "saebench_core":  # a module of the package, such as hookspecs, and no public name
            assert (CORE / f"{name}.py").is_file() or (CORE / name).is_dir(), f"{name} from the package root"
    assert "saebench_plugins" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_plugin_imports_public_names_and_its_own_kind_only(path):
    kind = path.relative_to(PLUGINS).parts[0]
    for module, name in imports(path):
        if module.partition(".")[0] == "saebench_core":
            assert module == "saebench_core", f"{module} is not the package root"
            assert name in saebench_core.__all__, f"{name} is not public"
        if module.partition(".")[0] == "saebench_plugins":
            assert module.split(".")[1] == kind, f"{module} is another kind"
            private = module.rpartition(".")[2] if module.count(".") == 2 else name
            assert private.startswith("_"), f"{module}.{name}: a plugin shares private modules only"
