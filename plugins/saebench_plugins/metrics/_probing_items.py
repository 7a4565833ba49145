"""Items that are probed, texts or images: their classes, and how their activations are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from saebench_core import LabelledTexts, LanguageModel, MetricContext, Split, TableSource, VisionModel, named_generator
from saebench_plugins.metrics._probe_fits import Protocol
from saebench_plugins.metrics._probes import Groups, Sizes

__all__ = ["FEWEST", "Items", "Task", "image_items", "text_items"]

_AT_ONCE: Final = 64
_SPLITS: Final[tuple[Split, ...]] = ("train", "evaluation")
FEWEST: Final = 10
"""Items that a class must have in the training and test pools together; rarer classes are left out."""

_T = TypeVar("_T")
Reader = Callable[[Sequence[int]], Iterator[list[Tensor]]]
"""Yields the activations ``(rows, d_in)`` of items, some items at a time."""


@dataclass(frozen=True)
class Task:
    """Items of each class, for training and for the test, and the classes that get a probe."""

    title: str
    train: Groups
    test: Groups
    classes: Sequence[str]


@dataclass(frozen=True)
class Items:
    """All that can be probed.

    Attributes:
        tasks: the questions.
        lengths: length of every item; items of one length side by side need little padding.
        read: reads items.
    """

    tasks: Sequence[Task]
    lengths: Sequence[int]
    read: Reader


def text_items(
    context: MetricContext,
    model: LanguageModel,
    tables: Sequence[TableSource],
    protocol: Protocol,
    max_tokens: int,
    sizes: Sizes,
    seed: int,
) -> Items:
    """Return the texts of tables.

    Args:
        context: reports progress, names the site.
        model: reads the texts.
        tables: where texts and labels come from.
        protocol: says which tokens of a text count, and how many texts are kept for tests.
        max_tokens: tokens of a text that are read.
        sizes: wanted sizes of a probe's sets.
        seed: seed of what is kept.
    """
    index: dict[str, int] = {}
    tasks = []
    for number, table in enumerate(tables):
        tasks.append(_text_task(table, index, partial(protocol.tested, sizes=sizes), seed))
        context.progress("sparse_probing: tables", number + 1, len(tables))
    texts = list(index)

    def read(items: Sequence[int]) -> Iterator[list[Tensor]]:
        for start in range(0, len(items), _AT_ONCE):
            part = [texts[item] for item in items[start : start + _AT_ONCE]]
            tokens = model.tokenise(part, max_tokens, "end" if protocol.last_token else "start")
            if protocol.last_token:
                last = tokens.attention.sum(1, keepdim=True) - 1
                tokens = tokens._replace(kept=torch.zeros_like(tokens.kept).scatter(1, last, True))
            yield list(torch.split(model.read(tokens, context.site), tokens.kept.sum(1).tolist()))
            context.progress("sparse_probing: texts", start + len(part), len(items))

    return Items(tasks, [len(text) for text in texts], read)


def _text_task(table: TableSource, index: dict[str, int], tested: Callable[[int], int], seed: int) -> Task:
    kept = table.test_rows()
    if kept is None:
        train, test = _cut(_grouped(table.rows(), index), table.title, tested, seed)
    else:
        test = _shuffled_groups(_grouped(kept, index), f"{table.title} test", seed)
        used = {item for items in test.values() for item in items}
        groups = {
            label: [item for item in items if item not in used]
            for label, items in _grouped(table.rows(), index).items()
        }
        train = _shuffled_groups(groups, table.title, seed)
    return Task(table.title, train, test, _probed(train, test, table.positive))


def _grouped(rows: LabelledTexts, index: dict[str, int]) -> Groups:
    """Return the texts of each class; one that comes again, in whatever class, is left out."""
    first: dict[str, str] = {}
    for text, label in zip(*rows, strict=True):
        first.setdefault(text, label)
    groups: Groups = {}
    for text, label in first.items():
        groups.setdefault(label, []).append(index.setdefault(text, len(index)))
    return groups


def _cut(groups: Groups, title: str, tested: Callable[[int], int], seed: int) -> tuple[Groups, Groups]:
    """Shuffle the items of every class and cut off its test part."""
    train: Groups = {}
    test: Groups = {}
    for label, shuffled in _shuffled_groups(groups, title, seed).items():
        cut = tested(len(shuffled))
        test[label], train[label] = shuffled[:cut], shuffled[cut:]
    return train, test


def _shuffled_groups(groups: Groups, title: str, seed: int) -> Groups:
    return {label: _shuffled(items, seed, title, label) for label, items in groups.items()}


def image_items(context: MetricContext, model: VisionModel, seed: int) -> Items:
    """Return the images of a vision model: training images of the train split, test images of the evaluation split."""
    names = model.class_names()
    keys = [
        key
        for split in _SPLITS
        for key in _shuffled([(split, place) for place in range(model.image_count(split))], seed, split)
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
    return Items([Task("images", groups["train"], groups["evaluation"], probed)], [0] * len(keys), read)


def _shuffled(items: Sequence[_T], seed: int, *role: str) -> list[_T]:
    generator = named_generator(seed, "sparse_probing sample", *role)
    return [items[place] for place in torch.randperm(len(items), generator=generator, device="cpu").tolist()]


def _probed(train: Groups, test: Groups, positive: Sequence[str] | None) -> list[str]:
    """Name the classes that get a probe: of two classes one is enough, rare ones have too little to learn from."""
    classes = sorted(set(train) & set(test))
    if positive is None:
        positive = classes[1:] if len(classes) == 2 else classes
    return [label for label in classes if label in positive and len(train[label]) + len(test[label]) >= FEWEST]
