"""Named generators: one for each role, so that no draw can disturb another."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["derive_seed", "named_generator", "tensor_sha256"]


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, e.g. ``derive_seed(seed, "weights")``."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def named_generator(*parts: int | str) -> torch.Generator:
    """Return a fresh CPU generator for a role; the global generator is never used."""
    return torch.Generator(device="cpu").manual_seed(derive_seed(*parts))


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the hash of a tensor's dtype, shape and values in row-major order."""
    host = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{host.dtype}{tuple(host.shape)}".encode())
    digest.update(host.reshape(-1).view(torch.uint8).numpy().data if host.numel() else b"")
    return digest.hexdigest()
