"""Sphinx configuration: Markdown pages, the furo theme, tables from the catalog, no network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from saebench_core import __version__

project = "saebench_core"
author = "The saebench_core authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "catalog_pages"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore = [("py:exc", "Exception"), ("py:exc", "KeyboardInterrupt")]

html_theme = "furo"
html_title = f"saebench_core {version}"

myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
