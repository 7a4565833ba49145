"""What tests of the core share: a folder with a registry, and a place in which distributions are installed."""

from __future__ import annotations

import pytest

from tests.helpers.distributions import Site
from tests.helpers.registries import TINY


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on Python's path for distributions of the test's own, forgotten afterwards; all plugins are admitted."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.root))
    monkeypatch.delenv("SAEBENCH_LOAD_PLUGINS", raising=False)
    monkeypatch.delenv("SAEBENCH_BLOCK_PLUGINS", raising=False)
    yield made
    made.forget()


@pytest.fixture
def folder(tmp_path):
    """A folder with the tiny registry."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "registry.yaml").write_text(TINY)
    return folder
