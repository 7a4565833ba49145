"""Finds, checks and lists plugins: one broken plugin is reported, the rest works."""

from saebench_core.catalog.choice import PluginChoice
from saebench_core.catalog.listing import Catalog
from saebench_core.catalog.loading import make_catalog
from saebench_core.catalog.plugin import LoadFailure, Plugin, Spec

__all__ = ["Catalog", "LoadFailure", "Plugin", "PluginChoice", "Spec", "make_catalog"]
