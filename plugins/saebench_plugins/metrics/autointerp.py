"""Can a latent be put in words that tell where it fires?"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench_core import (
    Backbone,
    BackboneDescription,
    Chart,
    Gallery,
    InputError,
    Json,
    Metric,
    MetricContext,
    MetricSpec,
    NotApplicable,
    Observed,
    PluginError,
    Prepared,
    ReadableModel,
    Score,
    Scored,
    ScoreInfo,
    Subject,
    Work,
    hookimpl,
    named_generator,
)
from saebench_plugins.metrics._interp_answers import answered, auroc
from saebench_plugins.metrics._interp_charts import accuracy_charts
from saebench_plugins.metrics._interp_config import AutointerpConfig, EmbeddingConfig, LlmConfig, judge_of
from saebench_plugins.metrics._interp_gallery import drawn_latents, galleries
from saebench_plugins.metrics._interp_judges import Judge
from saebench_plugins.metrics._interp_samples import Sample, draw_latents
from saebench_plugins.metrics._interp_scores import COUNTS, Drawn, infos, means
from saebench_plugins.metrics._llm_client import LlmClient, Message, Reply
from saebench_plugins.metrics._text_encoder import Embed, encoder_digest
from saebench_plugins.metrics._windows import Recorded, Window, embed_windows, firing_of, record, window_counts

__all__ = ["Autointerp"]

_CONTEXTS: Final = 5

_T = TypeVar("_T")
_R = TypeVar("_R")


class Autointerp(Metric):
    """Describes latents drawn at random, and tests the descriptions on windows that they were not made from."""

    version = 3

    def __init__(self, config: AutointerpConfig) -> None:
        self.config = config
        # one for all cells of a run, which share its limits
        self._client = LlmClient(config.judge) if isinstance(config.judge, LlmConfig) else None
        self._asks = isinstance(config.judge, LlmConfig)
        # a proxy's numbers go by its own name: they are no interpretability scores of a language model
        self._prefix = "" if self._asks else f"{config.judge.type}_"

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores; those of a proxy begin with its name."""
        return infos(self.config, self._prefix)

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for a language model whose tokens can be read as words."""
        if isinstance(backbone, ReadableModel):
            return None
        return NotApplicable("the backbone is no language model whose tokens can be read")

    def fingerprint(self) -> Mapping[str, Json]:
        """Return the digest of the encoder, where one judges."""
        judge = self.config.judge
        return {"encoder": encoder_digest(judge.encoder)} if isinstance(judge, EmbeddingConfig) else {}

    def work(self, description: BackboneDescription) -> Work:
        """Count tokens, which an SAE encodes twice, and questions; how long answers take is not known."""
        protocol, asked = self.config.protocol, 0
        if self._asks:
            tests = math.ceil(protocol.judged / protocol.dialogue.per_call) * (1 + self.config.shuffled)
            asked = protocol.latents * (1 + tests)
        return Work(prepared=self.config.tokens, encoded=2 * self.config.tokens, asked=asked)

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count every token's activation in fp32."""
        return self.config.tokens * (4 * description.sites[site] + 16)

    def prepare(self, context: MetricContext) -> Prepared:
        """Record tokens and activations, once for all entries that look at as many of the same; embed texts."""
        if self._client is not None:
            self._client.check()  # before hours of training
        recorded = self._recorded(context)
        if recorded.ids.shape[1] >= self.config.protocol.span:
            self._judge(context, recorded)
        # a description that says nothing calls all windows alike
        floors = {"accuracy": self.config.protocol.chance, "yield": 0.0, "above_0.7": 0.0}
        floors |= {} if self._asks else {"auroc": 0.5}
        if self.config.protocol.type != "paper":
            floors["balanced_accuracy"] = 0.5
        return Prepared({}, {}, {f"{self._prefix}{name}": floor for name, floor in floors.items()}, {})

    def _recorded(self, context: MetricContext) -> Recorded:
        def build(folder: Path) -> None:
            found = record(context, _model(context), self.config.split, self.config.tokens, multiple)
            save_file(found, folder / "recorded.safetensors")

        multiple = self.config.max_norm_multiple
        key: dict[str, Json] = {
            "recorded": self.config.split,
            "tokens": self.config.tokens,
            "max_norm_multiple": multiple,
        }
        return Recorded.of(load_file(context.product(key, build) / "recorded.safetensors"))

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Draw latents and windows, describe, and test; every answer of a language model is kept."""
        recorded, protocol = self._recorded(context), self.config.protocol
        if (length := recorded.ids.shape[1]) < protocol.span:
            reason = f"windows have {protocol.span} tokens, but the backbone's sequences {length} at most"
            return Scored(dict.fromkeys(self.scores(), NotApplicable(reason)))
        counts = window_counts(subject.sae, recorded, protocol.span)
        latents = draw_latents(counts, protocol.latents, protocol.fewest, self.config.seed)
        alive = float((counts >= protocol.fewest).to(torch.float64).mean())
        firing = firing_of(subject.sae, recorded, protocol.span, latents)
        drawn = [protocol.sample(latent, firing[latent], recorded, self.config.seed) for latent in latents]
        samples = [sample for sample in drawn if sample.tested]
        if not samples:
            where = "tokens" if protocol.span == 1 else "windows"
            reason = f"no latent fires at {protocol.fewest} {where} and is silent at others"
            found: dict[str, Score | NotApplicable] = dict.fromkeys(self.scores(), NotApplicable(reason))
            return Scored({**found, "alive": Score(alive, len(counts))})
        rows = self._rows(samples, self._judge(context, recorded), context)
        for row, sample in zip(rows, samples, strict=True):
            row["places"] = int(counts[sample.latent])
        return Scored(
            means(self.config, self._prefix, rows, Drawn(alive * len(samples) / len(drawn), alive, len(counts))),
            {name: [row[name] for row in rows] for name in rows[0]},
        )

    def figures(self, found: Sequence[Observed]) -> Sequence[Chart]:
        """Draw how accuracies are spread over latents, trained beside twins (paper figure 5)."""
        return accuracy_charts(found, self.config.judge.type)

    def galleries(self, found: Sequence[Observed]) -> Sequence[Gallery]:
        """Show the best and some random latents of trained SAEs beside those of twins."""
        return galleries(found, self.config.seed)

    def to_rate(self, found: Sequence[Observed], count: int) -> Sequence[Gallery]:
        """Return random latents of those asked about."""
        return drawn_latents(found, count, self.config.seed)

    def _rows(self, samples: Sequence[Sample], judge: Judge, context: MetricContext) -> list[dict[str, Any]]:
        described = self._each(samples, lambda sample: judge.describe(sample.shown), context, "descriptions")
        others = _others(len(samples), self.config.seed)

        def tested(number: int) -> dict[str, Any]:
            sample = samples[number]
            marks, tally = judge.marks(described[number], sample.tested)
            row = {
                "latent": sample.latent,
                "description": described[number].text,
                **answered(marks, sample.active),
                "auroc": auroc(marks, sample.active),
                "shuffled": None,
                "contexts": _contexts(sample.shown, _model(context)),
            }
            tallies = Counter(described[number].tally) + Counter(tally)
            if self.config.shuffled and len(samples) > 1:
                marks, tally = judge.marks(described[others[number]], sample.tested)
                row["shuffled"] = answered(marks, sample.active)["accuracy"]
                tallies += Counter(tally)
            return row | {name: float(tallies[name]) for name in COUNTS}

        return self._each(range(len(samples)), tested, context, "tests")

    def _each(self, items: Sequence[_T], work: Callable[[_T], _R], context: MetricContext, label: str) -> list[_R]:
        """Do work on each item, some at a time where a server is waited for; results in their order."""
        judge = self.config.judge
        found: list[_R] = []
        with ThreadPoolExecutor(judge.concurrency if isinstance(judge, LlmConfig) else 1) as pool:
            for result in pool.map(work, items):
                found.append(result)
                context.progress(f"autointerp: {label}", len(found), len(items))
        return found

    def _judge(self, context: MetricContext, recorded: Recorded) -> Judge:
        """Return the judge; what a language model answers is asked once, and windows are embedded once."""

        def kept(messages: Sequence[Message], max_tokens: int) -> Reply:
            client = self._client
            if client is None:
                raise PluginError("autointerp: a proxy asks no language model")

            def build(folder: Path) -> None:
                reply = client.ask(messages, max_tokens)
                (folder / "reply.json").write_text(json.dumps(reply._asdict()), encoding="utf-8")

            said: Json = [dict(message) for message in messages]
            key = {"judge": client.server.identity(), "messages": said, "max_tokens": max_tokens}
            return Reply(**json.loads((context.record(key, build) / "reply.json").read_text(encoding="utf-8")))

        def embedded(embed: Embed) -> Tensor:
            span = self.config.protocol.span

            def build(folder: Path) -> None:
                found = embed_windows(context, _model(context), recorded, span, embed)
                save_file({"windows": found}, folder / "embedded.safetensors")

            key = {"embedded": self.config.split, "tokens": self.config.tokens, "width": span, **self.fingerprint()}
            return load_file(context.product(key, build) / "embedded.safetensors")["windows"]

        return judge_of(self.config, _model(context), context.device, kept, embedded)


def _model(context: MetricContext) -> ReadableModel:
    model = context.backbone
    if not isinstance(model, ReadableModel):
        raise InputError("autointerp needs a language model whose tokens can be read")
    return model


def _others(count: int, seed: int) -> list[int]:
    """Return for each latent another one, each once."""
    order = torch.randperm(count, generator=named_generator(seed, "autointerp shuffled"), device="cpu").tolist()
    after = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [after[number] for number in range(count)]


def _contexts(shown: Sequence[Window], model: ReadableModel) -> str:
    """Return the first windows for people: pieces of text and the latent's codes, as JSON."""
    return json.dumps(
        [
            [model.pieces(window.ids), [round(value, 4) for value in window.values.tolist()]]
            for window in shown[:_CONTEXTS]
        ]
    )


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=AutointerpConfig,
            build=Autointerp,
            summary="How well descriptions of latents tell where they fire: by a language model, or by proxies",
            source="Bills et al. 2023; Paulo et al. 2024",
            depends=("scikit-learn", "transformers"),
        )
    ]
