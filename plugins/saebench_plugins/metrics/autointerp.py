"""Can a latent be put in words that tell where it fires?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal, TypeVar

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
from saebench_plugins.metrics._llm_client import LlmClient, Message, Reply
from saebench_plugins.metrics._text_encoder import Embed, encoder_digest
from saebench_plugins.metrics._windows import Recorded, Window, embed_windows, firing_of, record, window_counts

__all__ = ["Autointerp"]

_SOURCE: Final = "paper section 4.4; Bills et al. 2023; Paulo et al. 2024"
_GOOD: Final = 0.7
_CONTEXTS: Final = 5
_COUNTS: Final = ("requests", "retries", "repaired", "refused", "unparsed", "tokens_read", "tokens_written")

_T = TypeVar("_T")
_R = TypeVar("_R")


class Autointerp(Metric):
    """Describes latents drawn at random, and tests the descriptions on windows that they were not made from."""

    version = 2

    def __init__(self, config: AutointerpConfig) -> None:
        self.config = config
        # one for all cells of a run, which share its limits
        self._client = LlmClient(config.judge) if isinstance(config.judge, LlmConfig) else None
        self._asks = isinstance(config.judge, LlmConfig)
        # a proxy's numbers go by its own name: they are no interpretability scores of a language model
        self._prefix = "" if self._asks else f"{config.judge.type}_"

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores; those of a proxy begin with its name."""
        of = "share of tested windows of which it is said rightly whether the latent fires, mean over latents"
        found = {
            "accuracy": self._info("higher", of if self._asks else f"{of}; a proxy, no language model", headline=True),
            "above_0.7": self._info("higher", "share of latents with a balanced accuracy above 0.7"),
            "yield": self._info(
                "higher", "share of all latents that fire and can be tested, times the share of them above 0.7"
            ),
            "accuracy_shuffled": self._info("none", f"{of}, by the description of another latent"),
        }
        if not self._asks:
            found["auroc"] = self._info("higher", "area under the ROC curve of the windows' scores, mean over latents")
        if self.config.protocol.type != "paper":  # where half is active and half is not it is the accuracy
            found["balanced_accuracy"] = self._info("higher", "(true positive rate + true negative rate) / 2, mean")
            found["f1"] = self._info("higher", "2 true positives / (2 true positives + false ones of both kinds), mean")
        names = {f"{self._prefix}{name}": info for name, info in found.items()}
        names["alive"] = self._info("none", "share of latents that fire often enough to be asked about")
        if self._asks:
            for name in _COUNTS:
                names[name] = ScoreInfo(
                    "none", "1", 0.0, None, "encoder", f"{name.replace('_', ' ')}, counted", _SOURCE
                )
        return names

    def _info(self, direction: Literal["higher", "none"], formula: str, headline: bool = False) -> ScoreInfo:
        return ScoreInfo(direction, "share", 0.0, 1.0, "encoder", formula, _SOURCE, headline=headline)

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
        """Count tokens, which an SAE encodes twice; what a language model takes to answer is not known."""
        return Work(prepared=self.config.tokens, encoded=2 * self.config.tokens)

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count every token's activation in fp32."""
        return self.config.tokens * (4 * description.sites[site] + 16)

    def prepare(self, context: MetricContext) -> Prepared:
        """Record tokens and activations, once for all entries that look at as many of the same; embed texts."""
        if self._client is not None:
            self._client.check()  # here, before hours of training, and not when the first latent is described
        self._judge(context, self._recorded(context))
        floors = {"accuracy": self.config.protocol.chance} | ({} if self._asks else {"auroc": 0.5})
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
            self._means(rows, alive * len(samples) / len(drawn), alive, len(counts)),
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
            return row | {name: float(tallies[name]) for name in _COUNTS}

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

    def _means(
        self, rows: Sequence[Mapping[str, Any]], testable: float, alive: float, d_sae: int
    ) -> dict[str, Score | NotApplicable]:
        n, good = len(rows), fmean(row["balanced_accuracy"] > _GOOD for row in rows)
        shuffled = [row["shuffled"] for row in rows if row["shuffled"] is not None]
        own: dict[str, Score | NotApplicable] = {
            "accuracy": Score(fmean(row["accuracy"] for row in rows), n),
            "above_0.7": Score(good, n),
            "yield": Score(testable * good, d_sae),
            "accuracy_shuffled": Score(fmean(shuffled), len(shuffled))
            if shuffled
            else NotApplicable("no description of another latent was tested"),
        }
        means = [] if self._asks else ["auroc"]
        means += [] if self.config.protocol.type == "paper" else ["balanced_accuracy", "f1"]
        own |= {name: Score(fmean(row[name] for row in rows), n) for name in means}
        scores = {f"{self._prefix}{name}": value for name, value in own.items()}
        scores["alive"] = Score(alive, d_sae)
        if self._asks:
            scores |= {name: Score(sum(row[name] for row in rows), n) for name in _COUNTS}
        return scores


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
