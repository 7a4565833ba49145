"""Synthetic activations with known features (paper section 3.1, appendix B).

``x = bias + sum_i b_i c_i f_i + noise`` with ``f_i`` uniform on the sphere, ``b_i ~ Bernoulli(p_i)`` independent and
``c_i ~ LogNormal(0, sigma)``, drawn anew for every row and feature. The paper's world has neither bias nor noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

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
    derive_seed,
    hookimpl,
    named_generator,
)
from saebench_plugins.backbones._blocks import BLOCK, Block, Drawing
from saebench_plugins.backbones._correlations import Correlation
from saebench_plugins.backbones._directions import Orthogonalisation, pushed_apart, random_directions
from saebench_plugins.backbones._firing import Independence, Law
from saebench_plugins.backbones._frequencies import LogUniformProbability, Probability
from saebench_plugins.backbones._hierarchy import Hierarchy
from saebench_plugins.backbones._magnitudes import LogNormal, Magnitudes, RectifiedNormal


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

    @model_validator(mode="after")
    def _parents_first(self) -> SyntheticConfig:
        if self.hierarchy is not None and self.hierarchy.compensate and not self.probability.falls:
            raise ValueError(
                "hierarchy: no child can fire more often than its parent, and probabilities are "
                f"{self.probability.type}; give some that fall with the number of the feature (zipf, linear), or "
                "compensate: false"
            )
        return self

    @model_validator(mode="after")
    def _one_law_of_magnitudes(self) -> SyntheticConfig:
        usual = SyntheticConfig.model_fields["lognormal_sigma"].default
        if self.magnitude is not None and self.lognormal_sigma != usual:
            raise ValueError("magnitude stands in place of log-normal ones; give it or lognormal_sigma")
        return self


class Synthetic(Backbone):
    """Draws rows in fixed blocks; exposes features, probabilities and codes."""

    site = "activations"

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._device = torch.device("cpu")
        self._features: Tensor | None = None
        self._drawing: Drawing | None = None
        self._rates: Tensor | None = None
        self._bias: Tensor | None = None

    def describe(self) -> BackboneDescription:
        """Return the one site and the sizes."""
        config = self.config
        expected = config.probability.expected_sum(config.n_features)
        known = config.hierarchy is None and config.magnitude is None  # else they fire less often than drawn
        loadings = config.n_features * self._causes
        return BackboneDescription(
            modality="synthetic",
            sites={self.site: config.d_in},
            regenerates=True,
            memory_bytes=8 * config.n_features * config.d_in
            + 64 * BLOCK * config.d_in
            + 4096 * self._dense
            + 28 * loadings,
            seconds_per_row=self._seconds_per_row(expected),
            facts={"n_features": config.n_features} | ({"expected_l0": round(expected, 3)} if known else {}),
        )

    @property
    def _causes(self) -> int:
        """Numbers that features share in a row."""
        correlation = self.config.correlation
        return 0 if correlation is None else correlation.causes(self.config.n_features)

    @property
    def _dense(self) -> int:
        """Features of which each has a number in every row; children are drawn where their parents fire."""
        config, trees = self.config, self.config.hierarchy
        if config.correlation is None:
            return 0
        return config.n_features if trees is None else config.n_features - trees.size + trees.roots

    def _seconds_per_row(self, expected: float) -> float:
        """Estimate by how many features fire, how many children these have, and what is drawn in every row."""
        trees = self.config.hierarchy
        children = 0.0 if trees is None else expected * trees.branching
        fired = 1e-8 * expected * (1 + self.config.d_in / 100)
        return 1e-7 + fired + (1e-7 + 1e-9 * self._causes) * children + (1.2e-8 + 2e-10 * self._causes) * self._dense

    def prepare(self, context: Context) -> None:
        """Draw directions and probabilities, strengths and bias where there are any."""
        config = self.config
        self._device = context.device
        count = config.n_features
        features = random_directions(count, config.d_in, self._generator("features"))
        self._features = features if config.orthogonalise is None else pushed_apart(features, config.orthogonalise)
        self._drawing = self._drawn(count)
        self._rates = None
        if config.bias_norm > 0:
            self._bias = config.bias_norm * random_directions(1, config.d_in, self._generator("bias"))[0]

    def _drawn(self, count: int) -> Drawing:
        """Draw what is drawn once: probabilities, who needs whom, what is shared, strengths."""
        config, forest = self.config, None
        magnitudes: Magnitudes = LogNormal(config.lognormal_sigma)
        probabilities = config.probability.draw(count, self._generator("probabilities"))
        if config.hierarchy is not None:
            forest = config.hierarchy.grow(count, self._generator("hierarchy"))
            if config.hierarchy.compensate:
                probabilities = forest.compensated(probabilities)
        law: Law = Independence(probabilities)
        if config.correlation is not None:
            law = config.correlation.draw(probabilities, self._generator("correlation"))
        if config.magnitude is not None:
            magnitudes = config.magnitude.draw(count, self._generator("magnitudes"))
        return Drawing(probabilities, law, magnitudes, forest)

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
        """Return how often each feature fires; with a hierarchy and a correlation, about as often.

        Then they are means over draws of what features share, good to some percent where correlations are weak, and to
        some tens of percent for rare features where they are strong.

        Raises:
            RuntimeError: before `prepare`.
        """
        if self._drawing is None:
            raise RuntimeError("the synthetic backbone is not prepared")
        if self._rates is None:
            self._rates = self._drawing.rates(self._causes, derive_seed("synthetic rates", str(self.config.seed)))
        return self._rates.to(self._device, torch.float32)

    def parents(self) -> Int[Tensor, " n_features"]:
        """Return the feature that each one needs to fire, -1 for none."""
        config = self.config
        if config.hierarchy is None:
            return torch.full((config.n_features,), -1, dtype=torch.int64, device="cpu")
        return config.hierarchy.parents(config.n_features)

    def rows_available(self, site: str, split: Split) -> int | None:
        """Rows never end."""
        return None

    def _block(self, split: Split, index: int) -> Block:
        if self._drawing is None:
            raise RuntimeError("the synthetic backbone is not prepared")
        return self._drawing.block(self._generator(split, index))

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
            drawn = torch.randn(BLOCK, self.config.d_in, generator=generator, device="cpu")
            x = x + self.config.noise * drawn[first:last]
        return x


def _cuts(start: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, first row in it, row after the last) that cover ``rows`` rows from ``start``."""
    position, stop = start, start + rows
    while position < stop:
        index, first = divmod(position, BLOCK)
        last = min(BLOCK, first + stop - position)
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
