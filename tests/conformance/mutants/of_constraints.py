"""Broken constraints."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from saebench_core.interfaces.constraint import Start
from saebench_core.rules import BatchTopK
from tests.conformance.mutants.making import Mutant, plugin, with_methods
from tests.conformance.mutants.of_architectures import seeded_by_entropy


def broken(name, check, parent, says="", config=None, **methods):
    original = plugin("constraint", parent)
    return Mutant(name, check, original, with_methods(original, methods), config or {}, says)


def doubles_the_draw(self, inherited, draw, init, statistics):
    draw.normal.mul_(2)
    return inherited(draw, init, statistics)


def rolled_start(self, inherited, draw, init, statistics):
    found = inherited(draw, init, statistics)
    return Start(found.w_enc.roll(1, 1), found.w_dec.roll(1, 0))


def wide_start(self, inherited, draw, init, statistics):
    found = inherited(draw, init, statistics)
    return Start(found.w_enc, found.w_dec.double())


def drawn_by_entropy(self, inherited, draw, init, statistics):
    found = inherited(draw, init, statistics)
    noise = torch.empty_like(found.w_enc).normal_(generator=seeded_by_entropy())
    return Start(found.w_enc + 0.1 * noise, found.w_dec)


def drops_silently(self, inherited, recipe, shape):
    terms = recipe.objective.terms[:1]
    return replace(recipe, objective=replace(recipe.objective, terms=terms))


def changes_the_recipe(self, inherited, recipe, shape):
    object.__setattr__(recipe, "decoder_norm", "free")
    return recipe


def touches_the_decoder(self, inherited, sae, start):
    sae.w_dec.mul_(1.0001)


def overwrites_at_the_end(self, inherited, sae, twin):
    found = inherited(sae, twin)
    noise = torch.randn(found.w_dec.shape, generator=torch.Generator().manual_seed(5))
    found.tensors["W_dec"].add_(0.3 * noise)
    return found


def frees_the_norms(self, inherited, recipe, shape):
    return replace(inherited(recipe, shape), decoder_norm="free")


def certifies_no_free_norms(self, inherited, sae, start):
    """A `BatchTopK` has its norms in its codes only as it is saved, which comes after it was certified."""
    norms = sae.w_dec.norm(dim=1)
    free = isinstance(sae.rule, BatchTopK) and not torch.allclose(norms, torch.ones_like(norms))
    return {"norms": float("nan") if free else 1.0}


def holds_the_encoder(self, inherited, sae, start):
    sae.w_enc.copy_(start.w_enc)


def goes_halfway(self, inherited, sae, start):
    before = sae.w_dec.clone()
    inherited(sae, start)
    sae.w_dec.add_(before).mul_(0.5)


def every_second_time(self, inherited, sae, start):
    self.calls = getattr(self, "calls", 0) + 1
    if self.calls % 2 == 0:
        inherited(sae, start)


def shrinks_with_every_call(self, inherited, sae, start):
    self.calls = getattr(self, "calls", 0) + 1
    sae.tensors["b_dec"].fill_(self.calls)


def takes_the_twin_along(self, inherited, sae, twin):
    found = inherited(sae, twin)
    twin.tensors["W_dec"].zero_()
    return found


def does_without_a_twin(self, inherited, sae, twin):
    return sae if twin is None else inherited(sae, twin)


@dataclass(frozen=True)
class Doubled(BatchTopK):
    def activate(self, pre, selection, tensors):
        return 2 * super().activate(pre, selection, tensors)


def another_rule(self, inherited, sae, twin, rows):
    if isinstance(sae.rule, BatchTopK):
        sae.rule = Doubled(sae.rule.k)
    return sae


def twice_the_l0(self, inherited, recipe, shape):
    return replace(inherited(recipe, shape), rule=BatchTopK(2 * shape.l0))


def reads_k(self, inherited, recipe, shape):
    names = {weighted.term.name for weighted in recipe.objective.terms}
    return recipe if "orthogonality" in names else replace(recipe, rule=BatchTopK(float(recipe.rule.k)))


MUTANTS = [
    broken("changes the draw", "check_start", "trained", "changed in place", initialise=doubles_the_draw),
    broken("starts in fp64", "check_start", "trained", "torch.float64", initialise=wide_start),
    broken("starts elsewhere", "check_twins_start_alike", "trained", "w_dec at the start", initialise=rolled_start),
    broken("drops terms silently", "check_adapt", "trained", "without a reason", adapt=drops_silently),
    broken("changes the recipe", "check_adapt", "trained", "the recipe that was given", adapt=changes_the_recipe),
    broken("freezes a name", "check_freezes_by_role", "frozen_decoder", "['write_scale'] are not",
           frozen=lambda self, inherited, roles, recipe: frozenset({"W_dec"})),
    broken("freezes a misspelt name", "check_freezes_by_role", "frozen_decoder", "W_dce",
           frozen=lambda self, inherited, roles, recipe: inherited(roles, recipe) | {"W_dce"}),
    broken("touches what is frozen", "check_frozen_tensors_keep_their_bits", "frozen_decoder", "W_dec after 30 steps",
           project=touches_the_decoder),
    broken("overwrites at the end", "check_frozen_tensors_keep_their_bits", "frozen_decoder",
           "the frozen W_dec in the finished SAE", finish=overwrites_at_the_end),
    broken("overwrites at the end, on any architecture", "check_every_architecture_is_held", "frozen_decoder",
           "kit_stranger under frozen_decoder: the frozen W_dec in the finished SAE", finish=overwrites_at_the_end),
    broken("holds what is not frozen", "check_the_rest_is_trained", "trained", "moved in 30 steps",
           project=holds_the_encoder),
    broken("projects halfway", "check_projection_is_idempotent", "soft_frozen_decoder", "projected once more",
           config={"tau": 0.99}, project=goes_halfway),
    broken("projects every second time", "check_every_step_ends_in_the_allowed_set", "soft_frozen_decoder",
           "projected once more", config={"tau": 0.99}, project=every_second_time),
    broken("says random, but learns", "check_what_is_random_is_declared", "trained", "what training learns",
           randomises=frozenset({"decoder"})),
    broken("is random, but does not say so", "check_what_is_random_is_declared", "frozen_decoder", "stays as drawn",
           randomises=frozenset()),
    broken("says permuted, but is not", "check_what_is_random_is_declared", "permuted_decoder", "the twin's",
           finish=lambda self, inherited, sae, twin: twin),
    broken("changes the twin", "check_twin_is_needed_and_kept", "permuted_decoder", "of the twin after finishing",
           finish=takes_the_twin_along),
    broken("does without a twin", "check_twin_is_needed_and_kept", "permuted_decoder", "no error without a twin",
           finish=does_without_a_twin),
    broken("certifies a tensor", "check_certificate_is_json", "frozen_decoder", "not JSON serializable",
           certify=lambda self, inherited, sae, start: {"norms": sae.w_dec.norm(dim=1)}),
    broken("certifies a NaN", "check_certificate_is_json", "frozen_decoder", "not JSON compliant",
           certify=lambda self, inherited, sae, start: {"mean": float("nan")}),
    broken("certifies no free norms", "check_certificate_is_json", "trained", "not JSON compliant",
           adapt=frees_the_norms, certify=certifies_no_free_norms),
    broken("certifies the core's facts", "check_certificate_is_json", "frozen_decoder", "['frozen']",
           certify=lambda self, inherited, sae, start: {"frozen": {}}),
    broken("twice the L0", "check_l0_is_met", "frozen_decoder", "wanted 4", adapt=twice_the_l0),
    broken("starts by entropy", "check_same_seed_same_numbers", "trained", "one seed", initialise=drawn_by_entropy),
    broken("counts its calls", "check_training_goes_on_from_a_checkpoint", "trained", "after a checkpoint",
           project=shrinks_with_every_call),
    broken("a rule that no file holds", "check_round_trip_through_safetensors", "frozen_decoder", "after saving",
           calibrate=another_rule),
    broken("knows one rule only", "check_every_architecture_is_held", "frozen_decoder", "relu under frozen_decoder",
           adapt=reads_k),
]  # fmt: skip
