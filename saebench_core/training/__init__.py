"""Training: one stream of activations, all SAEs of a group in lock-step."""
