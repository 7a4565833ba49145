"""Checks of architectures: the rule, the loss, the training, and what is left in a file."""

from __future__ import annotations

from functools import cached_property
from typing import cast, get_args

import torch

from saebench_core.conformance.bench import BATCH, D_IN, L0, SCALE, Made, Pair, calibration, raw_rows, rows, settings
from saebench_core.conformance.checks import NotCheckable, check, demand, demand_close, demand_equal
from saebench_core.conformance.crossing import hold_together, pairs
from saebench_core.conformance.strangers import FREE
from saebench_core.conformance.subjects import PluginSubject, entries_of
from saebench_core.errors import InputError
from saebench_core.interfaces.architecture import ArchitectureConfig, Recipe
from saebench_core.interfaces.constraint import ConstraintConfig
from saebench_core.kernels import PreActivations
from saebench_core.rules import Role
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.trainee import Trainee

STEPS = 500
SHORT = 12


class ArchitectureSubject(PluginSubject):
    """An architecture, and SAEs of it that were trained without any constraint."""

    @cached_property
    def pair(self) -> Pair:
        """The architecture with nothing held random."""
        free = FREE.spec.config.model_validate({})
        return Pair(self.plugin, FREE, cast(ArchitectureConfig, self.config), cast(ConstraintConfig, free))

    @cached_property
    def recipe(self) -> Recipe:
        """What the architecture proposes."""
        return self.pair.recipe()[0]

    @cached_property
    def trained(self) -> Made:
        """An SAE after its training."""
        made = self.pair.made(settings(STEPS))
        made.run(0, STEPS)
        return made

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The trained SAE on raw activations."""
        return self.trained.finish(None)

    def short(self, seed: int = 0) -> Trainee:
        """Return an SAE after a few steps."""
        return self.pair.made(settings(SHORT), seed=seed).run(0, SHORT)

    def exercise(self) -> object:
        """Train a few steps, finish, save and load."""
        made = self.pair.made(settings(SHORT))
        made.run(0, SHORT)
        folder = self.new_folder()
        self.pair.save(made.finish(None), folder)
        return self.pair.load(folder)


@check("return saebench_core.Recipe(rule, objective, ...) with at least one term, each of its own name")
def check_recipe(subject: ArchitectureSubject) -> None:
    """The recipe has a rule and named terms, for any size."""
    for d_in in (D_IN, 2 * D_IN):
        recipe, _ = subject.pair.recipe(d_in=d_in)
        demand(isinstance(recipe, Recipe), f"a {type(recipe).__name__}", "a Recipe")
        names = [weighted.term.name for weighted in recipe.objective.terms]
        demand(bool(names), "no term in the objective", "at least one")
        demand(len(set(names)) == len(names), f"the terms {names}", "a name for each")
        steered = [weighted.term.name for weighted in recipe.objective.terms if weighted.controlled]
        demand(len(steered) <= 1, f"the controlled terms {steered}", "one at most")


@check("name every tensor in `Rule.tensors` with a role of saebench_core.Role and a shape of d_in and d_sae")
def check_tensors_have_roles(subject: ArchitectureSubject) -> None:
    """Every tensor has a role and a shape, so that constraints can hold it."""
    sae = subject.pair.made(settings(1)).trainee.sae
    for name, info in sae.info.items():
        demand(info.role in get_args(Role), f"{name} has the role {info.role!r}", ", ".join(get_args(Role)))
        demand(sae.tensors[name].dtype == torch.float32, f"{name} is {sae.tensors[name].dtype}", "torch.float32")


@check("select entries sorted by row, each once, and give back a value for each")
def check_codes_are_sparse(subject: ArchitectureSubject) -> None:
    """Codes are sorted entries of (rows, d_sae), each once, with finite values."""
    x = raw_rows()[:100]
    codes = subject.sae.encode(x)
    selection = codes.selection
    demand_equal("rows and latents of the codes", (selection.n_rows, selection.d_sae), (100, subject.sae.d_sae))
    demand(bool((selection.rows.diff() >= 0).all()), "rows of entries out of order", "entries sorted by row")
    flat = selection.rows * selection.d_sae + selection.cols
    demand(len(set(flat.tolist())) == flat.numel(), "entries that come twice", "each entry once")
    demand_equal("shape of the values", tuple(codes.values.shape), tuple(selection.cols.shape))
    demand(bool(torch.isfinite(codes.values).all()), "values that are not finite", "finite values")
    demand(codes.values.numel() > 0, f"no latent fires on 100 rows after {STEPS} steps", "codes that are not empty")
    back = subject.sae.reconstruct(x)
    demand_close("reconstruction", back, codes.to_dense() @ subject.sae.w_dec + subject.sae.tensors["b_dec"], 1e-4)


@check("return the pre-activations of the selected entries in `Selected.pre`, as PreActivations' methods do")
def check_selected_values_are_true(subject: ArchitectureSubject) -> None:
    """What the rule selects comes with the pre-activations of exactly these entries, in training and in inference."""
    sae = subject.trained.trainee.sae
    with torch.no_grad():
        x = rows()[:BATCH]
        pre = PreActivations(x - sae.centre(), sae.w_enc, sae.encoder_bias, dense=True)
        dense = sae.pre_activations(x)
        for select in (sae.rule.select_training, sae.rule.select_inference):
            selected = select(pre, sae.tensors)
            at = dense[selected.selection.rows, selected.selection.cols]
            demand_close(f"Selected.pre of {select.__name__}", selected.pre, at, 1e-4, 1e-5)


@check("select each row of inference by itself: a threshold, or the largest of the row, not of the batch")
def check_inference_ignores_batch_mates(subject: ArchitectureSubject) -> None:
    """In inference a row's codes do not depend on the other rows of the batch."""
    x = raw_rows()[:60]
    whole = subject.sae.encode(x).to_dense()
    for size in (1, 7):
        alone = torch.cat([subject.sae.encode(part).to_dense() for part in torch.split(x, size)])
        demand_close(f"codes of rows in batches of {size}", alone, whole, 1e-4, 1e-5)


@check("connect every trained tensor with the loss, or mark it `estimated` in its TensorInfo")
def check_loss_reaches_every_tensor(subject: ArchitectureSubject) -> None:
    """The loss is finite, and its gradient reaches every tensor that is trained."""
    reached: set[str] = set()
    made = subject.pair.made(settings(60, lr=0.01))
    sae = made.trainee.sae

    def look(trainee: Trainee) -> None:
        demand(trainee.report.loss == trainee.report.loss, f"the loss is {trainee.report.loss}", "a finite loss")
        for name, tensor in sae.tensors.items():
            if tensor.grad is not None and bool(tensor.grad.any()):
                reached.add(name)

    made.run(0, 60, look)
    left = {name for name, info in sae.info.items() if not info.estimated} - reached
    demand(not left, f"no gradient in 60 steps for {', '.join(sorted(left))}", "a gradient for every trained tensor")


@check("look at the weights of the terms and at the gradients of the rule's `activate`")
def check_training_explains_more(subject: ArchitectureSubject) -> None:
    """Training on planted features explains variance of held-out rows that the start does not."""
    held = calibration().values / SCALE
    before = subject.pair.made(settings(1)).trainee.heldout_variance(held)
    after = subject.trained.trainee.heldout_variance(held)
    found = f"explained variance {before:.3f} at the start, {after:.3f} after {STEPS} steps"
    demand(after > max(before, 0.4), found, "more than at the start, and than 0.4")


@check("meet `shape.l0` by the rule itself, `calibrated()`, or a term with `controlled=True` and `l0=shape.l0`")
def check_l0_is_met(subject: ArchitectureSubject) -> None:
    """The mean L0 on held-out rows is the target: within 2 % by rule or threshold, 40 % after a short steering."""
    x, rule = calibration().values, subject.recipe.rule
    exact = rule.meets_l0 or rule.calibrated() is not None
    bound = 0.02 if exact else 0.4
    found = float(subject.sae.encode(x).l0().mean())
    demand(abs(found - L0) <= bound * L0, f"mean L0 {found:.3g} for the target {L0:g}", f"within {bound:.0%}")
    other = subject.pair.made(settings(SHORT if exact else STEPS), l0=2 * L0)
    other.run(0, SHORT if exact else STEPS)
    more = float(other.finish(None).encode(x).l0().mean())
    demand(more > 1.3 * found, f"mean L0 {more:.3g} for the target {2 * L0:g}", f"clearly more than {found:.3g}")


@check("draw nothing outside named generators, and keep no state in the architecture, the rule or the terms")
def check_same_seed_same_numbers(subject: ArchitectureSubject) -> None:
    """Two trainings from one seed end with equal bits; another seed ends elsewhere."""
    first, second, other = subject.short(), subject.short(), subject.short(seed=1)
    for name, tensor in first.sae.tensors.items():
        demand_equal(f"{name} of two trainings from one seed", second.sae.tensors[name], tensor)
    demand(not torch.equal(first.sae.w_dec, other.sae.w_dec), "equal decoders for two seeds", "another draw")


@check("keep what changes in training in tensors, or let it depend on `step.number` and `step.progress` alone")
def check_training_goes_on_from_a_checkpoint(subject: ArchitectureSubject) -> None:
    """A training that goes on from a checkpoint ends with the bits of one that was never stopped."""
    whole, half = subject.short(), SHORT // 2
    tensors, plain = subject.pair.made(settings(SHORT)).run(0, half).state()
    again = subject.pair.made(settings(SHORT))
    again.trainee.load_state(tensors, plain)
    again.run(half, SHORT)
    for name, tensor in whole.sae.tensors.items():
        demand_equal(f"{name} after a checkpoint at step {half}", again.trainee.sae.tensors[name], tensor)


@check("bring tensors into their range in `after_step`, so that doing it again changes nothing")
def check_after_step_is_idempotent(subject: ArchitectureSubject) -> None:
    """What the rule does after a step is done once and for all."""
    sae = subject.pair.made(settings(SHORT, lr=0.05)).run(0, SHORT).sae
    before = {name: tensor.detach().clone() for name, tensor in sae.tensors.items()}
    with torch.no_grad():
        sae.rule.after_step(sae.tensors)
    for name, tensor in before.items():
        demand_equal(f"{name} after a second after_step", sae.tensors[name].detach(), tensor)


@check(
    "let values grow in proportion to pre-activations (relu(2 * pre) does, relu(pre) ** 2 does not), and set `scales` "
    "in the rule's TensorInfo: true for biases and thresholds, false for factors"
)
def check_scale_folds(subject: ArchitectureSubject) -> None:
    """An SAE that is folded for larger activations does the same with them, and nothing else."""
    sae, x = subject.trained.trainee.sae, rows()[:BATCH]
    folded = sae.folded(SCALE)
    demand_close("folded codes", folded.encode(SCALE * x).to_dense(), SCALE * sae.encode(x).to_dense(), 1e-3, 1e-4)
    demand_close("folded reconstruction", folded.reconstruct(SCALE * x), SCALE * sae.reconstruct(x), 1e-3, 1e-4)


@check("multiply in `rescaled` all that is on the scale of pre-activations, or return None")
def check_rescaled_is_the_same_function(subject: ArchitectureSubject) -> None:
    """Where decoder norms go into the codes, reconstructions stay what they were."""
    tensors = {name: tensor.detach().clone() for name, tensor in subject.sae.tensors.items()}
    tensors["W_dec"] *= torch.linspace(0.5, 2.0, subject.sae.d_sae, device="cpu")[:, None]
    uneven = SparseAutoencoder(tensors, subject.sae.rule, subject.sae.centring)
    unit = uneven.unit_decoder()
    if unit is uneven:
        raise NotCheckable("the rule has no form for rescaled codes")
    demand_close("norms", unit.w_dec.norm(dim=1), torch.ones(unit.d_sae, device="cpu"), 1e-4)
    demand_close("reconstruction", unit.reconstruct(raw_rows()), uneven.reconstruct(raw_rows()), 1e-3, 1e-4)


@check("write in `export` every tensor that inference reads; under a name of your own the plugin's rule is used again")
def check_round_trip_through_safetensors(subject: ArchitectureSubject) -> None:
    """An SAE that was saved and read again has the same codes and reconstructions."""
    folder = subject.new_folder()
    subject.pair.save(subject.sae, folder)
    again, x = subject.pair.load(folder), raw_rows()
    demand_close("codes after saving", again.encode(x).to_dense(), subject.sae.encode(x).to_dense(), 1e-5, 1e-6)
    demand_close("reconstruction after saving", again.reconstruct(x), subject.sae.reconstruct(x), 1e-4, 1e-5)


@check("refuse with InputError what the architecture cannot do, or do it; a rule sees any number of rows")
def check_odd_sizes(subject: ArchitectureSubject) -> None:
    """A fractional target, one row and no row at all work, or are refused with an InputError."""
    try:
        made = subject.pair.made(settings(2), l0=2.5)
        made.run(0, 2)
    except InputError as error:
        demand(bool(str(error)), "a refusal without a word", "an InputError that says what is allowed")
    for count in (1, 0):
        codes = subject.sae.encode(raw_rows()[:count])
        demand_equal(f"rows of the codes of {count} rows", codes.selection.n_rows, count)


@check("give tensors their true roles, and let loss and rule read tensors by name from what they are handed")
def check_every_constraint_holds(subject: ArchitectureSubject) -> str:
    """Every installed constraint holds on this architecture what it freezes, by the roles of the tensors."""
    installed = subject.catalog.of_kind("constraint")
    tried = entries_of(installed)
    listed = pairs({subject.plugin: subject.config}, tried)
    return hold_together(listed, subject.new_folder, [plugin.name for plugin in installed if plugin not in tried])
