"""Four plugins for saebench_core: one of each kind."""
