"""The distribution beside this file is a stranger's: its own tests run in an environment where it is installed."""

collect_ignore = ["saebench-garden"]
