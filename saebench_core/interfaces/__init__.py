"""The contracts of the four kinds of plugins: one file a kind, beside what they share."""
