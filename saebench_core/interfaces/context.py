"""What the core hands to a plugin at work: device, generators, progress, and the store's get-or-make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from saebench_core.interfaces.entry import Json

if TYPE_CHECKING:
    import torch

    from saebench_core.interfaces.backbone import Backbone
    from saebench_core.rules import Rule

__all__ = ["ActivationReader", "Context", "MetricContext", "Progress", "Split"]

Split = Literal["train", "calibration", "evaluation"]


class Progress(Protocol):
    """Receives how far long work has come."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of the work called ``label`` are finished."""


class Context(Protocol):
    """Hands a plugin what it must not make itself."""

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Number format that model backbones run in."""

    @property
    def progress(self) -> Progress:
        """Where to report progress."""

    def generator(self, role: str) -> torch.Generator:
        """Return a fresh CPU generator for a role, seeded by the backbone's seed."""

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return the folder of a product, made by ``build(folder)`` if the store does not have it.

        Args:
            config: everything that the product depends on beside the plugin's own source.
            build: writes the product's files into an empty folder.
        """

    def record(self, asked: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return the folder of what came from outside, such as a server's answer, made once for all that ask the same.

        Other than a product it hangs on nothing but the question, no version and no backbone, and it is never cleared.

        Args:
            asked: everything that the answer depends on; no secrets, it is stored.
            build: writes the answer's files into an empty folder.
        """

    def rule_of(self, config: Mapping[str, Any]) -> Rule:
        """Return the selection rule of a saved SAE's ``cfg.json``, which may be another plugin's.

        Raises:
            InputError: if nothing installed knows it.
        """


class ActivationReader(Protocol):
    """Activations of one backbone, site and split, in their fixed order."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def d_in(self) -> int:
        """Width of a row."""

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield ``(batch_size, d_in)`` fp32 tensors on the context's device; the last may be smaller."""


class MetricContext(Context, Protocol):
    """Context of a metric: also one backbone and one site, on which its products depend."""

    @property
    def backbone(self) -> Backbone:
        """The backbone, prepared (loaded) at first use."""

    @property
    def site(self) -> str:
        """The site that is scored."""

    def backbone_product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        """Return the folder of a product that all sites of the backbone have in common; else as `product`."""

    def activations(self, split: Split, rows: int) -> ActivationReader:
        """Return the first ``rows`` activations of a split, computed once for all cells; fewer if there are fewer."""
