"""Settings of `sparse_probing`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from saebench_core import MetricConfig, TableSource
from saebench_plugins.metrics._probe_fits import ProtocolName
from saebench_plugins.metrics._probing_suites import Suite

__all__ = ["SparseProbingConfig"]


class SparseProbingConfig(MetricConfig):
    """Logistic regression on the k latents whose means differ most between a class and the rest.

    Two protocols: ``paper`` averages codes over a text's tokens and fixes the strength of the regression;
    ``sae_probes`` takes the last token, ranks latents in units of their mean activity, and chooses the strength on a
    part of the training set (``sae_probes_l1``: with an L1 penalty).
    """

    type: Literal["sparse_probing"] = "sparse_probing"
    k: tuple[PositiveInt, ...] = Field((1, 2, 5), min_length=1, description="Numbers of latents in a probe.")
    protocol: ProtocolName = Field("paper", description="How features are made, chosen and fitted.")
    suite: Suite | None = Field(
        None,
        description="Tables that come with the metric. paper: eight groups from a hub; sae_probes: 113 binary sets of "
        "that wheel, taken where neither suite nor tasks are given; safety: those of them on toxicity, hate, spam and "
        "deception; languages: Debian's fortunes.",
    )
    tasks: tuple[TableSource, ...] = Field((), description="Labelled tables of texts; images bring their own labels.")
    train_size: int | None = Field(None, ge=4, description="Training items of a probe; by default the protocol's.")
    test_size: int | None = Field(None, ge=2, description="Test items of a probe, at most; by default the protocol's.")
    positive_share: float = Field(0.5, gt=0, lt=1, description="Share of a probe's items that are of its class.")
    max_tokens: PositiveInt | None = Field(
        None, description="Tokens of a text that are read; by default the protocol's."
    )
    permutations: PositiveInt = Field(
        5, description="Orders of the permuted labels; chance may select a telling latent with either sign."
    )
    seed: int = Field(42, description="Seed of the samples and of the permuted labels.")

    @model_validator(mode="after")
    def _one_name_each(self) -> SparseProbingConfig:
        titles = [task.title for task in self.tasks]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two tasks are called {title!r}; give each its own `name`")
        if len(set(self.k)) < len(self.k):
            raise ValueError(f"`k` has a number twice: {list(self.k)}")
        return self
