"""The version of the distribution, and nothing else, so that a build can read it without importing torch."""

__version__ = "0.1.0"
