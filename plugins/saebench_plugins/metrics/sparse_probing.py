"""How well one or a few latents tell classes apart, by k-sparse linear probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from saebench_core import (
    Backbone,
    BackboneDescription,
    InputError,
    Json,
    LanguageModel,
    Metric,
    MetricContext,
    MetricSpec,
    MissingPackageError,
    NotApplicable,
    Prepared,
    Score,
    Scored,
    ScoreInfo,
    Subject,
    TableSource,
    VisionModel,
    Work,
    hookimpl,
)
from saebench_plugins.metrics._pooled import mean_rows, pool_codes, store_rows
from saebench_plugins.metrics._probe_fits import Features, Fit, Protocol, protocol_of
from saebench_plugins.metrics._probes import Probe, Sizes, draw_probe, mean_over_tasks
from saebench_plugins.metrics._probing_config import SparseProbingConfig
from saebench_plugins.metrics._probing_items import FEWEST, Items, Task, image_items, text_items
from saebench_plugins.metrics._probing_suites import suite_tables
from saebench_plugins.metrics._random_projections import random_projections

__all__ = ["SparseProbing", "SparseProbingConfig"]

_TENSORS: Final = ("train", "train_labels", "permuted", "test", "test_labels")
_SOURCE: Final = "paper section 4.2; SAEBench sparse probing"


class SparseProbing(Metric):
    """Pools codes over the tokens of a text (of an image), ranks latents on train, fits, tests."""

    large_inputs = True

    def __init__(self, config: SparseProbingConfig) -> None:
        self.config = config
        self._protocol: Protocol = protocol_of(config.protocol)

    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name the scores of each k, and that of a probe on all latents."""
        names: dict[str, ScoreInfo] = {}
        for k in self.config.k:
            fit = f"of logistic regression on the {k} {{}} with the largest |mean_pos - mean_neg| on train"
            latents, what = fit.format("latents"), f"test accuracy {fit}"
            names[f"top{k}"] = self._info("higher", f"test accuracy {latents}", headline=True)
            names[f"top{k}_auc"] = self._info("higher", f"area under the ROC curve {latents}")
            names[f"top{k}_f1"] = self._info("higher", f"F1, classes weighted by size, {latents}")
            permuted = f"test accuracy {latents}, its labels permuted: what chance selects, mean over orders"
            names[f"top{k}_permuted"] = self._info("none", permuted)
            names[f"top{k}_random"] = self._info("none", what.format("of as many random projections, as sparse,"))
            names[f"top{k}_channels"] = self._info("none", what.format("channels of the raw activations"))
        names["all_latents"] = self._info("higher", "test accuracy of logistic regression on all latents")
        return names

    def _info(self, direction: Literal["higher", "none"], formula: str, headline: bool = False) -> ScoreInfo:
        return ScoreInfo(direction, "share", 0.0, 1.0, "encoder", formula, _SOURCE, headline=headline)

    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Ask for texts with labels, or for images with classes."""
        if isinstance(backbone, VisionModel):
            return None
        if not isinstance(backbone, LanguageModel):
            return NotApplicable("the backbone reads neither texts nor labelled images")
        if self.config.tasks or self.config.suite is not None:
            return None
        try:
            self._tables()
        except MissingPackageError as error:
            return NotApplicable(f"no labelled texts: give `tasks` or a `suite`. By default sae_probes: {error}")
        return None

    def _tables(self) -> tuple[TableSource, ...]:
        suite = self.config.suite or (None if self.config.tasks else "sae_probes")
        tables = (*(suite_tables(suite) if suite else ()), *self.config.tasks)
        titles = [table.title for table in tables]
        for title in titles:
            if titles.count(title) > 1:
                raise InputError(f"sparse_probing: a task and one of the suite are called {title!r}; name yours anew")
        return tables

    def _tables_if_there(self) -> tuple[TableSource, ...]:
        """Return no table where the default suite's package is missing: the metric does not apply to texts then."""
        try:
            return self._tables()
        except MissingPackageError:
            if self.config.tasks or self.config.suite is not None:
                raise
            return ()

    @property
    def _sizes(self) -> Sizes:
        train, test = self.config.train_size, self.config.test_size
        return Sizes(train or self._protocol.train_size, test or self._protocol.test_size, self.config.positive_share)

    @property
    def _max_tokens(self) -> int:
        return self.config.max_tokens or self._protocol.max_tokens

    def work(self, description: BackboneDescription) -> Work:
        """Count every token of every item, encoded by the SAE and by random projections."""
        patches = description.facts.get("tokens_per_image")
        items = self._sizes.train + self._sizes.test
        if isinstance(patches, int):
            return Work(prepared=items * patches, encoded=2 * items * patches)
        items *= len(self._tables_if_there())
        read = items * self._max_tokens
        return Work(prepared=read, encoded=2 * (items if self._protocol.last_token else read))

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Count every token of every item as full; items of a task with several classes are counted once."""
        tokens = description.facts.get("tokens_per_image")
        each = 1 if self._protocol.last_token else self._max_tokens
        tables = 1 if isinstance(tokens, int) else len(self._tables_if_there())
        each = tokens if isinstance(tokens, int) else each
        return tables * (self._sizes.train + self._sizes.test) * each * description.sites[site] * 4

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the tables."""
        return {table.title: table.fingerprint() for table in self._tables_if_there()}

    def prepare(self, context: MetricContext) -> Prepared:
        """Draw the probes, read every item once, and probe the raw activations for the ceiling."""
        items = self._items(context)
        drawn = [self._draw(task, label) for task in items.tasks for label in task.classes]
        probes = [probe for probe in drawn if len(probe.train) and len(probe.test)]
        if not probes:
            raise InputError(f"sparse_probing: no class has {FEWEST} items, and other classes to tell it from")
        # items of one length side by side: little padding
        used = sorted(
            {int(i) for p in probes for i in (*p.train, *p.test)}, key=lambda item: (items.lengths[item], item)
        )
        place = torch.zeros(len(items.lengths), dtype=torch.int64, device="cpu")
        place[torch.tensor(used, device="cpu")] = torch.arange(len(used), device="cpu")
        probes = [replace(probe, train=place[probe.train], test=place[probe.test]) for probe in probes]
        return self._prepared(probes, *store_rows(items.read(used)), context)

    def _prepared(
        self, probes: Sequence[Probe], activations: Tensor, offsets: Tensor, context: MetricContext
    ) -> Prepared:
        raw = mean_rows(activations, offsets).numpy()
        every: list[Fit] = []
        channels: list[list[Fit]] = []
        for number, probe in enumerate(probes):
            own = Features.of(raw, probe)
            every.append(self._protocol.fitted(own, probe, probe.train_labels, self.config.seed))
            channels.append(self._selected(own, probe, probe.train_labels)[0])
            context.progress("sparse_probing: raw activations", number + 1, len(probes))
        facts: dict[str, Json] = {
            "probes": [{"task": probe.task, "label": probe.label} for probe in probes],
            "stored_as": str(activations.dtype),
            "ceiling": [fit._asdict() for fit in every],
            "channels": [[fit.accuracy for fit in fits] for fits in channels],
        }
        tensors = {"activations": activations, "offsets": offsets}
        for number, probe in enumerate(probes):
            tensors |= {f"{number}.{name}": getattr(probe, name) for name in _TENSORS}
        return Prepared(tensors, facts, self._floors(), self._ceilings(probes, every))

    def _floors(self) -> dict[str, float]:
        """Return what telling nothing scores: always the larger class, in any order."""
        share = self.config.positive_share
        larger = max(share, 1 - share)
        f1 = larger * 2 * larger / (1 + larger)
        floors = {}
        for name in self.scores():
            floors[name] = 0.5 if name.endswith("_auc") else f1 if name.endswith("_f1") else larger
        return floors

    def _ceilings(self, probes: Sequence[Probe], fits: Sequence[Fit]) -> dict[str, float]:
        """Return what all channels of the raw activations reach."""
        accuracy, auc, f1 = (mean_over_tasks(probes, list(column)) for column in list(zip(*fits, strict=True))[:3])
        ceilings = {"all_latents": accuracy}
        for k in self.config.k:
            ceilings |= {f"top{k}": accuracy, f"top{k}_auc": auc, f"top{k}_f1": f1}
        return ceilings

    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Encode every item once, then select and fit for each class and k."""
        tensors, facts = prepared.tensors, prepared.facts
        listed: Any = facts["probes"]
        channels: Any = facts["channels"]
        rows, offsets = tensors["activations"], tensors["offsets"]
        pooled = pool_codes(subject.sae, rows, offsets)
        random = pool_codes(random_projections(subject.sae, rows, self.config.seed), rows, offsets)
        probes: list[Probe] = []
        found: list[dict[str, Any]] = []
        for number, names in enumerate(listed):
            drawn = (tensors[f"{number}.{name}"] for name in _TENSORS)
            probes.append(Probe(names["task"], names["label"], *drawn))
            own, projected = (Features.of(every, probes[-1]) for every in (pooled, random))
            found += self._answers(probes[-1], own, projected, channels[number])
            context.progress("sparse_probing", number + 1, len(listed))
        return Scored(self._means(probes, found), {name: [row[name] for row in found] for name in found[0]})

    def _answers(
        self, probe: Probe, pooled: Features, random: Features, channels: Sequence[float]
    ) -> list[dict[str, Any]]:
        """Return a row for each number of latents."""
        every = self._protocol.fitted(pooled, probe, probe.train_labels, self.config.seed)
        fits, latent = self._selected(pooled, probe, probe.train_labels)
        projected, _ = self._selected(random, probe, probe.train_labels)
        controls = [self._selected(pooled, probe, labels)[0] for labels in probe.permuted]
        rows = []
        for place, (k, fit) in enumerate(zip(self.config.k, fits, strict=True)):
            permuted = [control[place] for control in controls]
            rows.append(
                {
                    "task": probe.task,
                    "label": probe.label,
                    "k": k,
                    "accuracy": fit.accuracy,
                    "auc": fit.auc,
                    "f1": fit.f1,
                    "permuted": fmean(other.accuracy for other in permuted),
                    "random": projected[place].accuracy,
                    "channels": channels[place],
                    "all_latents": every.accuracy,
                    "latent": latent,
                    "converged": all(other.converged for other in (fit, *permuted)),
                }
            )
        return rows

    def _selected(self, features: Features, probe: Probe, labels: Bool[Tensor, " train"]) -> tuple[list[Fit], int]:
        return self._protocol.fit_selected(features, probe, labels, self.config.k, self.config.seed)

    def _means(self, probes: Sequence[Probe], rows: Sequence[Mapping[str, Any]]) -> dict[str, Score | NotApplicable]:
        n = sum(len(probe.test) for probe in probes)
        columns = {"": "accuracy", **{f"_{name}": name for name in ("auc", "f1", "permuted", "random", "channels")}}
        scores: dict[str, Score | NotApplicable] = {}
        for k in self.config.k:
            own = [row for row in rows if row["k"] == k]
            for suffix, column in columns.items():
                scores[f"top{k}{suffix}"] = Score(mean_over_tasks(probes, [row[column] for row in own]), n)
            scores["all_latents"] = Score(mean_over_tasks(probes, [row["all_latents"] for row in own]), n)
        return scores

    def _draw(self, task: Task, label: str) -> Probe:
        return draw_probe(
            task.title, label, task.train, task.test, self._sizes, self.config.seed, self.config.permutations
        )

    def _items(self, context: MetricContext) -> Items:
        backbone = context.backbone
        if isinstance(backbone, VisionModel):
            return image_items(context, backbone, self.config.seed)
        if isinstance(backbone, LanguageModel):
            tables = self._tables()
            return text_items(
                context, backbone, tables, self._protocol, self._max_tokens, self._sizes, self.config.seed
            )
        raise InputError("sparse_probing needs a language model or a vision model")


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """Offer the metric."""
    return [
        MetricSpec(
            config=SparseProbingConfig,
            build=SparseProbing,
            summary="Accuracy of linear probes on the one or few latents that differ most between classes",
            source="Gurnee et al. 2023; SAEBench sparse probing; Kantamneni et al. 2025",
            depends=("scikit-learn",),
        )
    ]
