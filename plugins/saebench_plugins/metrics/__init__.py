"""Built-in metrics: one file, one plugin, one entry point."""
