"""Built-in backbones: one file, one plugin, one entry point."""
