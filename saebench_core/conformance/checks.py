"""What a check is: a named function with a remedy, and the one exception that says what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from saebench_core.errors import SaebenchError

__all__ = ["Check", "ConformanceError", "NotCheckable", "check", "checks_in", "demand", "demand_close", "demand_equal"]

S = TypeVar("S")


class ConformanceError(SaebenchError):
    """A plugin breaks its contract: what was found, what is allowed, what to do.

    Attributes:
        found: what the plugin does, with the numbers.
        allowed: what the contract asks for.
        check: name of the check.
        remedy: what to do.
    """

    def __init__(self, found: str, allowed: str, check: str = "", remedy: str = "") -> None:
        lines = [f"{check}: {found}" if check else found, f"allowed: {allowed}"]
        super().__init__("\n".join([*lines, f"to do: {remedy}"] if remedy else lines))
        self.found = found
        self.allowed = allowed
        self.check = check
        self.remedy = remedy


class NotCheckable(Exception):
    """The check does not concern this plugin; the text says why."""


@final
@dataclass(frozen=True)
class Check(Generic[S]):
    """A named check of one kind of plugin.

    Attributes:
        name: ``check_...``, as it stands in reports and among expected failures.
        summary: what holds, one line.
        remedy: what to do where it does not hold.
        function: looks at a subject; it may return what it had to leave out.
    """

    name: str
    summary: str
    remedy: str
    function: Callable[[S], str | None]

    def __call__(self, subject: S) -> str | None:
        """Look at a subject.

        Returns:
            What the check had to leave out, if it left out anything.

        Raises:
            ConformanceError: with found, allowed and remedy; whatever the plugin itself raises becomes one.
            NotCheckable: if the check does not concern the plugin.
        """
        try:
            return self.function(subject)
        except ConformanceError as error:
            raise ConformanceError(error.found, error.allowed, self.name, self.remedy) from error.__cause__
        except NotCheckable:
            raise
        except Exception as error:  # a plugin may raise anything
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConformanceError(f"the plugin raised {text}", "no exception here", self.name, self.remedy) from error


def check(remedy: str) -> Callable[[Callable[[S], str | None]], Check[S]]:
    """Make a check of a function; its docstring's first line says what holds.

    Args:
        remedy: what to do where it does not hold.
    """

    def made(function: Callable[[S], str | None]) -> Check[S]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        return Check(function.__name__, summary, remedy, function)

    return made


def checks_in(*modules: ModuleType) -> tuple[Check[Any], ...]:
    """Return the checks that modules define, in their order."""
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Check))


def demand(holds: bool, found: str, allowed: str) -> None:
    """Refuse what does not hold.

    Raises:
        ConformanceError: with what was found and what is allowed.
    """
    if not holds:
        raise ConformanceError(found, allowed)


def demand_equal(what: str, found: object, allowed: object) -> None:
    """Refuse a value that is not the allowed one; tensors must have equal bits."""
    if isinstance(found, Tensor) and isinstance(allowed, Tensor):
        if found.shape == allowed.shape and torch.equal(found, allowed):
            return
        raise ConformanceError(f"{what}: {_difference(found, allowed)}", "equal bits")
    demand(found == allowed, f"{what}: {found}", str(allowed))


def demand_close(what: str, found: Tensor, allowed: Tensor, relative: float = 1e-5, absolute: float = 1e-6) -> None:
    """Refuse a tensor that is further from another than rounding explains."""
    bound = f"within {relative:g} of the value, or {absolute:g}"
    demand(found.shape == allowed.shape, f"{what}: {_difference(found, allowed)}", "the same shape")
    demand(
        torch.allclose(found.double(), allowed.double(), rtol=relative, atol=absolute),
        f"{what}: {_difference(found, allowed)}",
        bound,
    )


def _difference(found: Tensor, allowed: Tensor) -> str:
    if found.shape != allowed.shape:
        return f"shape {tuple(found.shape)} against {tuple(allowed.shape)}"
    apart = (found.detach().double() - allowed.detach().double()).abs()
    return f"{int((apart > 0).sum())} of {apart.numel()} numbers differ, by {float(apart.max()):.3g} at most"
