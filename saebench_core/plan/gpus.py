"""GPUs that a plan can be made for without having one: rates and memory from the makers' data sheets."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from saebench_core.errors import InputError
from saebench_core.plan.costs import Machine

__all__ = ["GPUS", "Gpu", "planned_gpu"]

_SHARE: Final = 0.5
"""Part of the stated rate that work is taken to reach."""


class Gpu(NamedTuple):
    """A GPU.

    Attributes:
        fp32: TFLOP/s of fp32 products without tensor cores, in which SAEs are trained.
        bf16: TFLOP/s of dense bf16 products, in which a backbone may run.
        gigabytes: memory.
    """

    fp32: float
    bf16: float
    gigabytes: float


GPUS: Final = {
    "A100-40GB": Gpu(19.5, 312, 40),
    "A100-80GB": Gpu(19.5, 312, 80),
    "H100-80GB": Gpu(67, 989, 80),
    "L4": Gpu(30.3, 121, 24),
    "L40S": Gpu(91.6, 362, 48),
    "RTX-4090": Gpu(82.6, 165, 24),
}
"""Those that have a name here; others are stated as ``FP32:BF16:GB``."""


def planned_gpu(name: str, backbone_dtype: str) -> Machine:
    """Return the machine that a plan is made for.

    Args:
        name: one of `GPUS`, or ``FP32:BF16:GB`` with rates in TFLOP/s.
        backbone_dtype: number format of backbones: ``fp32``, ``bf16``, or ``auto``, which is bf16 there.

    Raises:
        InputError: if the name is neither.
    """
    known = {one.lower(): one for one in GPUS}
    if name.lower() in known:
        name = known[name.lower()]
        gpu = GPUS[name]
    else:
        number = r"(\d+(?:\.\d+)?)"
        match = re.fullmatch(f"{number}:{number}:{number}", name)
        if match is None or not all(float(part) > 0 for part in match.groups()):
            raise InputError(
                f"--gpu {name}: not known; name one of {', '.join(GPUS)}, or give FP32:BF16:GB, rates in TFLOP/s and "
                "memory, such as 19.5:312:80"
            )
        gpu = Gpu(*map(float, match.groups()))
    rate = gpu.fp32 if backbone_dtype == "fp32" else gpu.bf16
    return Machine(_SHARE * gpu.fp32 * 1e12, 1, _SHARE * rate * 1e12, int(gpu.gigabytes * 1e9), name)
