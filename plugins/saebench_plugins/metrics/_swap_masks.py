"""Masks that say which coordinates of a base take a source's values, learned by gradient (MDBM, MDAS)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core import Codes, SparseAutoencoder, named_generator

__all__ = ["Basis", "Fitting", "Latents", "Neurons", "Rotation", "fit_mask"]

_COLDEST: Final = 1e-4


class Basis(ABC):
    """Coordinates of activations that can be swapped one by one."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of coordinates."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is."""

    @abstractmethod
    def mixed(
        self, base: Float[Tensor, "rows d_in"], source: Float[Tensor, "rows d_in"], gate: Float[Tensor, " size"]
    ) -> Float[Tensor, "rows d_in"]:
        """Return ``decode((1 - gate) encode(base) + gate encode(source))``; gradients flow to the gate."""

    def trained(self) -> list[Tensor]:
        """Return what is learned beside the mask."""
        return []


@final
@dataclass(frozen=True)
class Latents(Basis):
    """The latents of an SAE; its error is left out."""

    sae: SparseAutoencoder

    @property
    def size(self) -> int:
        """Number of latents."""
        return self.sae.d_sae

    @property
    def device(self) -> torch.device:
        """Where the SAE is."""
        return self.sae.device

    def mixed(
        self, base: Float[Tensor, "rows d_in"], source: Float[Tensor, "rows d_in"], gate: Float[Tensor, " size"]
    ) -> Float[Tensor, "rows d_in"]:
        """Return the reconstruction of mixed codes, on what fires only."""
        old, new = self.sae.encode(base), self.sae.encode(source)
        kept = self.sae.decode(Codes(old.selection, old.values * (1 - gate)[old.selection.cols]))
        taken = self.sae.decode(Codes(new.selection, new.values * gate[new.selection.cols]))
        return kept + taken - self.sae.tensors["b_dec"]


@final
@dataclass(frozen=True)
class Neurons(Basis):
    """The activations' own coordinates."""

    d_in: int
    place: torch.device

    @property
    def size(self) -> int:
        """Width of the activations."""
        return self.d_in

    @property
    def device(self) -> torch.device:
        """Where masks are."""
        return self.place

    def mixed(
        self, base: Float[Tensor, "rows d_in"], source: Float[Tensor, "rows d_in"], gate: Float[Tensor, " size"]
    ) -> Float[Tensor, "rows d_in"]:
        """Return the mixture."""
        return base + gate * (source - base)


@final
class Rotation(Basis):
    """The activations' coordinates after a rotation that is learned with the mask: the best basis there is (MDAS)."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        self._skew = torch.zeros(d_in, d_in, device=device, requires_grad=True)

    @property
    def size(self) -> int:
        """Width of the activations."""
        return len(self._skew)

    @property
    def device(self) -> torch.device:
        """Where the rotation is."""
        return self._skew.device

    def trained(self) -> list[Tensor]:
        """Return what the rotation is made of."""
        return [self._skew]

    def _matrix(self) -> Float[Tensor, "d_in d_in"]:
        """Return Cayley's ``(1 + A)^-1 (1 - A)`` of a skew-symmetric A: a rotation, the identity at the start."""
        skew = self._skew.triu(1) - self._skew.triu(1).T
        one = torch.eye(len(skew), device=skew.device)
        matrix: Tensor = torch.linalg.solve(one + skew, one - skew)
        return matrix

    def mixed(
        self, base: Float[Tensor, "rows d_in"], source: Float[Tensor, "rows d_in"], gate: Float[Tensor, " size"]
    ) -> Float[Tensor, "rows d_in"]:
        """Return the base, with the difference to the source taken along chosen axes."""
        matrix = self._matrix()
        return base + (((source - base) @ matrix.T) * gate) @ matrix


@dataclass(frozen=True)
class Fitting:
    """How masks are learned.

    Attributes:
        epochs: passes over the pairs.
        learning_rate: of Adam.
        batch_size: pairs in a step.
        seed: seed of their order.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


def fit_mask(
    basis: Basis,
    base: Float[Tensor, "pairs d_in"],
    source: Float[Tensor, "pairs d_in"],
    targets: Int[Tensor, " pairs"],
    logits: Callable[[Sequence[int], Tensor], Float[Tensor, "some vocabulary"]],
    fitting: Fitting,
    told: Callable[[int, int], None],
) -> Float[Tensor, " size"]:
    """Return the logits of a mask that makes the model answer the targets: coordinates above zero are swapped.

    The gate is ``sigmoid(logits / T)``; T falls from 1 to 1e-4 in equal ratios. The loss is the cross-entropy of the
    next token; nothing keeps the mask small, and logits of coordinates that never differ stay at zero.

    Args:
        basis: what is swapped.
        base: activations of each pair's base.
        source: activations of its source.
        targets: token that shall come next.
        logits: returns the model's next-token logits of some pairs, by their numbers, with these activations.
        fitting: how it is learned.
        told: is told after each step how many there have been, of how many.
    """
    mask = torch.zeros(basis.size, device=basis.device, requires_grad=True)
    optimiser = torch.optim.Adam([mask, *basis.trained()], lr=fitting.learning_rate)
    batches = list(_batches(len(targets), fitting))
    for step, numbers in enumerate(batches):
        temperature = _COLDEST ** (step / max(1, len(batches) - 1))
        gate = torch.sigmoid(mask / temperature)
        chosen = torch.tensor(numbers, device=base.device)
        found = logits(numbers, basis.mixed(base[chosen], source[chosen], gate))
        loss = torch.nn.functional.cross_entropy(found, targets[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        told(step + 1, len(batches))
    return mask.detach()


def _batches(count: int, fitting: Fitting) -> Iterator[list[int]]:
    generator = named_generator(fitting.seed, "swap masks")
    for _ in range(fitting.epochs):
        order = torch.randperm(count, generator=generator, device="cpu")
        for part in torch.split(order, fitting.batch_size):
            yield part.tolist()
