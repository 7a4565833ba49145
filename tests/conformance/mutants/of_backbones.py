"""Broken backbones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import torch

from saebench_core.activations import collect
from saebench_core.catalog import Plugin
from saebench_core.conformance.worlds import PlantedBackbone, TinyLanguageModel, TinyVisionModel
from saebench_core.interfaces.backbone import ActivationBatch, BackboneConfig, BackboneSpec, TokenBatch
from tests.conformance.mutants.making import Mutant, plugin, with_methods
from tests.conformance.mutants.of_architectures import seeded_by_entropy
from tests.helpers.training import MemoryBackbone, activations, quiet


class WorldConfig(BackboneConfig):
    """One of the kit's own backbones as a plugin."""

    type: Literal["world"] = "world"


def world(made):
    return Plugin("backbone", "world", BackboneSpec(WorldConfig, lambda config: made(), "a world"), "tests", "", "")


PLANTED, LANGUAGE, VISION = world(PlantedBackbone), world(TinyLanguageModel), world(TinyVisionModel)
COUNTER = itertools.count()


def broken(name, check, parent=PLANTED, says="", config=None, **methods):
    return Mutant(name, check, parent, with_methods(parent, methods), config or {}, says)


def each(change):
    """Change every batch of the stream by ``change(x, start)``."""

    def stream(self, inherited, site, split, start, rows):
        for batch in inherited(site, split, start, rows):
            yield change(batch.inputs, start)

    return stream


def both(change):
    def apply(x, start):
        changed = change(x, start)
        return ActivationBatch(changed, changed)

    return each(apply)


def one_short(self, inherited, site, split, start, rows):
    yield from inherited(site, split, start, rows - 1)


def goes_on(self, inherited, site, split, start, rows):
    yield from inherited(site, split, min(start, 250), rows)


def by_call(x, start):
    generator = torch.Generator().manual_seed(start)
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def by_entropy(x, start):
    return x + 0.1 * torch.empty_like(x).normal_(generator=seeded_by_entropy())


def one_split(self, inherited, site, split, start, rows):
    yield from inherited(site, "train", start, rows)


def kept_in_memory(self, inherited, site, split, start, rows):
    kept = self.__dict__.setdefault("kept", {})
    if split not in kept:
        kept[split] = torch.cat([batch.inputs for batch in inherited(site, split, 0, 320)])
    for part in kept[split][start : start + rows].split(64):
        yield ActivationBatch(part, part)


def wide_after_preparing(self, inherited):
    found = inherited()
    return replace(found, sites={"values": 16, **({"more": 8} if getattr(self, "ready", False) else {})})


def noted(self, inherited, context):
    self.ready = True
    inherited(context)


def keeps_padding(self, inherited, split, start, count):
    found = inherited(split, start, count)
    return TokenBatch(found.ids, found.attention, torch.ones_like(found.kept))


def ignores_the_limit(self, inherited, texts, max_tokens):
    return inherited(texts, 1000)


def centred_reading(self, inherited, tokens, site):
    found = inherited(tokens, site)
    return found - found.mean(0)


def rounded_states(self, inherited, tokens, site):
    return inherited(tokens, site).round()


def from_the_start(self, inherited, tokens, site, states, own=None):
    return inherited(tokens, site, self.states(tokens, site))


def after_the_padding(self, inherited, tokens, site, states, own=None):
    return self.logits_from(tokens, site, states)[:, -1]


def all_its_own(self, inherited, tokens, site, states, own=None):
    return inherited(tokens, site, states if own is None else self.states(tokens, site))


def second_best(self, inherited, tokens, count, site, states, own=None):
    found = inherited(tokens, count, site, states)
    found[:, 0] = self.resume(tokens, site, states).topk(2).indices[:, 1]
    return found


def deaf_to_patches(self, inherited, tokens, site, patch):
    return inherited(tokens, site, None)


def patches_everything(self, inherited, tokens, site, patch):
    everywhere = TokenBatch(tokens.ids, tokens.attention, torch.ones_like(tokens.kept))
    return inherited(tokens if patch is None else everywhere, site, patch)


def stored(folder):
    for seed, split in enumerate(("train", "calibration", "evaluation")):
        place = folder / "rows" / split
        place.mkdir(parents=True)
        collect(MemoryBackbone(activations(300, 8, seed)), "values", split, 300, place, quiet)
    return {"path": str(folder / "rows")}


MUTANTS = [
    broken("a digest by chance", "check_fingerprint_is_json", says="fingerprint",
           fingerprint=lambda self, inherited: {"call": next(COUNTER)}),
    broken("no width", "check_description", says="width 0",
           describe=lambda self, inherited: replace(inherited(), sites={"values": 0})),
    broken("sites grow", "check_description", says="after preparing", describe=wide_after_preparing, prepare=noted),
    broken("another width", "check_rows_have_the_declared_form", says="(rows, 16)", stream=both(lambda x, _: x[:, :9])),
    broken("fp64", "check_rows_have_the_declared_form", says="float64", stream=both(lambda x, _: x.double())),
    broken("gradients", "check_rows_have_the_declared_form", says="want gradients",
           stream=both(lambda x, _: x.requires_grad_())),
    broken("targets of their own", "check_rows_have_the_declared_form", says="targets",
           stream=each(lambda x, _: ActivationBatch(x, x.clone()))),
    broken("not finite", "check_rows_have_the_declared_form", says="not finite", stream=both(lambda x, _: x / 0)),
    broken("one row short", "check_rows_are_counted", says="199 rows of 200", stream=one_short),
    broken("never ends", "check_rows_are_counted", says="from the fifth last on", stream=goes_on),
    broken("depends on the cut", "check_rows_do_not_depend_on_the_cut", says="at a time", stream=both(by_call)),
    broken("dropout", "check_same_seed_same_rows", says="read twice", stream=both(by_entropy)),
    broken("one split for all", "check_splits_differ", says="begin alike", stream=one_split),
    broken("hands out its memory", "check_rows_belong_to_the_reader", says="after a reader", stream=kept_in_memory),
    broken("features of norm two", "check_ground_truth_explains_the_rows", says="norms of the features",
           features=lambda self, inherited: 2 * inherited()),
    broken("codes of other rows", "check_ground_truth_explains_the_rows", says="codes times features",
           codes=lambda self, inherited, split, start, rows: inherited(split, start + 1, rows)),
    broken("streams backwards", "check_stored_rows_are_the_rows", plugin("backbone", "activations"), "rows in files",
           config=stored, stream=both(lambda x, _: x.flip(0))),
    broken("keeps padding", "check_tokens", LANGUAGE, "padding is kept", sequences=keeps_padding),
    broken("cuts no text", "check_tokens", LANGUAGE, "at most the 8", tokenise=ignores_the_limit),
    broken("centres by the batch", "check_tokens_are_read", LANGUAGE, "one by one", read=centred_reading),
    broken("deaf to patches", "check_logits_are_patched", LANGUAGE, "never called", logits=deaf_to_patches),
    broken("rounds its states", "check_editing_goes_on", LANGUAGE, "states of kept", states=rounded_states),
    broken("forgets the states", "check_editing_goes_on", LANGUAGE, "zeros leave", logits_from=from_the_start),
    broken("resumes at the end", "check_editing_goes_on", LANGUAGE, "after each last", resume=after_the_padding),
    broken("edits nothing", "check_editing_goes_on", LANGUAGE, "of the model's own", resume=all_its_own),
    broken("says the second best", "check_editing_goes_on", LANGUAGE, "first token", generate=second_best),
    broken("patches every token", "check_logits_are_patched", LANGUAGE, "given", logits=patches_everything),
    broken("a class without a name", "check_images_have_labels", VISION, "labels up to 2",
           class_names=lambda self, inherited: inherited()[:2]),
    broken("a vision model that is deaf to patches", "check_classes_are_patched", VISION, "leave the logits alone",
           zero_shot_logits=lambda self, inherited, images, site, patch: inherited(images, site, None)),
]  # fmt: skip
