"""Checks of metrics: what they declare, known SAEs, and that nothing but the SAE decides a score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch

from saebench_core.conformance.checks import NotCheckable, check, demand, demand_equal
from saebench_core.conformance.judging import Judged, MetricSubject, demand_same
from saebench_core.errors import SaebenchError
from saebench_core.interfaces.metric import Direction, NotApplicable, Reads, Score, ScoreInfo

TOLERANCE = 1e-4
"""Share of a score's size that fp32 may cost between two ways to the same number."""


class _Place(NamedTuple):
    """One declared score on one backbone."""

    judged: Judged
    name: str
    info: ScoreInfo

    @property
    def where(self) -> str:
        return f"{self.name} on {self.judged.world}"

    def value(self, sae: str) -> float | None:
        return self.judged.value(sae, self.name)

    def better(self, left: float, right: float) -> float:
        """Return by how much the first is better than the second; negative where it is worse."""
        return left - right if self.info.direction == "higher" else right - left


def _places(subject: MetricSubject, directed: bool = False) -> Iterator[_Place]:
    for judged in subject.judged:
        for name, info in judged.scores.items():
            if not directed or info.direction != "none":
                yield _Place(judged, name, info)


@check("fill every field of ScoreInfo: direction, unit, range, what it reads, formula, source")
def check_scores_are_described(subject: MetricSubject) -> None:
    """Every score states direction, unit, range, what it reads, formula and source, before anything is prepared."""
    scores = subject.metric.scores()
    demand(bool(scores), "no score", "at least one")
    for name, info in scores.items():
        for field, allowed in (("direction", get_args(Direction)), ("reads", get_args(Reads))):
            demand(getattr(info, field) in allowed, f"{name}: {field} {getattr(info, field)!r}", ", ".join(allowed))
        for field in ("unit", "formula", "source"):
            demand(bool(getattr(info, field)), f"{name}: no {field}", "a text")
        if info.low is not None and info.high is not None:
            demand(info.low < info.high, f"{name}: range [{info.low}, {info.high}]", "low below high")
    demand_equal("scores declared a second time", dict(subject.build().scores()), dict(scores))


@check("return NotApplicable with a reason from `applicable`, by what the backbone offers; do not prepare or read it")
def check_says_where_it_does_not_apply(subject: MetricSubject) -> None:
    """On a backbone that is not prepared and may lack everything, the metric applies or says why it does not."""
    for name, backbone in subject.worlds().items():
        try:
            found = subject.metric.applicable(backbone)
        except Exception as error:  # whatever it is, it is no answer
            text = f"{type(error).__name__}: {error}"
            demand(False, f"on {name}, `applicable` raised {text}", "None or NotApplicable(reason)")
            return
        fine = found is None or (isinstance(found, NotApplicable) and bool(found.reason.strip()))
        demand(fine, f"on {name}, `applicable` returned {found!r}", "None or NotApplicable(reason)")


@check("return NotApplicable(reason) as the score where a number cannot be had, instead of raising or of a NaN")
def check_known_saes_have_scores(subject: MetricSubject) -> None:
    """Perfect, dead, permuted and empty SAEs have finite scores or reasons, under exactly the declared names."""
    for judged in subject.judged:
        for sae, scored in judged.scored.items():
            where = f"{sae} SAE on {judged.world}"
            demand_equal(f"scores of the {where}", sorted(scored.scores), sorted(judged.scores))
            for name, score in scored.scores.items():
                if isinstance(score, NotApplicable):
                    demand(bool(score.reason.strip()), f"{name} of the {where} without a reason", "a reason")
                    continue
                demand(isinstance(score, Score) and math.isfinite(score.value), f"{name}: {score}", "a finite Score")
                demand(score.n >= 1, f"{name} of the {where} over {score.n} items", "one item at least")


@check("correct the score, or the `low` and `high` of its ScoreInfo")
def check_scores_lie_in_their_range(subject: MetricSubject) -> None:
    """Scores, floors and ceilings lie in the declared range."""
    for place in _places(subject):
        low = -math.inf if place.info.low is None else place.info.low - 1e-6
        high = math.inf if place.info.high is None else place.info.high + 1e-6
        prepared = place.judged.prepared
        values = {f"of the {sae} SAE": place.value(sae) for sae in place.judged.scored}
        values |= {"at the floor": prepared.floors.get(place.name), "at the ceiling": prepared.ceilings.get(place.name)}
        for what, value in values.items():
            inside = value is None or low <= value <= high
            demand(inside, f"{place.where} {what}: {value}", f"[{place.info.low}, {place.info.high}]")


@check("return in `prepare` the score of a no-op or of chance as the floor of every headline score")
def check_headline_scores_have_a_floor(subject: MetricSubject) -> None:
    """Every headline score with a direction has a floor, and no ceiling is worse than its floor."""
    for place in _places(subject, directed=True):
        prepared = place.judged.prepared
        floor, ceiling = prepared.floors.get(place.name), prepared.ceilings.get(place.name)
        if place.info.headline and place.value("perfect") is not None:
            demand(floor is not None, f"{place.where} has no floor", "a floor")
        if floor is not None and ceiling is not None:
            fine = place.better(ceiling, floor) >= 0
            demand(
                fine, f"{place.where}: floor {floor:.4g}, ceiling {ceiling:.4g}", "a ceiling no worse than the floor"
            )
    for judged in subject.judged:
        unknown = (set(judged.prepared.floors) | set(judged.prepared.ceilings)) - set(judged.scores)
        demand(not unknown, f"floors or ceilings of undeclared scores: {sorted(unknown)}", "declared scores")


@check("correct the `direction` of the ScoreInfo, or the sign of the score")
def check_direction_is_true(subject: MetricSubject) -> None:
    """In the declared direction a perfect SAE beats one of zeros, and is no worse than a dead or permuted one."""
    looked = False
    for place in _places(subject, directed=True):
        perfect = place.value("perfect")
        if perfect is None:
            continue
        if place.info.reads == "decoder" and place.info.direction == "lower":
            continue  # such as how close directions lie: what reconstructs well need not be low
        looked = True
        for sae in ("nothing", "dead", "permuted"):
            other = place.value(sae)
            if other is None:
                continue
            gain = place.better(perfect, other)
            slack = TOLERANCE * max(1.0, abs(other))
            enough = gain > slack if sae == "nothing" else gain >= -slack
            found = f"{place.where}: {perfect:.4g} for a perfect SAE, {other:.4g} for the {sae} one"
            demand(enough, found, f"the perfect one ahead, as {place.info.direction} is better")
    if not looked:
        raise NotCheckable("no score of the perfect SAE has a direction")


@check("let the floor be what an SAE that does nothing reaches, and the ceiling what none can pass")
def check_floor_and_ceiling_are_true(subject: MetricSubject) -> None:
    """An SAE of zeros is no better than the floor, and a perfect one is not above a ceiling of the whole SAE."""
    for place in _places(subject, directed=True):
        floor = place.judged.prepared.floors.get(place.name)
        ceiling = place.judged.prepared.ceilings.get(place.name)
        nothing, perfect = place.value("nothing"), place.value("perfect")
        if floor is not None and nothing is not None:
            ahead = place.better(nothing, floor)
            fine = ahead <= 1e-3 * max(1.0, abs(floor))
            demand(fine, f"{place.where}: {nothing:.4g} for zeros, floor {floor:.4g}", "zeros no better than the floor")
        if ceiling is not None and perfect is not None and place.info.reads != "encoder":
            fine = place.better(perfect, ceiling) <= 1e-3 * max(1.0, abs(ceiling))
            found = f"{place.where}: {perfect:.4g} for a perfect SAE, ceiling {ceiling:.4g}"
            demand(fine, found, "a ceiling that is not passed")


@check("correct `reads` of the ScoreInfo, or score the part that it names alone")
def check_reads_what_it_says(subject: MetricSubject) -> None:
    """A score of the encoder does not see whose decoder rows are whose, one of the decoder not what fires."""
    for place in _places(subject):
        other = {"encoder": "permuted", "decoder": "blind"}.get(place.info.reads)
        if other is None:
            continue
        perfect, found = place.value("perfect"), place.value(other)
        same = perfect == found
        if perfect is not None and found is not None:
            same = abs(perfect - found) <= TOLERANCE * max(1.0, abs(perfect))
        text = f"{place.where}: {perfect} for a perfect SAE, {found} for the {other} one"
        demand(same, text, f"the same number, as it reads the {place.info.reads} alone")


@check("let no latent's number matter: sort, or sum over all")
def check_order_of_latents_does_not_matter(subject: MetricSubject) -> None:
    """An SAE with its latents in another order has the same scores."""
    for judged in subject.judged:
        what = f"renumbered latents on {judged.world}"
        demand_same(what, judged.scored["renumbered"], judged.scored["perfect"], 1e-3)


@check("sum over all rows and divide once; a mean of batch means depends on the cut")
def check_cut_of_batches_does_not_matter(subject: MetricSubject) -> None:
    """Scores do not depend on how rows are cut into batches."""
    for judged in subject.judged:
        backbone = subject.worlds()[judged.world]
        fine = subject.context(backbone, finest=7)
        prepared = subject.metric.prepare(fine)
        for sae in ("random", "perfect"):
            scored = judged.again(sae, fine, prepared)
            demand_same(f"batches of 7 on {judged.world}, {sae} SAE", scored, judged.scored[sae], TOLERANCE)


@check("draw from `context.generator(role)` or `named_generator(...)` at every call, and keep no state in the metric")
def check_same_seed_same_numbers(subject: MetricSubject) -> None:
    """Preparing and scoring a second time gives the same numbers."""
    for judged in subject.judged:
        context = subject.context(subject.worlds()[judged.world])
        other = subject.build()
        prepared = other.prepare(context)
        demand_equal(f"floors on {judged.world}", dict(prepared.floors), dict(judged.fresh.floors))
        demand_equal(f"ceilings on {judged.world}", dict(prepared.ceilings), dict(judged.fresh.ceilings))
        for sae in ("random", "perfect"):
            demand_same(f"{sae} SAE on {judged.world}, again", judged.again(sae), judged.scored[sae])
            demand_same(f"{sae} SAE on {judged.world}, anew", judged.again(sae, context, prepared), judged.scored[sae])


@check("put all that `score` needs into Prepared's tensors and JSON facts, nothing into attributes of the metric")
def check_inputs_survive_the_store(subject: MetricSubject) -> None:
    """Another object of the metric scores the same from inputs that were stored and read again."""
    for judged in subject.judged:
        other = type(judged)(**{**vars(judged), "metric": subject.build()})
        for sae in ("random", "perfect"):
            demand_same(f"stored inputs on {judged.world}", other.again(sae), judged.scored[sae])
            fresh = judged.again(sae, prepared=judged.fresh)
            demand_same(f"inputs that were not stored on {judged.world}", fresh, judged.scored[sae], 1e-6)


@check("work on copies; the SAE that is scored is scored by other metrics too")
def check_sae_is_left_alone(subject: MetricSubject) -> None:
    """Scoring changes no tensor of the SAE."""
    for judged in subject.judged:
        sae = judged.saes["random"]
        before = {name: tensor.clone() for name, tensor in sae.tensors.items()}
        judged.again("random")
        for name, tensor in before.items():
            demand_equal(f"{name} after scoring on {judged.world}", sae.tensors[name], tensor)


@check("return columns of one length with plain values: numbers, texts, true or false")
def check_items_are_a_table(subject: MetricSubject) -> None:
    """The per-item table has columns of one length that a file can hold."""
    for judged in subject.judged:
        for sae, scored in judged.scored.items():
            where = f"of the {sae} SAE on {judged.world}"
            lengths = {name: len(column) for name, column in scored.items.items()}
            demand(len(set(lengths.values())) <= 1, f"columns {where}: {lengths}", "one length")
            for name, column in scored.items.items():
                odd = {type(value).__name__ for value in column} - {"int", "float", "str", "bool", "NoneType"}
                demand(not odd, f"column {name} {where} holds {sorted(odd)}", "int, float, str, bool or None")


@check("name in `rows()` how many rows of each split you ask for, so that the plan counts them")
def check_rows_are_declared(subject: MetricSubject) -> None:
    """The metric asks for no more activations than it declares."""
    declared = subject.metric.rows()
    for judged in subject.judged:
        for split, count in judged.context.asked.items():
            found = f"{count} rows of {split} on {judged.world}"
            demand(
                count <= declared.get(split, 0), f"asked for {found}, declared {declared.get(split, 0)}", "as declared"
            )


@check("leave the SAE's rule to `sae.encode`; refuse with an InputError what cannot be scored")
def check_any_width_is_scored(subject: MetricSubject) -> None:
    """SAEs with fewer latents than dimensions are scored, or refused with a reason."""
    for judged in subject.judged:
        whole = judged.saes["random"]
        small = {name: _first(tensor, whole.d_sae, 3) for name, tensor in whole.tensors.items()}
        narrow = type(whole)(small, whole.rule, whole.centring)
        cut = type(judged)(**{**vars(judged), "saes": {"narrow": narrow}})
        try:
            scored = cut.again("narrow")
        except SaebenchError:
            continue
        demand_equal(f"scores of 3 latents on {judged.world}", sorted(scored.scores), sorted(judged.scores))


def _first(tensor: torch.Tensor, d_sae: int, kept: int) -> torch.Tensor:
    for axis, size in enumerate(tensor.shape):
        if size == d_sae:
            return tensor.narrow(axis, 0, kept).clone()
    return tensor.clone()
