"""Broken plugins, each with the check that is meant for it."""
