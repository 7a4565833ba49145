"""The templates of reports and pictures."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = ["environment", "template"]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return where templates are found. Names, errors and registries come from users and plugins: all is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("saebench_core.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def template(name: str, **words: object) -> Template:
    """Return a template; ``words`` are functions that it may call beside what it is rendered with."""
    return environment().get_template(name, globals=dict(words))
