"""How well one or a few latents tell classes apart, by k-sparse linear probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final, Literal, TypeVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from saebench_core import (
    Backbone,
    BackboneDescription,
    InputError,
    Json,
    LanguageModel,
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
    TableSource,
    VisionModel,
    hookimpl,
    named_generator,
)
from saebench_plugins.metrics._probing import (
    Groups,
    Probe,
    draw_probe,
    fit_probe,
    fit_selected,
    mean_over_tasks,
    mean_rows,
    pool_codes,
    store_rows,
)

__all__ = ["SparseProbing", "SparseProbingConfig"]

_AT_ONCE: Final = 64
_SPLITS: Final[tuple[Split, ...]] = ("train", "evaluation")
_TENSORS: Final = ("train", "train_labels", "permuted", "test", "test_labels")
_FEWEST: Final = 10
"""Items that a class must have in the training and test pools together; rarer classes are left out."""

_T = TypeVar("_T")
Reader = Callable[[Sequence[int]], Iterator[list[Tensor]]]
"""Yields the activations ``(rows, d_in)`` of items, some items at a time."""


class SparseProbingConfig(MetricConfig):
    """Logistic regression on the k latents whose means differ most between a class and the rest."""

    type: Literal["sparse_probing"] = "sparse_probing"
    k: tuple[PositiveInt, ...] = Field((1, 5), min_length=1, description="Numbers of latents in a probe.")
    tasks: tuple[TableSource, ...] = Field((), description="Labelled tables of texts; images bring their own labels.")
    train_size: int = Field(4000, ge=4, description="Training items of a probe, half of them positive.")
    test_size: int = Field(1000, ge=2, description="Test items of a probe, half of them positive.")
    max_tokens: PositiveInt = Field(128, description="Tokens of a text that are read.")
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


@dataclass(frozen=True)
class _Task:
    """Items of each class, for training and for the test, and the classes that get a probe."""

    title: str
    train: Groups
    test: Groups
    classes: Sequence[str]


class SparseProbing(Metric):
    """Pools codes over the tokens of a text (of an image), ranks latents on train, fits, tests."""

    def __init__(self, config: SparseProbingConfig) -> None:
        self.config = config

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name two scores for each k: with true and with permuted training labels."""
        source = "paper section 4.2; SAEBench sparse probing"
        fit = "test accuracy of logistic regression on the {} latents with the largest |mean_pos - mean_neg| on train"
        names: dict[str, ScoreInfo] = {}
        for k in self.config.k:
            formula = fit.format(k)
            names[f"top{k}"] = ScoreInfo("higher", "share", 0.0, 1.0, "encoder", formula, source, headline=True)
            names[f"top{k}_permuted"] = ScoreInfo(
                "none",
                "share",
                0.0,
                1.0,
                "encoder",
                f"{formula}, its labels permuted: what chance selects, mean over orders",
                source,
            )
        return names

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for texts with labels, or for images with classes."""
        if isinstance(backbone, VisionModel) or (isinstance(backbone, LanguageModel) and self.config.tasks):
            return None
        if isinstance(backbone, LanguageModel):
            return NotApplicable("no labelled texts: sparse_probing has no `tasks` for this language model")
        return NotApplicable("the backbone reads neither texts nor labelled images")

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count every token of every item as full; items of a task with several classes are counted once."""
        tokens = description.facts.get("tokens_per_image")
        each = tokens if isinstance(tokens, int) else self.config.max_tokens
        items = max(1, len(self.config.tasks)) * (self.config.train_size + self.config.test_size)
        return items * each * description.sites[site] * 4

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the tables."""
        return {task.title: task.fingerprint() for task in self.config.tasks}

    def prepare(self, context: MetricContext) -> Prepared:
        """Draw the probes, read every item once, and probe the raw activations for the ceiling."""
        tasks, lengths, read = self._inputs(context)
        drawn = [self._draw(task, label) for task in tasks for label in task.classes]
        probes = [probe for probe in drawn if len(probe.train) and len(probe.test)]
        if not probes:
            raise InputError(f"sparse_probing: no class has {_FEWEST} items, and other classes to tell it from")
        # items of one length side by side: little padding
        used = sorted({int(i) for p in probes for i in (*p.train, *p.test)}, key=lambda item: (lengths[item], item))
        place = torch.zeros(len(lengths), dtype=torch.int64)
        place[torch.tensor(used)] = torch.arange(len(used))
        probes = [replace(probe, train=place[probe.train], test=place[probe.test]) for probe in probes]
        return self._prepared(probes, *store_rows(read(used)))

    def _prepared(self, probes: Sequence[Probe], activations: Tensor, offsets: Tensor) -> Prepared:
        raw = mean_rows(activations, offsets)
        fits = [fit_probe(raw, probe, probe.train_labels) for probe in probes]
        ceiling = mean_over_tasks(probes, [fit.accuracy for fit in fits])
        facts: dict[str, Json] = {
            "probes": [{"task": probe.task, "label": probe.label} for probe in probes],
            "stored_as": str(activations.dtype),
            "ceiling": [{"accuracy": fit.accuracy, "converged": fit.converged} for fit in fits],
        }
        tensors = {"activations": activations, "offsets": offsets}
        for number, probe in enumerate(probes):
            tensors |= {f"{number}.{name}": getattr(probe, name) for name in _TENSORS}
        floors = dict.fromkeys(self.scores(), 0.5)
        return Prepared(tensors, facts, floors, {f"top{k}": ceiling for k in self.config.k})

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Encode every item once, then select and fit for each class and k."""
        tensors, facts = prepared.tensors, prepared.facts
        listed: Any = facts["probes"]
        probes = [
            Probe(names["task"], names["label"], *(tensors[f"{number}.{name}"] for name in _TENSORS))
            for number, names in enumerate(listed)
        ]
        pooled = pool_codes(subject.sae, tensors["activations"], tensors["offsets"])
        names = ("task", "label", "k", "accuracy", "permuted", "latent", "converged")
        rows: list[tuple[Any, ...]] = []
        for number, probe in enumerate(probes):
            fits, latent = fit_selected(pooled, probe, probe.train_labels, self.config.k)
            controls = [fit_selected(pooled, probe, labels, self.config.k)[0] for labels in probe.permuted]
            for k, fit, control in zip(self.config.k, fits, zip(*controls, strict=True), strict=True):
                permuted = fmean(other.accuracy for other in control)
                converged = all(other.converged for other in (fit, *control))
                rows.append((probe.task, probe.label, k, fit.accuracy, permuted, latent, converged))
            context.progress("sparse_probing", number + 1, len(probes))
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        return Scored(self._means(probes, columns), columns)

    def _means(self, probes: Sequence[Probe], columns: Mapping[str, list[Any]]) -> dict[str, Score | NotApplicable]:
        n = sum(len(probe.test) for probe in probes)
        scores: dict[str, Score | NotApplicable] = {}
        for k in self.config.k:
            for column, name in (("accuracy", f"top{k}"), ("permuted", f"top{k}_permuted")):
                values = [value for value, own in zip(columns[column], columns["k"], strict=True) if own == k]
                scores[name] = Score(mean_over_tasks(probes, values), n)
        return scores

    def _draw(self, task: _Task, label: str) -> Probe:
        sizes = (self.config.train_size, self.config.test_size)
        return draw_probe(task.title, label, task.train, task.test, sizes, self.config.seed, self.config.permutations)

    def _inputs(self, context: MetricContext) -> tuple[list[_Task], list[int], Reader]:
        """Return the tasks, the length of every item, and what reads items."""
        backbone = context.backbone
        if isinstance(backbone, LanguageModel) and self.config.tasks:
            return self._texts(context, backbone)
        if isinstance(backbone, VisionModel):
            return self._images(context, backbone)
        raise InputError("sparse_probing needs a language model and `tasks`, or a vision model")

    def _texts(self, context: MetricContext, model: LanguageModel) -> tuple[list[_Task], list[int], Reader]:
        index: dict[str, int] = {}
        tasks = []
        for source in self.config.tasks:
            first: dict[str, str] = {}
            for text, label in zip(*source.rows(), strict=True):
                first.setdefault(text, label)  # a text that comes again, in whatever class, is left out
            groups: Groups = {}
            for text, label in first.items():
                groups.setdefault(label, []).append(index.setdefault(text, len(index)))
            tasks.append(self._split(source.title, groups, source.positive))
        texts = list(index)

        def read(items: Sequence[int]) -> Iterator[list[Tensor]]:
            for start in range(0, len(items), _AT_ONCE):
                part = [texts[item] for item in items[start : start + _AT_ONCE]]
                tokens = model.tokenise(part, self.config.max_tokens)
                yield list(torch.split(model.read(tokens, context.site), tokens.kept.sum(1).tolist()))
                context.progress("sparse_probing: texts", start + len(part), len(items))

        return tasks, [len(text) for text in texts], read

    def _split(self, title: str, groups: Groups, positive: Sequence[str] | None) -> _Task:
        """Shuffle the items of every class and cut off its test part."""
        share = self.config.test_size / (self.config.test_size + self.config.train_size)
        train: Groups = {}
        test: Groups = {}
        for label, items in groups.items():
            shuffled = self._shuffled(items, title, label)
            cut = round(share * len(items))
            test[label], train[label] = shuffled[:cut], shuffled[cut:]
        return _Task(title, train, test, _probed(train, test, positive))

    def _images(self, context: MetricContext, model: VisionModel) -> tuple[list[_Task], list[int], Reader]:
        """Training images come from the train split, test images from the evaluation split."""
        names = model.class_names()
        keys = [
            key
            for split in _SPLITS
            for key in self._shuffled([(split, i) for i in range(model.image_count(split))], split)
        ]
        labels = {split: model.labels(split).tolist() for split in _SPLITS}
        groups: dict[Split, Groups] = {split: {} for split in _SPLITS}
        for item, (split, place) in enumerate(keys):
            groups[split].setdefault(names[labels[split][place]], []).append(item)

        def read(items: Sequence[int]) -> Iterator[list[Tensor]]:
            for start in range(0, len(items), _AT_ONCE):
                part = [keys[item] for item in items[start : start + _AT_ONCE]]
                images = torch.cat([model.images(split, place, 1) for split, place in part])
                yield list(torch.unbind(model.read_images(images, context.site)))
                context.progress("sparse_probing: images", start + len(part), len(items))

        probed = _probed(groups["train"], groups["evaluation"], None)
        return [_Task("images", groups["train"], groups["evaluation"], probed)], [0] * len(keys), read

    def _shuffled(self, items: Sequence[_T], *role: str) -> list[_T]:
        generator = named_generator(self.config.seed, "sparse_probing sample", *role)
        return [items[place] for place in torch.randperm(len(items), generator=generator, device="cpu").tolist()]


def _probed(train: Groups, test: Groups, positive: Sequence[str] | None) -> list[str]:
    """Name the classes that get a probe: of two classes one is enough, rare ones have too little to learn from."""
    classes = sorted(set(train) & set(test))
    if positive is None:
        positive = classes[1:] if len(classes) == 2 else classes
    return [label for label in classes if label in positive and len(train[label]) + len(test[label]) >= _FEWEST]


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=SparseProbingConfig,
            build=SparseProbing,
            summary="Accuracy of linear probes on the one or few latents that differ most between classes",
            source="Gurnee et al. 2023; SAEBench sparse probing",
            depends=("scikit-learn",),
        )
    ]
