"""The hooks are documented, and can grow: an implementation may take fewer arguments than its hook."""

from __future__ import annotations

import inspect
import re

import pluggy
import pytest

from saebench_core import hookspecs

HOOKS = [name for name in hookspecs.__all__ if name.startswith("register_")]


def test_there_are_four():
    specified = {name for name, value in vars(hookspecs).items() if hasattr(value, "saebench_spec")}
    assert specified == set(HOOKS) == {f"register_{kind}s" for kind in KINDS}


KINDS = ("backbone", "architecture", "constraint", "metric")


@pytest.mark.parametrize("name", HOOKS)
def test_a_docstring_is_the_contract(name):
    function = getattr(hookspecs, name)
    text = inspect.getdoc(function)
    kind = name.removeprefix("register_").removesuffix("s")
    assert "Returns:\n" in text
    assert f"{kind.capitalize()}Spec" in text
    assert re.search(r"^\.\. versionadded:: \d+\.\d+$", text, re.MULTILINE)
    loaded = " | LoadedSpec" * (kind == "architecture")
    assert function.__annotations__["return"] == f"Sequence[{kind.capitalize()}Spec{loaded}]"


HISTORY = {
    1: {
        "register_architectures": [],
        "register_backbones": [],
        "register_constraints": [],
        "register_metrics": [],
    }
}
"""Arguments of the hooks, by version: a change of one needs a new number here and in `HOOKSPEC_VERSION`."""


def test_the_version_belongs_to_the_hooks():
    assert max(HISTORY) == hookspecs.HOOKSPEC_VERSION
    arguments = {name: list(inspect.signature(getattr(hookspecs, name)).parameters) for name in HOOKS}
    assert arguments == HISTORY[hookspecs.HOOKSPEC_VERSION]


def test_an_implementation_may_take_fewer_arguments():
    """A hook that gains an argument keeps the plugins that were written before."""
    mark, implement = pluggy.HookspecMarker(hookspecs.PROJECT), hookspecs.hookimpl

    class Grown:
        @mark
        def register_metrics(self, context):
            """Gain an argument."""

    class Old:
        @implement
        def register_metrics(self):
            return ["old"]

    class New:
        @implement
        def register_metrics(self, context):
            return [context]

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(Grown)
    manager.register(Old())
    manager.register(New())
    manager.check_pending()
    assert sorted(manager.hook.register_metrics(context="new")) == [["new"], ["old"]]
