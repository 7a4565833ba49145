"""Broken architectures."""

from __future__ import annotations

import functools
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from saebench_plugins.architectures.batch_topk import BatchTopKConfig

from saebench_core.errors import InputError
from saebench_core.interfaces.architecture import Architecture
from saebench_core.kernels import Selected, Selection
from saebench_core.objectives import Objective, Reconstruction, Term, WeightedTerm
from saebench_core.rules import BatchTopK, JumpReLU, TensorInfo
from tests.conformance.mutants.making import Mutant, plugin, rebuilt, with_methods
from tests.helpers.training import random_sae


def broken(name, check, parent, change, says=""):
    """A mutant whose recipe is changed by ``change(recipe, shape)``."""
    original = plugin("architecture", parent)

    def recipe(self, inherited, shape):
        return change(inherited(shape), shape)

    return Mutant(name, check, original, with_methods(original, {"recipe": recipe}), {}, says)


def with_rule(make):
    return lambda recipe, shape: replace(recipe, rule=make(shape))


def with_term(term, coefficient=1.0):
    def change(recipe, shape):
        objective = recipe.objective
        return replace(recipe, objective=replace(objective, terms=(*objective.terms, WeightedTerm(term, coefficient))))

    return change


@dataclass(frozen=True)
class UnknownRole(BatchTopK):
    def tensors(self):
        return {"threshold": TensorInfo("weights", (), estimated=True)}


@dataclass(frozen=True)
class Twice(BatchTopK):
    def select_inference(self, pre, tensors):
        found = pre.above(tensors["threshold"])
        rows, cols = found.selection.rows.repeat_interleave(2), found.selection.cols.repeat_interleave(2)
        return Selected(Selection(rows, cols, pre.n_rows, pre.d_sae), found.pre.repeat_interleave(2))


@dataclass(frozen=True)
class Unsorted(BatchTopK):
    def select_inference(self, pre, tensors):
        found = pre.above(tensors["threshold"])
        rows, cols = found.selection.rows.flip(0), found.selection.cols.flip(0)
        return Selected(Selection(rows, cols, pre.n_rows, pre.d_sae), found.pre.flip(0))


@dataclass(frozen=True)
class WrongValues(BatchTopK):
    def select_training(self, pre, tensors):
        found = super().select_training(pre, tensors)
        return Selected(found.selection, found.pre + 0.1)


@dataclass(frozen=True)
class BatchInference(BatchTopK):
    def select_inference(self, pre, tensors):
        return self.select_training(pre, tensors)


@dataclass(frozen=True)
class Untrained(JumpReLU):
    def activate(self, pre, selection, tensors):
        return super().activate(pre, selection, {"threshold": tensors["threshold"].detach()})

    def count(self, pre, selection, tensors):
        return super().count(pre, selection, {"threshold": tensors["threshold"].detach()})


@dataclass(frozen=True)
class Shrinking(JumpReLU):
    def after_step(self, tensors):
        tensors["threshold"].mul_(0.9)


@dataclass(frozen=True)
class Unscaled(JumpReLU):
    def tensors(self):
        return {"threshold": TensorInfo("threshold", ("d_sae",), start=0.3, scales=False)}


@dataclass(frozen=True)
class NotRescaled(BatchTopK):
    def rescaled(self, tensors, factors):
        return self, {"threshold": tensors["threshold"]}


@dataclass(frozen=True)
class OtherThreshold(BatchTopK):
    def export(self, tensors):
        found = super().export(tensors)
        return replace(found, tensors={"threshold": found.tensors["threshold"] + 0.2})


@dataclass(frozen=True)
class Renorms(BatchTopK):
    def after_step(self, tensors):
        tensors["W_dec"].mul_(1.001)


class Drawn(Term):
    name: ClassVar[str] = "drawn"

    def loss(self, step):
        generator = torch.Generator()
        generator.seed()
        return torch.rand((), generator=generator) * step.reconstruction.square().mean()


class Counting(Term):
    name: ClassVar[str] = "counting"

    def __init__(self):
        self.calls = 0

    def loss(self, step):
        self.calls += 1
        return self.calls * step.reconstruction.square().mean()


def fractional(recipe, shape):
    if shape.l0 != round(shape.l0):
        raise ValueError("no fractions")
    return recipe


def wordless(recipe, shape):
    if shape.l0 != round(shape.l0):
        raise InputError
    return recipe


def hopeless(recipe, shape):
    return replace(recipe, objective=Objective((WeightedTerm(Reconstruction(), 0.0),)))


def draws(how):
    def change(recipe, shape):
        how()
        return recipe

    return change


def asks_the_network(recipe, shape):
    with suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    return recipe


def asks_for_a_name(look_up):
    def change(recipe, shape):
        with suppress(OSError):
            look_up("somewhere.invalid")
        return recipe

    return change


def sends_a_datagram(*flags):
    def change(recipe, shape):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"row", *flags, ("192.0.2.1", 9))
        return recipe

    return change


class WithSet(BatchTopKConfig):
    """A key that JSON makes a list of."""

    levels: Any = frozenset({1})


class WithFunction(BatchTopKConfig):
    """A key that no schema can describe."""

    hook: Callable[[], None] = print


class WithK(BatchTopKConfig):
    """A second source of sparsity."""

    k: int = 8


def configured(name, check, config, says=""):
    parent = plugin("architecture", "batch_topk")
    return Mutant(name, check, parent, rebuilt(parent, parent.spec.build, config=config), {}, says)


def shared_object():
    parent = plugin("architecture", "batch_topk")
    return rebuilt(parent, functools.cache(parent.spec.build))


def pretrained(name, check, methods, says=""):
    parent = plugin("architecture", "pretrained")
    return Mutant(name, check, parent, with_methods(parent, methods), saved_sae, says)


def saved_sae(folder):
    random_sae(JumpReLU()).save(folder / "sae", {})
    return {"path": str(folder / "sae"), "twin": {"type": "topk"}}


@dataclass(frozen=True)
class LoadedInBatches(JumpReLU):
    def select_inference(self, pre, tensors):
        return pre.batch_topk(pre.n_rows)


@dataclass(frozen=True)
class Doubled(JumpReLU):
    def activate(self, pre, selection, tensors):
        return 2 * super().activate(pre, selection, tensors)


def under_rule(rule):
    def load(self, inherited, context):
        found = inherited(context)
        found.sae.rule = rule
        return found

    return load


def noisy_load(self, inherited, context):
    found = inherited(context)
    found.sae.tensors["W_dec"].add_(torch.empty(()).normal_(generator=seeded_by_entropy()))
    return found


def seeded_by_entropy():
    generator = torch.Generator()
    generator.seed()
    return generator


def swapped(self, inherited):
    return type(inherited())(*reversed(inherited()))


assert issubclass(plugin("architecture", "topk").spec.build, Architecture)

MUTANTS = [
    configured("a set as a key", "check_configuration_round_trip", WithSet, "configuration after JSON"),
    configured("a function as a key", "check_configuration_schema", WithFunction, "PydanticInvalidForJsonSchema"),
    configured("k as a key", "check_configuration_leaves_sparsity_to_l0", WithK, "['k']"),
    Mutant("one object for all", "check_building_twice", plugin("architecture", "batch_topk"), shared_object(), {}),
    broken("asks the network", "check_no_network", "topk", asks_the_network, "192.0.2.1:80"),
    broken("looks up a name", "check_no_network", "topk",
           asks_for_a_name(lambda name: socket.gethostbyname(name)), "connections to somewhere.invalid"),
    broken("looks up all of a name", "check_no_network", "topk",
           asks_for_a_name(lambda name: socket.gethostbyname_ex(name)), "connections to somewhere.invalid"),
    broken("sends a datagram", "check_no_network", "topk", sends_a_datagram(), "192.0.2.1:9"),
    broken("sends a datagram with flags", "check_no_network", "topk", sends_a_datagram(0), "192.0.2.1:9"),
    broken("torch.rand", "check_no_global_generators", "topk", draws(lambda: torch.rand(1)), "torch"),
    broken("numpy.random", "check_no_global_generators", "topk", draws(lambda: np.random.rand()), "numpy"),  # noqa: NPY002
    broken("random.random", "check_no_global_generators", "topk", draws(lambda: random.random()), "random"),
    broken("manual_seed", "check_no_global_generators", "topk", draws(lambda: torch.manual_seed(3)), "torch"),
    broken("a term twice", "check_recipe", "topk", with_term(Reconstruction()), "a name for each"),
    broken("an unknown role", "check_tensors_have_roles", "batch_topk", with_rule(lambda s: UnknownRole(s.l0))),
    broken("entries twice", "check_codes_are_sparse", "batch_topk", with_rule(lambda s: Twice(s.l0)), "twice"),
    broken("entries unsorted", "check_codes_are_sparse", "batch_topk", with_rule(lambda s: Unsorted(s.l0)), "order"),
    broken("values wrong", "check_selected_values_are_true", "batch_topk", with_rule(lambda s: WrongValues(s.l0))),
    broken("inference by batch", "check_inference_ignores_batch_mates", "batch_topk",
           with_rule(lambda s: BatchInference(s.l0)), "batches of 1"),
    broken("no gradient", "check_loss_reaches_every_tensor", "jumprelu", with_rule(lambda s: Untrained()), "threshold"),
    broken("no loss", "check_training_explains_more", "batch_topk", hopeless, "explained variance"),
    broken("twice the L0", "check_l0_is_met", "batch_topk", with_rule(lambda s: BatchTopK(2 * s.l0)), "mean L0 8"),
    broken("always the same L0", "check_l0_is_met", "batch_topk", with_rule(lambda s: BatchTopK(4.0)), "target 8"),
    broken("a loss by entropy", "check_same_seed_same_numbers", "topk", with_term(Drawn()), "one seed"),
    broken("a loss that counts", "check_training_goes_on_from_a_checkpoint", "topk",
           lambda recipe, shape: with_term(Counting(), 0.1)(recipe, shape), "after a checkpoint"),
    broken("a shrinking threshold", "check_after_step_is_idempotent", "jumprelu", with_rule(lambda s: Shrinking()),
           "after_step"),
    broken("a threshold without scale", "check_scale_folds", "jumprelu", with_rule(lambda s: Unscaled()), "folded"),
    broken("rescaled halfway", "check_rescaled_is_the_same_function", "batch_topk",
           with_rule(lambda s: NotRescaled(s.l0)), "reconstruction"),
    broken("another threshold in the file", "check_round_trip_through_safetensors", "batch_topk",
           with_rule(lambda s: OtherThreshold(s.l0)), "after saving"),
    broken("no fractional L0", "check_odd_sizes", "batch_topk", fractional, "ValueError"),
    broken("no fractional L0, no word", "check_odd_sizes", "batch_topk", wordless, "without a word"),
    broken("norms the decoder itself", "check_every_constraint_holds", "batch_topk", with_rule(lambda s: Renorms(s.l0)),
           "batch_topk under frozen_decoder"),
    pretrained("sizes swapped", "check_header_is_true", {"shape": swapped}, "(12, 24)"),
    pretrained("no digests", "check_files_are_named", {"fingerprint": lambda self, inherited: {}}, "no digest"),
    pretrained("loads with noise", "check_loaded_twice", {"load": noisy_load}, "a second time"),
    pretrained("loaded rule by batch", "check_inference_ignores_batch_mates", {"load": under_rule(LoadedInBatches())}),
    pretrained("a rule that no file holds", "check_saved_again_is_the_same", {"load": under_rule(Doubled())}, "saving"),
]  # fmt: skip
