"""Finds, checks and lists plugins: one broken plugin is reported, the rest works."""

from saebench_core.catalog.choice import PluginChoice
from saebench_core.catalog.listing import Catalog
from saebench_core.catalog.loading import Hooks, make_catalog
from saebench_core.catalog.plugin import LoadFailure, Notice, Plugin, Spec

__all__ = ["Catalog", "Hooks", "LoadFailure", "Notice", "Plugin", "PluginChoice", "Spec", "make_catalog"]
