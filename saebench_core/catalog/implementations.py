"""The hooks that a module implements; a name or a signature that no hook has is refused with what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Final

import pluggy

from saebench_core.errors import PluginError, nearest

__all__ = ["implementations"]

_POSITIONAL: Final = inspect.Parameter.POSITIONAL_OR_KEYWORD


def implementations(manager: pluggy.PluginManager, module: object) -> dict[str, Callable[..., object]]:
    """Return the functions of a module that are marked as implementations, by hook.

    Raises:
        PluginError: if there is none, one that no hook asks for, or two of one hook.
    """
    hooks = {name: caller for name, caller in vars(manager.hook).items() if isinstance(caller, pluggy.HookCaller)}
    found: dict[str, Callable[..., object]] = {}
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is None:
            continue
        hook, function = options.get("specname") or name, getattr(module, name)
        if hook not in hooks:
            raise PluginError(f"unknown hook {hook!r}{nearest(hook, hooks)}; hooks: {', '.join(hooks)}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"{hook}: is a wrapper; these hooks are called one by one, so nothing can be wrapped")
        spec = hooks[hook].spec
        _check_signature(hook, function, spec.argnames if spec else ())
        if found.setdefault(hook, function) is not function:
            raise PluginError(
                f"{hook}: is implemented by {found[hook].__name__} and by {function.__name__}; "
                "join them, one function may return any number of plugins"
            )
    if not found:
        name = getattr(module, "__name__", str(module))
        raise PluginError(f"the module {name} implements no hook; hooks: {', '.join(hooks)}")
    return found


def _check_signature(hook: str, function: Callable[..., object], allowed: tuple[str, ...]) -> None:
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if parameter.default is not parameter.empty:  # versions of pluggy differ in whether they pass it
            raise PluginError(f"{hook}: the argument {name!r} has a default; hooks must not")
        if name not in allowed or parameter.kind is not _POSITIONAL:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no argument"
            raise PluginError(
                f"{hook}{_without_types(signature)}: the hook {takes}, so {name!r} cannot be passed; "
                "remove it, or install the saebench-core that it was written for"
            )


def _without_types(signature: inspect.Signature) -> str:
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
