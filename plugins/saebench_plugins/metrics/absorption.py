"""First-letter absorption: a letter's latent stays silent where a latent of the very word takes its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from saebench_core import (
    Backbone,
    BackboneDescription,
    EditableModel,
    InputError,
    Json,
    Metric,
    MetricConfig,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    Split,
    Subject,
    Work,
    hookimpl,
)
from saebench_plugins.metrics._absorbed import absorbed, letter_latents
from saebench_plugins.metrics._letter_probes import fit_letters, read_words, words_of_corpus

__all__ = ["Absorption", "AbsorptionConfig"]

_SOURCE: Final = "Chanin et al. 2024; SAEBench absorption"
_SPARE: Final = 4  # many words are no single token


class AbsorptionConfig(MetricConfig):
    """How much of a letter's direction is carried by other latents than those that stand for the letter.

    An untrained SAE has no letter latents and little to absorb, so that less is not better: no score has a direction.
    """

    type: Literal["absorption"] = "absorption"
    words: PositiveInt = Field(4000, description="Words, the most frequent of the corpus that are one token each.")
    tokens: PositiveInt = Field(500_000, description="Tokens of the corpus that are looked through for words.")
    split: Split = Field("train", description="Part of the corpus.")
    examples: PositiveInt = Field(10, description="Answered examples before each word.")
    min_letters: PositiveInt = Field(20, description="Letters that the model must know, or nothing is scored.")
    min_f1: float = Field(0.6, ge=0, le=1, description="F1 that a probe of a letter must have on test words.")
    max_k: PositiveInt = Field(10, description="Latents that may stand for one letter.")
    min_rise: float = Field(0.03, ge=0, description="Rise of F1 for which a letter takes one more latent.")
    seed: int = Field(42, description="Seed of examples and of the test words.")


class Absorption(Metric):
    """Probes the letters in the activations, finds their latents, and follows words of which these are silent."""

    version = 2

    def __init__(self, config: AbsorptionConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores."""
        share = "mean over letters of the mean over test words with the letter that the raw probe finds of"
        return {
            "fraction": ScoreInfo(
                "none",
                "share",
                0.0,
                1.0,
                "both",
                f"{share} A / (A + M): M the main latents' part of the probe's direction, A that of at most 3 others",
                _SOURCE,
            ),
            "full": ScoreInfo(
                "none",
                "share",
                0.0,
                1.0,
                "both",
                f"{share} whether all main latents are silent and one other carries 40 % of the direction",
                _SOURCE,
            ),
            "main_f1": ScoreInfo(
                "none", "share", 0.0, 1.0, "encoder", "mean F1 of a probe on the main latents of a letter", _SOURCE
            ),
            "main_latents": ScoreInfo("none", "1", 1.0, None, "encoder", "mean number of main latents", _SOURCE),
        }

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for a language model that says where words are among its tokens."""
        if isinstance(backbone, EditableModel):
            return None
        return NotApplicable("the backbone is no language model that says where words are among its tokens")

    def work(self, description: BackboneDescription) -> Work:
        """Count a prompt a word, of about five tokens an example."""
        return Work(prepared=self.config.words * 5 * (self.config.examples + 1), encoded=self.config.words)

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count an activation a word."""
        return 4 * self.config.words * description.sites[site]

    def prepare(self, context: MetricContext) -> Prepared:
        """Collect words, read them, and probe their first letters."""
        model, config = context.backbone, self.config
        if not isinstance(model, EditableModel):
            raise InputError("absorption needs a language model that says where words are among its tokens")
        frequent = words_of_corpus(model, config.split, config.tokens, _SPARE * config.words)
        words, rows = read_words(model, context, frequent, config.words, config.examples, config.seed)
        letters = fit_letters(words, rows, config.seed)
        known = {letter: found for letter, found in letters.items() if found.f1 >= config.min_f1}
        facts: dict[str, Json] = {
            "words": [*words],
            "letters": [*known],
            "f1": {letter: found.f1 for letter, found in letters.items()},
        }
        tensors = {
            "rows": rows,
            "tested": next(iter(letters.values())).tested if letters else torch.zeros(0, device="cpu"),
        }
        for letter, found in known.items():
            tensors |= {f"{letter}.direction": found.direction, f"{letter}.found": found.found}
        return Prepared(tensors, facts, {}, {})

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Find each letter's main latents, and what others carry where these are silent."""
        facts: Any = prepared.facts
        if len(facts["letters"]) < self.config.min_letters:
            reason = (
                f"probes find {len(facts['letters'])} first letters with an F1 of {self.config.min_f1:g} or more, and "
                f"{self.config.min_letters} are needed: the model does not spell here"
            )
            return Scored(dict.fromkeys(self.scores(), NotApplicable(reason)))
        rows, tested = prepared.tensors["rows"].to("cpu"), prepared.tensors["tested"].to("cpu", torch.bool)
        codes = subject.sae.encode(rows.to(subject.sae.device, torch.float32))
        found: list[dict[str, Any]] = []
        for number, letter in enumerate(facts["letters"]):
            labels = torch.tensor([word[0] == letter for word in facts["words"]], device="cpu")
            main, f1 = letter_latents(codes, labels, tested, self.config.max_k, self.config.min_rise)
            true = (prepared.tensors[f"{letter}.found"].to("cpu", torch.bool) & labels & tested).nonzero()[:, 0]
            direction = prepared.tensors[f"{letter}.direction"].to("cpu")
            shares, full = absorbed(subject.sae, codes, rows, main, direction, true)
            found.append(
                {
                    "letter": letter,
                    "words": len(true),
                    "fraction": _mean(shares),
                    "full": _mean(full),
                    "main_f1": f1,
                    "main_latents": len(main),
                    "latent": main[0],
                }
            )
            context.progress("absorption", number + 1, len(facts["letters"]))
        n = sum(row["words"] for row in found)
        scores: dict[str, Score | NotApplicable] = {
            name: Score(fmean(row[name] for row in found if row["words"]), n) for name in self.scores()
        }
        return Scored(scores, {name: [row[name] for row in found] for name in found[0]})


def _mean(values: Sequence[float] | Tensor) -> float:
    return float(torch.as_tensor(values, dtype=torch.float64, device="cpu").mean()) if len(values) else 0.0


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=AbsorptionConfig,
            build=Absorption,
            summary="How much of a first letter's direction other latents carry than those of the letter",
            source="Chanin et al. 2024; SAEBench absorption",
            depends=("scikit-learn",),
        )
    ]
