"""Checks of constraints: what they freeze, how they project, what they hold random, and what they certify."""

from __future__ import annotations

import json
from functools import cached_property
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor

from saebench_core.catalog import Plugin
from saebench_core.conformance.bench import D_IN, D_SAE, L0, Made, Pair, calibration, raw_rows, settings, statistics
from saebench_core.conformance.checks import NotCheckable, check, demand, demand_close, demand_equal
from saebench_core.conformance.crossing import (
    demand_kept,
    demand_roles,
    demand_within,
    free_pair,
    hold_together,
    pairs,
    twin_of,
)
from saebench_core.conformance.strangers import FREE, PLAIN, STRANGER
from saebench_core.conformance.subjects import PluginSubject, entries_of
from saebench_core.errors import SaebenchError
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec, Recipe
from saebench_core.interfaces.constraint import Constraint, ConstraintConfig, Init
from saebench_core.randomness import tensor_sha256
from saebench_core.sae import SparseAutoencoder

STEPS = 30
_CORE_FACTS = frozenset({"base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256", "frozen", "twin", "loaded"})


class Held(NamedTuple):
    """An SAE under the constraint, through its training and its end.

    Attributes:
        made: in training.
        before: its tensors before the first step.
        twin: the same without the constraint.
        certified: at the end, as its certificate sees it.
        finished: as it would be saved.
    """

    made: Made
    before: dict[str, Tensor]
    twin: SparseAutoencoder
    certified: SparseAutoencoder
    finished: SparseAutoencoder


class ConstraintSubject(PluginSubject):
    """A constraint on two architectures that the kit brings itself."""

    def pair(self, architecture: Plugin = STRANGER) -> Pair:
        """Return the constraint on one of the kit's architectures."""
        entry = architecture.spec.config.model_validate({"d_sae": D_SAE})
        return Pair(architecture, self.plugin, cast(ArchitectureConfig, entry), cast(ConstraintConfig, self.config))

    def hold(self, architecture: Plugin, steps: int = STEPS) -> Held:
        """Train and finish an SAE under the constraint."""
        pair = self.pair(architecture)
        training = settings(steps, lr=0.02, weight_decay=0.5)
        made = pair.made(training)
        before = {name: tensor.detach().clone() for name, tensor in made.trainee.sae.tensors.items()}
        made.run(0, steps)
        twin = twin_of(pair, training)
        return Held(made, before, twin, *made.end(twin if made.constraint.needs else None))

    @cached_property
    def strange(self) -> Held:
        """The constraint on an architecture with a tensor of every role."""
        return self.hold(STRANGER)

    @cached_property
    def plain(self) -> Held:
        """The constraint on an architecture that meets its L0."""
        return self.hold(PLAIN)

    @property
    def constraint(self) -> Constraint:
        """The constraint, built anew."""
        return cast(Constraint, self.build())

    def exercise(self) -> object:
        """Train, finish, save and load."""
        held = self.hold(STRANGER, 6)
        held.made.constraint.certify(held.certified, held.made.trainee.start)
        folder = self.new_folder()
        self.pair().save(held.finished, folder)
        return self.pair().load(folder)


@check("return Start(w_enc (d_in, d_sae), w_dec (d_sae, d_in)) in fp32; copy what you change of the draw")
def check_start(subject: ConstraintSubject) -> None:
    """The start has the right shapes for every init, is twice the same, and leaves the draw as it was."""
    made = subject.pair().made(settings(1))
    for init in get_args(Init):
        start = made.constraint.initialise(made.draw, init, statistics())
        shapes = (tuple(start.w_enc.shape), tuple(start.w_dec.shape))
        demand_equal(f"shapes of the start, init {init}", shapes, ((D_IN, D_SAE), (D_SAE, D_IN)))
        for weight in (start.w_enc, start.w_dec):
            demand(weight.dtype == torch.float32, f"{weight.dtype} at the start, init {init}", "torch.float32")
            demand(bool(torch.isfinite(weight).all()), f"a start that is not finite, init {init}", "finite weights")
        again = made.constraint.initialise(made.draw, init, statistics())
        demand_equal(f"w_dec drawn a second time, init {init}", again.w_dec, start.w_dec)
        demand_equal(f"w_enc drawn a second time, init {init}", again.w_enc, start.w_enc)
    now = tensor_sha256(torch.stack([made.draw.normal, made.draw.uniform]))
    demand(now == made.draw_sha256, "the base draw was changed in place", "a draw that all twins still share")


@check("start from `draw_directions(draw, init, statistics)`, and move away from there in training or in `finish`")
def check_twins_start_alike(subject: ConstraintSubject) -> None:
    """The decoder starts where the twins of the same init start, so that they can be compared in pairs."""
    made = subject.pair().made(settings(1))
    free = cast(Constraint, FREE.spec.build(FREE.spec.config.model_validate({})))
    for init in get_args(Init):
        own, wanted = (one.initialise(made.draw, init, statistics()).w_dec for one in (made.constraint, free))
        demand_equal(f"w_dec at the start, init {init}", own, wanted)


@check("return a new Recipe with dataclasses.replace; give `Objective.without` a reason")
def check_adapt(subject: ConstraintSubject) -> None:
    """The recipe is adapted in a copy, keeps a loss, and terms that are left out have a reason."""
    for architecture in (STRANGER, PLAIN):
        pair = subject.pair(architecture)
        free = free_pair(pair).recipe()[0]
        before = repr(free)
        adapted = subject.constraint.adapt(free, pair.made(settings(1)).trainee.shape)
        demand(isinstance(adapted, Recipe), f"a {type(adapted).__name__}", "a Recipe")
        demand_equal("the recipe that was given", repr(free), before)
        demand(bool(adapted.objective.terms), "no term is left of the loss", "at least one")
        left = {weighted.term.name for weighted in free.objective.terms}
        left -= {weighted.term.name for weighted in adapted.objective.terms}
        told = {name for name, reason in adapted.objective.dropped if reason}
        demand(
            left <= told, f"terms left out without a reason: {sorted(left - told)}", "Objective.without(name, reason)"
        )


@check("freeze by role, not by name: `{name for name, role in roles.items() if role == ...}`")
def check_freezes_by_role(subject: ConstraintSubject) -> None:
    """Frozen tensors exist, and of the encoder's or decoder's tensors all are frozen or none, whatever their names."""
    for architecture in (STRANGER, PLAIN):
        demand_roles(subject.pair(architecture).made(settings(1)))


@check("name in `frozen` what must not move; neither `project` nor `finish` may touch it")
def check_frozen_tensors_keep_their_bits(subject: ConstraintSubject) -> None:
    """Frozen tensors are bit-identical after AdamW steps with weight decay, and in the finished SAE."""
    held = subject.strange
    if not held.made.trainee.frozen:
        raise NotCheckable("the constraint freezes no whole tensor")
    demand_kept(held.made.trainee, held.before, STEPS)
    demand_kept(held.made.trainee, held.before, STEPS, held.certified)


@check("freeze in `frozen` what is not to be trained; what is neither frozen nor estimated is trained")
def check_the_rest_is_trained(subject: ConstraintSubject) -> None:
    """What is not frozen moves; where there are no steps, nothing does."""
    held, trainee = subject.strange, subject.strange.made.trainee
    moved = {name for name, old in held.before.items() if not torch.equal(trainee.sae.tensors[name].detach(), old)}
    estimated = {name for name, info in trainee.sae.info.items() if info.estimated}
    wanted = set(held.before) - trainee.frozen - estimated if held.made.constraint.trains else set()
    demand(moved == wanted, f"{sorted(moved)} moved in {STEPS} steps", str(sorted(wanted)))


@check("project on the set exactly, so that a point of the set stays where it is")
def check_projection_is_idempotent(subject: ConstraintSubject) -> None:
    """Projecting a second time moves nothing, from wherever one starts."""
    for spread in (0.1, 3.0):
        trainee = subject.pair().made(settings(1)).trainee
        noise = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(1), device="cpu")
        with torch.no_grad():
            if "W_dec" not in trainee.frozen:
                trainee.sae.w_dec.add_(spread * noise)
            if "W_enc" not in trainee.frozen:
                trainee.sae.w_enc.add_(spread * noise.T)
            trainee.constraint.project(trainee.sae, trainee.start)
        demand_within(trainee)


@check("let `project` bring back all that a step can have moved, at every step")
def check_every_step_ends_in_the_allowed_set(subject: ConstraintSubject) -> None:
    """After every step the SAE lies where a projection leaves it."""
    if not subject.constraint.trains:
        raise NotCheckable("the constraint takes no step")
    subject.pair().made(settings(STEPS, lr=0.02)).run(0, STEPS, demand_within)


@check("state in `randomises` exactly what training never learns: encoder, decoder, pairing, codes")
def check_what_is_random_is_declared(subject: ConstraintSubject) -> None:
    """What the constraint says it holds random is not what training learns, and what stays as drawn is declared."""
    named = subject.constraint.randomises
    for held in (subject.strange, subject.plain):
        sae, start = held.finished, held.made.trainee.start
        parts = {"encoder": ("W_enc", start.w_enc), "decoder": ("W_dec", start.w_dec)}
        for part, (name, drawn) in parts.items():
            same = torch.equal(_directions(sae, name), _directions(held.twin, name))
            demand(not (part in named and same), f"{name} is what training learns", f"a random {part}, as declared")
            as_drawn = torch.allclose(_directions(sae, name), _unit(drawn, name), atol=1e-5)
            demand(not (part not in named and as_drawn), f"{name} stays as drawn", f"{part!r} in `randomises`")
        if named & {"pairing", "codes"}:
            x = calibration().values
            same = torch.allclose(sae.reconstruct(x), held.twin.reconstruct(x), atol=1e-4)
            demand(not same, "reconstructions are the twin's", f"{' and '.join(sorted(named))} at random")


def _unit(weight: Tensor, name: str) -> Tensor:
    return torch.nn.functional.normalize(weight.detach(), dim=0 if name == "W_enc" else 1)


def _directions(sae: SparseAutoencoder, name: str) -> Tensor:
    return _unit(sae.tensors[name], name)


@check("set `needs` to the twin's type, copy what you take of the twin, and raise an InputError where it is missing")
def check_twin_is_needed_and_kept(subject: ConstraintSubject) -> None:
    """A constraint that needs a twin says so when there is none, and leaves the twin as it was."""
    if subject.constraint.needs is None:
        raise NotCheckable("the constraint needs no twin")
    made = subject.pair(PLAIN).made(settings(1))
    twin = twin_of(subject.pair(PLAIN))
    before = {name: tensor.clone() for name, tensor in twin.tensors.items()}
    made.finish(twin)
    for name, old in before.items():
        demand_equal(f"{name} of the twin after finishing", twin.tensors[name].detach(), old)
    try:
        made.finish(None)
    except SaebenchError:
        return
    demand(False, "no error without a twin", "an InputError from `finish` or `calibrate`")


@check("return plain JSON from `certify`, under names of your own, and shares in [0, 1]")
def check_certificate_is_json(subject: ConstraintSubject) -> None:
    """What the constraint certifies is JSON with finite numbers, and certifying changes nothing."""
    for held in (subject.strange, subject.plain):
        before = {name: tensor.detach().clone() for name, tensor in held.certified.tensors.items()}
        facts = dict(held.made.constraint.certify(held.certified, held.made.trainee.start))
        json.dumps(facts, allow_nan=False)
        taken = sorted(set(facts) & _CORE_FACTS)
        demand(not taken, f"facts under the core's names: {taken}", "names of your own")
        share = facts.get("at_bound_share")
        inside = share is None or (isinstance(share, float) and 0 <= share <= 1)
        demand(inside, f"at_bound_share {share}", "null, or a share in [0, 1]")
        for name, tensor in before.items():
            demand_equal(f"{name} after certifying", held.certified.tensors[name].detach(), tensor)


@check("keep the rule's calibrated threshold, or set thresholds in `calibrate` from the rows that it is given")
def check_l0_is_met(subject: ConstraintSubject) -> None:
    """The finished SAE fires about as many latents a row as its target, or as the twin that it is made from."""
    held, x = subject.plain, calibration().values
    wanted = float(held.twin.encode(x).l0().mean()) if held.made.constraint.needs else L0
    found = float(held.finished.encode(x).l0().mean())
    demand(abs(found - wanted) <= 0.1 * wanted, f"mean L0 {found:.3g}, wanted {wanted:.3g}", "within 10%")


@check("draw from the base draw or named generators only, and keep no state in the constraint")
def check_same_seed_same_numbers(subject: ConstraintSubject) -> None:
    """Two trainings from one seed end with equal bits."""
    first, second = subject.hold(STRANGER, 8).finished, subject.hold(STRANGER, 8).finished
    for name, tensor in first.tensors.items():
        demand_equal(f"{name} of two trainings from one seed", second.tensors[name].detach(), tensor.detach())


@check("let `project` depend on the SAE and its start alone")
def check_training_goes_on_from_a_checkpoint(subject: ConstraintSubject) -> None:
    """A training that goes on from a checkpoint ends with the bits of one that was never stopped."""
    if not subject.constraint.trains:
        raise NotCheckable("the constraint takes no step")
    training, pair = settings(10, lr=0.02), subject.pair()
    whole = pair.made(training).run(0, 10)
    tensors, plain = pair.made(training).run(0, 5).state()
    again = pair.made(training)
    again.trainee.load_state(tensors, plain)
    again.run(5, 10)
    for name, tensor in whole.sae.tensors.items():
        demand_equal(f"{name} after a checkpoint at step 5", again.trainee.sae.tensors[name].detach(), tensor.detach())


@check("keep all that inference reads in tensors, and let `adapt` return the rule that reads the saved file")
def check_round_trip_through_safetensors(subject: ConstraintSubject) -> None:
    """A finished SAE that was saved and read again has the same codes, and a row's do not depend on its batch."""
    x = raw_rows()[:100]
    for architecture, held in ((STRANGER, subject.strange), (PLAIN, subject.plain)):
        folder, pair = subject.new_folder(), subject.pair(architecture)
        pair.save(held.finished, folder)
        codes = held.finished.encode(x).to_dense()
        demand_close("codes after saving", pair.load(folder).encode(x).to_dense(), codes, 1e-4, 1e-5)
        alone = torch.cat([held.finished.encode(part).to_dense() for part in torch.split(x, 7)])
        demand_close("codes of rows in batches of 7", alone, codes, 1e-4, 1e-5)


@check("know tensors by the roles that `frozen` is given; where a rule must be replaced, do it in `adapt`")
def check_every_architecture_is_held(subject: ConstraintSubject) -> str:
    """On every installed architecture, and on two of the kit's own, what is frozen keeps its bits."""
    own = {plugin: plugin.spec.config.model_validate({"d_sae": D_SAE}) for plugin in (STRANGER, PLAIN)}
    installed = [one for one in subject.catalog.of_kind("architecture") if isinstance(one.spec, ArchitectureSpec)]
    tried = entries_of(installed)
    listed = pairs({**own, **tried}, {subject.plugin: subject.config})
    return hold_together(listed, subject.new_folder, [plugin.name for plugin in installed if plugin not in tried])
