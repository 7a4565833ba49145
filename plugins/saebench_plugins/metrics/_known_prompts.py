"""Questions about entities that a model answers rightly, and pairs of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core import EditableModel, MetricContext, named_generator
from saebench_plugins.metrics._entities import EntitySet
from saebench_plugins.metrics._entity_answers import decided, gives

__all__ = ["MAX_TOKENS", "Asked", "Pair", "Prompt", "draw_pairs", "known_prompts", "responses"]

MAX_TOKENS: Final = 1024
_AT_ONCE: Final = 256
_FIRST_WORDS: Final = 2
_FILE: Final = "prompts.json"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """How much is asked of the model.

    Attributes:
        entities: entities that are asked about, drawn by the seed; None for all.
        templates: templates of each attribute, drawn by the seed; None for all.
        kept: entities that are kept, those with the most right answers.
        words: tokens of an answer.
        seed: seed of the draws.
    """

    entities: int | None
    templates: int | None
    kept: int
    words: int
    seed: int


@dataclass(frozen=True)
class Prompt:
    """A question that the model answers rightly.

    Attributes:
        text: question.
        entity: whom it is about.
        attribute: what it asks.
        value: right answer.
        begin: place of the entity's first token: what is before it, a template's prompts share.
        place: place of its last token.
        first: first token of the model's answer.
    """

    text: str
    entity: str
    attribute: str
    value: str
    begin: int
    place: int
    first: int


@dataclass(frozen=True)
class Pair:
    """A base prompt that gets the entity of a source prompt; both ask the same attribute, and their values differ.

    Attributes:
        kind: ``cause`` where the answer must become the source's, ``isolation`` where it must stay the base's.
        base: number of the base prompt.
        source: number of the source prompt.
    """

    kind: Literal["cause", "isolation"]
    base: int
    source: int


def known_prompts(context: MetricContext, model: EditableModel, asked: Asked, entities: EntitySet) -> list[Prompt]:
    """Return the prompts that the model answers rightly, of the entities about which it knows most.

    What it answers is kept by attribute for all sites, so that a run that was ended goes on after the last one.
    """
    found: list[Prompt] = []
    for attribute in entities.values:
        questions = list(_questions(entities, attribute, asked))

        def build(folder: Path, attribute: str = attribute, questions: list[Prompt] = questions) -> None:
            right = _answered(context, model, questions, asked.words, f"ravel: {entities.name}, {attribute}")
            (folder / _FILE).write_text(json.dumps([asdict(prompt) for prompt in right]), encoding="utf-8")

        digest = sha256(json.dumps([asdict(one) for one in questions]).encode()).hexdigest()
        folder = context.backbone_product({"known prompts": digest, "words": asked.words}, build)
        found += [Prompt(**fields) for fields in json.loads((folder / _FILE).read_text(encoding="utf-8"))]
    counts = Counter(prompt.entity for prompt in found)
    kept = set(sorted(counts, key=lambda entity: (-counts[entity], entity))[: asked.kept])
    return [prompt for prompt in found if prompt.entity in kept]


def _questions(entities: EntitySet, attribute: str, asked: Asked) -> Iterable[Prompt]:
    every = sorted({entity for values in entities.values.values() for entity in values})
    names = set(_drawn(every, asked.entities, asked.seed, "entities", entities.name))
    templates = _drawn(
        entities.templates[attribute], asked.templates, asked.seed, "templates", entities.name, attribute
    )
    for template in templates:
        before, _, after = template.partition("%s")
        for entity, value in entities.values[attribute].items():
            if entity in names:
                # the places are those of characters yet
                last = len(before + entity) - 1
                yield Prompt(before + entity + after, entity, attribute, value, len(before), last, -1)


def _drawn(items: Sequence[_T], count: int | None, seed: int, *role: str) -> Sequence[_T]:
    if count is None or count >= len(items):
        return items
    order = torch.randperm(len(items), generator=named_generator(seed, "ravel", *role), device="cpu")
    return [items[place] for place in sorted(order[:count].tolist())]


def _answered(
    context: MetricContext, model: EditableModel, questions: Sequence[Prompt], words: int, label: str
) -> list[Prompt]:
    """Return the questions that are answered rightly, with the entity's place and the answer's first token."""
    right: list[Prompt] = []
    ordered = sorted(questions, key=lambda prompt: len(prompt.text))
    for start in range(0, len(ordered), _AT_ONCE):
        part = [_located(model, prompt) for prompt in ordered[start : start + _AT_ONCE]]
        texts, firsts = responses(model, context.site, part, words, None)
        for prompt, text, first in zip(part, texts, firsts, strict=True):
            if gives(text, prompt.value, prompt.attribute):
                right.append(replace(prompt, first=first))
        context.progress(label, start + len(part), len(ordered))
    return right


def _located(model: EditableModel, prompt: Prompt) -> Prompt:
    """Return a prompt with the places of tokens, in place of those of characters."""
    begin, place = model.locate([prompt.text] * 2, [prompt.begin, prompt.place]).tolist()
    return replace(prompt, begin=begin, place=place)


def responses(
    model: EditableModel,
    site: str,
    prompts: Sequence[Prompt],
    words: int,
    edited: Callable[[Sequence[int]], Float[Tensor, "some length d_in"]] | None,
    values: Sequence[str] | None = None,
) -> tuple[list[str], list[int]]:
    """Return the model's answers, and their first tokens.

    Args:
        model: answers.
        site: where activations are edited.
        prompts: what is asked.
        words: tokens of an answer; where two of them decide, no more are generated.
        edited: returns the states at the site that some of the prompts shall have, by their numbers here.
        values: what the answers are held against, by default the prompts' own values.
    """
    values = values or [prompt.value for prompt in prompts]
    texts, firsts = [""] * len(prompts), [0] * len(prompts)
    left = list(range(len(prompts)))
    for count in (min(_FIRST_WORDS, words), words):
        if not left:
            break
        tokens = model.tokenise([prompts[number].text for number in left], MAX_TOKENS)
        states = None if edited is None else edited(left)
        own = torch.tensor([prompts[number].begin for number in left], device=tokens.ids.device)
        ids = model.generate(tokens, count, site, states, own)
        for number, text, first in zip(left, model.words(ids), ids[:, 0].tolist(), strict=True):
            texts[number], firsts[number] = text, first
        left = [number for number in left if not decided(texts[number], values[number], prompts[number].attribute)]
    return texts, firsts


def draw_pairs(prompts: Sequence[Prompt], attribute: str, count: int, seed: int) -> list[Pair]:
    """Return up to so many pairs for an attribute, and as many that ask the others, in random order.

    Base and source are drawn at random among the prompts that ask the same, with different values; pairs for other
    attributes are taken from all of them in turn.
    """
    by_attribute: dict[str, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_attribute[prompt.attribute].append(number)
    cause = _pairs(prompts, by_attribute[attribute], "cause", count, seed, attribute)
    others = [name for name in by_attribute if name != attribute]
    isolation: list[Pair] = []
    for place, name in enumerate(others):
        wanted = (len(cause) + place) // len(others)
        isolation += _pairs(prompts, by_attribute[name], "isolation", wanted, seed, attribute, name)
    both = cause + isolation
    order = torch.randperm(len(both), generator=named_generator(seed, "ravel order", attribute), device="cpu")
    return [both[place] for place in order.tolist()]


def _pairs(
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    kind: Literal["cause", "isolation"],
    count: int,
    seed: int,
    *role: str,
) -> list[Pair]:
    """Draw different pairs; fewer where there are not so many."""
    if len({prompts[number].value for number in numbers}) < 2:
        return []
    generator = named_generator(seed, "ravel pairs", kind, *role)
    found: dict[tuple[int, int], None] = {}
    for _ in range(8):  # rounds: most draws are of different values, and new
        if len(found) >= count:
            break
        drawn = torch.randint(len(numbers), (2 * count + 16, 2), generator=generator, device="cpu").tolist()
        for first, second in drawn:
            base, source = numbers[first], numbers[second]
            if prompts[base].value != prompts[source].value:
                found.setdefault((base, source))
    return [Pair(kind, base, source) for base, source in list(found)[:count]]
