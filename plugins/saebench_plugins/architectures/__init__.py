"""Built-in architectures: one file, one plugin, one entry point."""
