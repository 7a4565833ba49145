"""The scripts that make the studies' pages, loaded as they are run: from the folder of the docs."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.helpers.studies import DOCS


@pytest.fixture(scope="module")
def studies():
    sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location("make_studies", DOCS / "make_studies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS))
    del sys.modules[spec.name]
