"""GPUs that a plan can be made for without having one: rates and memory from the makers' data sheets."""

from __future__ import annotations

import math
import re
from typing import Final

from saebench_core.errors import InputError
from saebench_core.plan.costs import Gpu, Machine

__all__ = ["GPUS", "planned_gpu"]

_SHARE: Final = 0.5
"""Part of the stated rate that work is taken to reach."""


GPUS: Final = {
    name: Gpu(name, fp32 * 1e12, bf16 * 1e12, int(gigabytes * 1e9))
    for name, fp32, bf16, gigabytes in (
        ("A100-40GB", 19.5, 312, 40),
        ("A100-80GB", 19.5, 312, 80),
        ("H100-80GB", 67, 989, 80),
        ("L4", 30.3, 121, 24),
        ("L40S", 91.6, 362, 48),
        ("RTX-4090", 82.6, 165, 24),
    )
}
"""Those that have a name here; others are stated as ``FP32:BF16:GB``."""


def planned_gpu(name: str, backbone_dtype: str) -> Machine:
    """Return the machine that a plan is made for, at half of the stated rates.

    Args:
        name: one of `GPUS`, or ``FP32:BF16:GB`` with rates in TFLOP/s.
        backbone_dtype: number format of backbones: ``fp32``, ``bf16``, or ``auto``, which is bf16 there.

    Raises:
        InputError: if the name is neither.
    """
    known = {one.lower(): gpu for one, gpu in GPUS.items()}
    gpu = known.get(name.lower()) or _stated(name)
    gpu = gpu._replace(fp32=_SHARE * gpu.fp32, bf16=_SHARE * gpu.bf16)
    return Machine(gpu.fp32, 1, gpu, "fp32" if backbone_dtype == "fp32" else "bf16")


def _stated(name: str) -> Gpu:
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(f"{number}:{number}:{number}", name)
    parts = [float(part) for part in match.groups()] if match else []
    if not parts or not all(0 < part < math.inf for part in parts):
        raise InputError(
            f"--gpu {name}: not known; name one of {', '.join(GPUS)}, or give FP32:BF16:GB, rates in TFLOP/s and "
            "memory, such as 19.5:312:80"
        )
    return Gpu(name, parts[0] * 1e12, parts[1] * 1e12, int(min(parts[2], 1e9) * 1e9))
