"""The command line. Importing it is light: torch and mlflow are loaded by the commands that need them."""

from saebench_core.cli.main import app, main

__all__ = ["app", "main"]
