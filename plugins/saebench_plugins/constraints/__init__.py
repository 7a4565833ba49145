"""Built-in constraints: one file, one plugin, one entry point."""
