"""Sparse encode and decode, forward and backward, on the selected entries only."""

from saebench_core.kernels.products import decode, encode_at
from saebench_core.kernels.screening import DenseSwitch, PreActivations, Screen, fast_screen
from saebench_core.kernels.selection import Codes, Selected, Selection, from_mask, select_mask

__all__ = [
    "Codes",
    "DenseSwitch",
    "PreActivations",
    "Screen",
    "Selected",
    "Selection",
    "decode",
    "encode_at",
    "fast_screen",
    "from_mask",
    "select_mask",
]
