"""Synthetic activations with known features (paper section 3.1, appendix B).

``x = bias + sum_i b_i c_i f_i + noise`` with ``f_i`` uniform on the sphere, ``b_i ~ Bernoulli(p_i)`` independent and
``c_i ~ LogNormal(0, sigma)``, drawn anew for every row and feature. The paper's world has neither bias nor noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from saebench_core import (
    ActivationBatch,
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Codes,
    Context,
    Selection,
    Split,
    hookimpl,
    named_generator,
)
from saebench_plugins.backbones._correlations import Correlation, Dependence
from saebench_plugins.backbones._directions import Orthogonalisation, pushed_apart, random_directions
from saebench_plugins.backbones._firing import fire_independently
from saebench_plugins.backbones._frequencies import LogUniformProbability, Probability
from saebench_plugins.backbones._hierarchy import Forest, Hierarchy
from saebench_plugins.backbones._magnitudes import RectifiedNormal, Strength

_BLOCK = 4096
"""Rows of a block: drawn together from one generator, so that rows do not depend on how they are cut."""


class SyntheticConfig(BackboneConfig):
    """Configuration of `Synthetic`; the defaults are the paper's variable setting."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"correlation", "hierarchy", "magnitude", "bias_norm", "noise", "orthogonalise"}
    )

    type: Literal["synthetic"] = "synthetic"
    d_in: PositiveInt = Field(100, description="Width of the activations.")
    n_features: PositiveInt = Field(3200, description="Number of true features.")
    probability: Probability = Field(
        LogUniformProbability(low=10**-5.5, high=10**-1.2), description="How often features fire."
    )
    correlation: Correlation | None = Field(None, description="Let features fire together; null: independently.")
    hierarchy: Hierarchy | None = Field(None, description="Let features fire only where a parent does.")
    lognormal_sigma: NonNegativeFloat = Field(0.25, description="Sigma of the log-normal magnitudes.")
    magnitude: RectifiedNormal | None = Field(None, description="Other magnitudes in place of log-normal ones.")
    bias_norm: NonNegativeFloat = Field(0.0, description="Norm of a vector that is added to every row.")
    noise: NonNegativeFloat = Field(0.0, description="Standard deviation of each coordinate's normal noise.")
    orthogonalise: Orthogonalisation | None = Field(None, description="Push the features' directions apart.")

    @model_validator(mode="after")
    def _roomy(self) -> SyntheticConfig:
        if self.hierarchy is not None and self.hierarchy.size > self.n_features:
            raise ValueError(
                f"the hierarchy has {self.hierarchy.size} features, n_features is {self.n_features}; "
                "give fewer roots, a smaller branching or depth, or more features"
            )
        return self


class _Block(NamedTuple):
    """Active entries of a block, row by row.

    Attributes:
        bounds: where each row's entries begin, and where the last end.
        cols: their features, ascending in a row.
        values: their magnitudes.
    """

    bounds: Int[Tensor, " bounds"]
    cols: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]


class Synthetic(Backbone):
    """Draws rows in fixed blocks; exposes features, probabilities and codes."""

    site = "activations"

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._device = torch.device("cpu")
        self._features: Tensor | None = None
        self._probabilities: Tensor | None = None
        self._strength: Strength | None = None
        self._dependence: Dependence | None = None
        self._forest: Forest | None = None
        self._marginals: Tensor | None = None
        self._bias: Tensor | None = None

    def describe(self) -> BackboneDescription:
        """Return the one site and the sizes."""
        config = self.config
        expected = config.probability.expected_sum(config.n_features)
        known = config.hierarchy is None and config.magnitude is None  # else they fire less often than drawn
        dense = config.n_features if config.correlation is not None else 0
        return BackboneDescription(
            modality="synthetic",
            sites={self.site: config.d_in},
            regenerates=True,
            memory_bytes=8 * config.n_features * config.d_in + 64 * _BLOCK * config.d_in + 4096 * dense,
            seconds_per_row=1e-7 + 1e-8 * expected * (1 + config.d_in / 100) + 5e-9 * dense,
            facts={"n_features": config.n_features} | ({"expected_l0": round(expected, 3)} if known else {}),
        )

    def prepare(self, context: Context) -> None:
        """Draw directions and probabilities, strengths and bias where there are any."""
        config = self.config
        self._device = context.device
        count = config.n_features
        features = random_directions(count, config.d_in, self._generator("features"))
        self._features = features if config.orthogonalise is None else pushed_apart(features, config.orthogonalise)
        self._probabilities = config.probability.draw(count, self._generator("probabilities"))
        if config.hierarchy is not None:
            self._forest = config.hierarchy.grow(count, self._generator("hierarchy"))
            if config.hierarchy.compensate:
                self._probabilities = self._forest.compensated(self._probabilities)
        if config.correlation is not None:
            self._dependence = config.correlation.draw(count, self._generator("correlation"))
        if config.magnitude is not None:
            self._strength = config.magnitude.strength(count, self._generator("magnitudes"))
        self._marginals = self._firing_rates(self._probabilities)
        if config.bias_norm > 0:
            self._bias = config.bias_norm * random_directions(1, config.d_in, self._generator("bias"))[0]

    def _firing_rates(self, drawn: Tensor) -> Tensor:
        """Return how often features fire: what is rectified away, or has no parent, does not."""
        if self._strength is not None:
            drawn = drawn * torch.special.ndtr(self._strength.mean.double() / self._strength.std.double())
        return drawn if self._forest is None else self._forest.marginals(drawn)

    def _generator(self, *roles: str | int) -> torch.Generator:
        return named_generator(self.config.seed, "synthetic", *roles)

    def features(self) -> Float[Tensor, "n_features d_in"]:
        """Return the unit-norm feature directions.

        Raises:
            RuntimeError: before `prepare`.
        """
        if self._features is None:
            raise RuntimeError("the synthetic backbone is not prepared")
        return self._features.to(self._device)

    def probabilities(self) -> Float[Tensor, " n_features"]:
        """Return how often each feature fires; with a hierarchy, as if there were no correlation.

        Raises:
            RuntimeError: before `prepare`.
        """
        if self._marginals is None:
            raise RuntimeError("the synthetic backbone is not prepared")
        return self._marginals.to(self._device, torch.float32)

    def parents(self) -> Int[Tensor, " n_features"]:
        """Return the feature that each one needs to fire, -1 for none."""
        config = self.config
        if config.hierarchy is None:
            return torch.full((config.n_features,), -1, dtype=torch.int64, device="cpu")
        return config.hierarchy.parents(config.n_features)

    def rows_available(self, site: str, split: Split) -> int | None:
        """Rows never end."""
        return None

    def _block(self, split: Split, index: int) -> _Block:
        """Draw a block: which features fire in which rows, then how strongly."""
        if self._probabilities is None:
            raise RuntimeError("the synthetic backbone is not prepared")
        generator = self._generator(split, index)
        if self._dependence is None:
            fired = fire_independently(self._probabilities, _BLOCK, generator)
        else:
            fired = self._dependence.fire(self._probabilities, _BLOCK, generator)
        normal = torch.randn(fired.cols.numel(), generator=generator, device="cpu")
        block = self._with_magnitudes(_Block(fired.bounds, fired.cols, normal))
        return block if self._forest is None else self._pruned(block, self._forest, generator)

    def _pruned(self, block: _Block, forest: Forest, generator: torch.Generator) -> _Block:
        """Leave out what has no parent in its row, and all but one of exclusive siblings."""
        rows = torch.arange(_BLOCK, device="cpu").repeat_interleave(block.bounds.diff())
        priority = torch.rand(block.cols.numel(), generator=generator, dtype=torch.float64, device="cpu")
        active, above = forest.prune(rows, block.cols, priority)
        values = block.values
        if self.config.hierarchy is not None and self.config.hierarchy.scale_by_parent:
            values = self._scaled(block, forest, above)
        return _kept(block._replace(values=values), active)

    def _scaled(self, block: _Block, forest: Forest, above: Tensor) -> Tensor:
        """Multiply entries by their parent's value over its mean, from the roots on."""
        values = block.values.clone()
        mean = self._strength.mean if self._strength is not None else None
        usual = math.exp(self.config.lognormal_sigma**2 / 2)
        for first, last in forest.levels[1:]:
            here = ((block.cols >= first) & (block.cols < last) & (above >= 0)).nonzero()[:, 0]
            parents = block.cols[above[here]]
            values[here] *= values[above[here]] / (mean[parents] if mean is not None else usual)
        return values

    def _with_magnitudes(self, drawn: _Block) -> _Block:
        """Turn standard normal values into magnitudes; entries that come out as zero are left out."""
        if self._strength is None:
            return drawn._replace(values=torch.exp(self.config.lognormal_sigma * drawn.values))
        values = torch.relu(self._strength.mean[drawn.cols] + self._strength.std[drawn.cols] * drawn.values)
        return _kept(drawn._replace(values=values), values > 0)

    def _codes(self, split: Split, index: int, first: int, last: int) -> Codes:
        block = self._block(split, index)
        bounds = block.bounds[first : last + 1]
        inside = slice(int(bounds[0]), int(bounds[-1]))
        rows = torch.arange(last - first, device="cpu").repeat_interleave(bounds.diff())
        return Codes(Selection(rows, block.cols[inside], last - first, self.config.n_features), block.values[inside])

    def codes(self, split: Split, start: int, rows: int) -> Codes:
        """Return the true coefficients of rows ``start`` to ``start + rows``."""
        parts = [self._codes(split, *cut) for cut in _cuts(start, rows)]
        offset, all_rows = 0, []
        for part in parts:
            all_rows.append(part.selection.rows + offset)
            offset += part.selection.n_rows
        cols = torch.cat([part.selection.cols for part in parts])
        selection = Selection(torch.cat(all_rows), cols, rows, self.config.n_features)
        return Codes(selection, torch.cat([part.values for part in parts]))

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield rows block by block; bit-equal for any cut."""
        features = self.features().to("cpu")
        for index, first, last in _cuts(start, rows):
            block = self._block(split, index)
            bounds = block.bounds[first : last + 1]
            inside = slice(int(bounds[0]), int(bounds[-1]))
            x = torch.nn.functional.embedding_bag(
                block.cols[inside],
                features,
                bounds[:-1] - bounds[0],
                mode="sum",
                per_sample_weights=block.values[inside],
            )
            x = self._shifted(x, split, index, first, last).to(self._device)
            yield ActivationBatch(x, x)

    def _shifted(self, x: Tensor, split: Split, index: int, first: int, last: int) -> Tensor:
        """Add bias and noise to rows of a block; the noise is the whole block's, so it does not depend on the cut."""
        if self._bias is not None:
            x = x + self._bias
        if self.config.noise > 0:
            generator = self._generator("noise", split, index)
            drawn = torch.randn(_BLOCK, self.config.d_in, generator=generator, device="cpu")
            x = x + self.config.noise * drawn[first:last]
        return x


def _kept(block: _Block, active: Tensor) -> _Block:
    before = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), active.cumsum(0)])
    return _Block(before[block.bounds], block.cols[active], block.values[active])


def _cuts(start: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, first row in it, row after the last) that cover ``rows`` rows from ``start``."""
    position, stop = start, start + rows
    while position < stop:
        index, first = divmod(position, _BLOCK)
        last = min(_BLOCK, first + stop - position)
        yield index, first, last
        position += last - first


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """Offer ``synthetic``."""
    return [
        BackboneSpec(
            config=SyntheticConfig,
            build=Synthetic,
            summary="Sparse sums of known random features; the ground truth is exposed",
            source="Sanity Checks for SAEs, section 3.1 and appendix B",
        )
    ]
