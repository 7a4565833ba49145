"""The names of a new plugin, all made from one: distribution, package, type and class."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, final

from packaging.utils import canonicalize_name

from saebench_core.errors import InputError

__all__ = ["Names", "names_of"]

_DISTRIBUTION: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)  # PEP 508
_PACKAGE: Final = re.compile(r"[a-z][a-z0-9_]*")
_LONGEST: Final = 40


@final
@dataclass(frozen=True)
class Names:
    """How a plugin is called where.

    Attributes:
        distribution: what pip installs, ``my-sae``.
        package: what Python imports, and the ``type`` in registries, ``my_sae``.
        camel: how its classes begin, ``MySae``.
    """

    distribution: str
    package: str
    camel: str


def names_of(given: str) -> Names:
    """Return the names that follow from one.

    Raises:
        InputError: if it cannot be a distribution's name and a package's, or a package of that name is there already.
    """
    distribution = canonicalize_name(given)
    package = distribution.replace("-", "_")
    if not (_DISTRIBUTION.fullmatch(given) and _PACKAGE.fullmatch(package)):
        raise InputError(
            f"{given!r} cannot be the name of a distribution and of a package: give letters, digits and hyphens, "
            "a letter first, such as my-sae"
        )
    if len(given) > _LONGEST:
        raise InputError(f"{given!r} has {len(given)} letters; give at most {_LONGEST}")
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise InputError(f"{given!r}: {package} is a word of Python itself; choose another name, such as {given}-sae")
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise InputError(f"{given!r}: a package {package} is installed already; choose another name")
    return Names(distribution, package, "".join(part.capitalize() for part in package.split("_")))
