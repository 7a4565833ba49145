"""Broken metrics."""

from __future__ import annotations

from dataclasses import replace

import torch

from saebench_core.interfaces.metric import Score, Scored
from tests.conformance.mutants.making import Mutant, plugin, with_methods


def broken(name, check, says="", parent="reconstruction", **methods):
    original = plugin("metric", parent)
    return Mutant(name, check, original, with_methods(original, methods), {}, says)


def declared(**changes):
    """Replace fields of one declared score: ``name={field: value}``."""

    def scores(self, inherited):
        return {name: replace(info, **changes.get(name, {})) for name, info in inherited().items()}

    return scores


def prepared(**changes):
    return lambda self, inherited, context: replace(inherited(context), **changes)


def rescored(change):
    """Replace the first score's value by ``change(value, subject, self, context)``."""

    def score(self, inherited, subject, inputs, context):
        found = inherited(subject, inputs, context)
        name = "mse"
        old = found.scores[name]
        return replace(found, scores={**found.scores, name: Score(change(old.value, subject, self, context), old.n)})

    return score


def counted(value, subject, metric, context):
    metric.calls = getattr(metric, "calls", 0) + 1
    return value + metric.calls


def mean_of_means(value, subject, metric, context):
    batches = context.activations("evaluation", metric.config.rows).batches(100)
    parts = [float((x - subject.sae.reconstruct(x)).square().sum(1).mean()) for x in batches]
    return sum(parts) / len(parts)


def remembers(self, inherited, context):
    found = inherited(context)
    self.variance = found.facts["variance"]
    return replace(found, facts={"rows": found.facts["rows"]})


def uses_what_it_remembers(self, inherited, subject, inputs, context):
    return inherited(subject, replace(inputs, facts={**inputs.facts, "variance": self.variance}), context)


def changes_the_sae(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    subject.sae.w_dec.mul_(0.9)
    return found


def uneven(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    return Scored(found.scores, {**found.items, "one": [1.0]})


def with_tensors(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    return Scored(found.scores, {"frequency": list(torch.zeros(4))})


def forgets_a_score(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    return Scored({name: value for name, value in found.scores.items() if name != "alive"})


def divides_by_the_firing(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    return Scored({**found.scores, "mse": Score(1.0 / found.scores["l0"].value, 1)})


def wants_width(self, inherited, subject, inputs, context):
    found = inherited(subject, inputs, context)
    assert subject.sae.d_sae >= subject.sae.d_in
    return found


def asks_features(self, inherited, backbone):
    backbone.features()


MUTANTS = [
    broken("no unit", "check_scores_are_described", "no unit", scores=declared(mse={"unit": ""})),
    broken("an unknown direction", "check_scores_are_described", "'up'", scores=declared(mse={"direction": "up"})),
    broken("range upside down", "check_scores_are_described", "low below high", scores=declared(alive={"low": 2.0})),
    broken("raises where it does not apply", "check_says_where_it_does_not_apply", "no attribute 'features'",
           parent="feature_recovery", applicable=asks_features),
    broken("a score is missing", "check_known_saes_have_scores", "'mse'", score=forgets_a_score),
    broken("raises on a dead SAE", "check_known_saes_have_scores", "ZeroDivisionError", score=divides_by_the_firing),
    broken("leaves its range", "check_scores_lie_in_their_range", "cosine", scores=declared(cosine={"high": 0.5})),
    broken("no floor", "check_headline_scores_have_a_floor", "has no floor", prepare=prepared(floors={})),
    broken("ceiling below floor", "check_headline_scores_have_a_floor", "ceiling -0.5",
           prepare=prepared(ceilings={"explained_variance": -0.5})),
    broken("direction upside down", "check_direction_is_true", "mse", scores=declared(mse={"direction": "higher"})),
    broken("direction upside down, without a floor", "check_direction_is_true", "mse",
           scores=declared(mse={"direction": "higher"}), prepare=prepared(floors={})),
    broken("floor too low", "check_floor_and_ceiling_are_true", "zeros no better",
           prepare=prepared(floors={"explained_variance": -9.0})),
    broken("ceiling too low", "check_floor_and_ceiling_are_true", "ceiling 0.5",
           prepare=prepared(ceilings={"explained_variance": 0.5})),
    broken("reads more than it says", "check_reads_what_it_says", "reads the encoder",
           scores=declared(cosine={"reads": "encoder"})),
    broken("looks at the first latent", "check_order_of_latents_does_not_matter", "renumbered latents",
           score=rescored(lambda value, subject, metric, context: value + float(subject.sae.w_dec[0].abs().max()))),
    broken("a mean of means", "check_cut_of_batches_does_not_matter", "batches of 7", score=rescored(mean_of_means)),
    broken("counts its calls", "check_same_seed_same_numbers", "again", score=rescored(counted)),
    broken("remembers what it prepared", "check_inputs_survive_the_store", "variance", prepare=remembers,
           score=uses_what_it_remembers),
    broken("changes the SAE", "check_sae_is_left_alone", "W_dec after scoring", score=changes_the_sae),
    broken("columns of two lengths", "check_items_are_a_table", "one length", score=uneven),
    broken("tensors in the table", "check_items_are_a_table", "Tensor", score=with_tensors),
    broken("asks for rows in secret", "check_rows_are_declared", "asked for 65536", rows=lambda self, inherited: {}),
    broken("fails on narrow SAEs", "check_any_width_is_scored", "AssertionError", score=wants_width),
]  # fmt: skip
