"""Activations of a backbone: drawn again or stored once, read in order or shuffled, prepared ahead of their use."""

from saebench_core.activations.readers import LiveReader, StoredReader
from saebench_core.activations.shuffling import ShuffledRows
from saebench_core.activations.statistics import measure, statistics_rows
from saebench_core.activations.storage import MANIFEST, SHARD_ROWS, Manifest, Shard, collect, damaged_shards, write_rows

__all__ = [
    "MANIFEST",
    "SHARD_ROWS",
    "LiveReader",
    "Manifest",
    "Shard",
    "ShuffledRows",
    "StoredReader",
    "collect",
    "damaged_shards",
    "measure",
    "statistics_rows",
    "write_rows",
]
