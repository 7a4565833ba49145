"""The built-in architectures: what each puts together, what is trained where, and what is saved."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from saebench_core.errors import InputError
from saebench_core.interfaces.architecture import Shape
from saebench_core.objectives import L1
from saebench_core.rules import BatchTopK, Gated, JumpReLU, ReLU
from saebench_core.sae import SparseAutoencoder
from tests.helpers.registries import built_in
from tests.helpers.training import (
    BATCH,
    D_IN,
    D_SAE,
    L0,
    activations,
    bits,
    build,
    make_trainee,
    normal,
    same_bits,
    settings,
    stream,
    trainable_names,
)

X = activations()
APRIL, TANH, STEP = {"form": "april_2024"}, {"loss": "tanh"}, {"loss": "step_l0", "bandwidth": 0.05, "threshold": 0.05}
FORMS = {
    "relu": ("relu", {}),
    "relu april": ("relu", APRIL),
    "topk": ("topk", {}),
    "batch_topk": ("batch_topk", {}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu step": ("jumprelu", STEP),
    "jumprelu tanh": ("jumprelu", TANH),
    "matryoshka": ("matryoshka", {}),
    "gated": ("gated", {}),
    "ortsae": ("ortsae", {"chunk": 10}),
    "p_anneal": ("p_anneal", {}),
}
CONSTRAINTS = trainable_names("constraint")
LEAVE_NORMS_FREE = ("trained", "soft_frozen_decoder", "angular_band")
CONTROLLED = {"relu": "l1", "relu april": "l1", "jumprelu": "step_l0", "jumprelu step": "step_l0"} | {
    "jumprelu tanh": "tanh",
    "gated": "l1",
    "p_anneal": "power",
}


def recipe_of(form, /, d_sae=D_SAE, l0=L0, **config):
    name, given = FORMS[form]
    return build("architecture", name, d_sae=d_sae, **(given | config)).recipe(Shape(D_IN, d_sae, l0))


def terms_of(recipe):
    return {weighted.term.name: weighted.coefficient for weighted in recipe.objective.terms}


def trained(form, constraint="trained", steps=30, x=X, seed=0, **changes):
    name, given = FORMS[form]
    training = settings(steps, **({"lr": 0.01} | changes))
    trainee = make_trainee(name, constraint, x, seed, training, on_architecture=given)
    for number, batch in enumerate(stream(x, training, seed).batches()):
        trainee.step(batch, number)
    return trainee


def test_every_architecture_is_here():
    assert {name for name, _ in FORMS.values()} == set(trainable_names("architecture"))


def test_rules():
    rules = {form: type(recipe_of(form).rule) for form in FORMS}
    assert {form for form, rule in rules.items() if rule is BatchTopK} == {"batch_topk", "matryoshka", "ortsae"}
    assert {form for form, rule in rules.items() if rule is ReLU} == {"relu", "relu april", "p_anneal"}
    assert {form for form, rule in rules.items() if rule is JumpReLU} == {"jumprelu", "jumprelu step", "jumprelu tanh"}
    assert rules["gated"] is Gated


def test_terms():
    aux = {"aux_k": 1 / 32}
    assert terms_of(recipe_of("relu")) == {"reconstruction": 1, "l1": 0.1}
    assert terms_of(recipe_of("matryoshka")) == {"prefix_reconstruction": 1} | aux
    assert terms_of(recipe_of("matryoshka", aux_coefficient=0)) == {"prefix_reconstruction": 1}
    assert terms_of(recipe_of("ortsae")) == {"reconstruction": 1, "orthogonality": 0.25} | aux
    assert terms_of(recipe_of("gated")) == {"reconstruction": 1, "l1": 0.1, "gate_reconstruction": 1}
    assert terms_of(recipe_of("p_anneal")) == {"reconstruction": 1, "power": 0.1}
    assert terms_of(recipe_of("jumprelu")) == {"reconstruction": 1, "target_l0": 1, "step_l0": 0.06 / L0}
    assert terms_of(recipe_of("jumprelu", compat_dl=True)) == {"reconstruction": 1, "target_l0": 1}
    assert terms_of(recipe_of("jumprelu step")) == {"reconstruction": 1, "step_l0": 0.003}
    tanh = terms_of(recipe_of("jumprelu tanh"))
    assert tanh == {"reconstruction": 1, "tanh": 1 / D_IN, "pre_activation": pytest.approx(3e-6 / D_IN**0.5)}


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka", "ortsae"])
def test_the_loss_for_dead_latents_takes_as_many_as_the_entry_says(name):
    for keys, k in (({}, None), ({"aux_k": 7}, 7)):
        (aux,) = (term.term for term in recipe_of(name, **keys).objective.terms if term.term.name == "aux_k")
        assert aux.k == k
    config = built_in().get("architecture", name).spec.config
    unsaid, none, told = (
        config(type=name, d_sae=64, **keys).identity() for keys in ({}, {"aux_k": None}, {"aux_k": 7})
    )
    assert unsaid == none and "aux_k" not in unsaid and told["aux_k"] == 7


@pytest.mark.parametrize("form", FORMS)
def test_penalties_are_steered_to_the_target(form):
    controlled = recipe_of(form, l0=7.0).objective.controlled()
    assert (controlled and controlled.term.name) == CONTROLLED.get(form)
    assert controlled is None or controlled.l0 == 7.0


def test_forms_of_relu():
    bricken, april = recipe_of("relu"), recipe_of("relu april")
    assert (bricken.decoder_norm, bricken.start_norm, bricken.centring) == ("unit", 1.0, "b_dec")
    assert (april.decoder_norm, april.start_norm, april.centring) == ("free", 0.1, "none")
    assert recipe_of("relu april", pre_bias=True).centring == "b_dec"
    assert recipe_of("relu", pre_bias=False).centring == "none"
    assert april.objective.terms[1].term == L1(norm_weighted=True)


def test_constants_of_tanh_are_brought_to_inputs_of_norm_one():
    recipe = recipe_of("jumprelu tanh")
    root = D_IN**0.5
    assert (recipe.rule.bandwidth, recipe.rule.start) == pytest.approx((2 / root, 0.1 / root))
    assert recipe.objective.terms[1].term.scale == pytest.approx(4 * root)
    assert recipe.decoder_norm == "free"
    assert recipe_of("jumprelu tanh", pre_activation="dead").objective.terms[2].term.latents == "dead"
    assert recipe_of("jumprelu", compat_dl=True).rule == JumpReLU(0.001, 0.001, half_kernel=True)


@pytest.mark.parametrize(
    ("fractions", "d_sae", "sizes"),
    [
        ((0.5, 0.3, 0.2), 10, (5, 3, 2)),
        ((0.5, 0.3, 0.2), 24, (12, 7, 5)),
        ((0.5, 0.3, 0.2), 3, (2, 1, 0)),
        ((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32), 3200, (100, 200, 400, 800, 1700)),
        ((1.0,), 7, (7,)),
    ],
)
def test_groups_of_matryoshka(fractions, d_sae, sizes):
    if 0 in sizes:
        with pytest.raises(InputError, match="d_sae 3 is too small"):
            recipe_of("matryoshka", d_sae=d_sae, fractions=fractions)
    else:
        assert recipe_of("matryoshka", d_sae=d_sae, fractions=fractions).objective.terms[0].term.sizes == sizes


@pytest.mark.parametrize(
    ("form", "config", "message"),
    [
        ("matryoshka", {"fractions": (0.5, 0.3)}, "add up to 1"),
        ("matryoshka", {"fractions": (1.5, -0.5)}, "greater than 0"),
        ("ortsae", {"chunk": 1}, "greater than or equal to 2"),
        ("p_anneal", {"anneal_from": 0.9}, "must not be above"),
        ("p_anneal", {"p_end": 0.0}, "greater than 0"),
        ("jumprelu", {"loss": "l1"}, "target_l0"),
        ("relu", {"form": "april"}, "april_2024"),
    ],
)
def test_impossible_values_are_refused(form, config, message):
    with pytest.raises(ValidationError, match=message):
        recipe_of(form, **config)


ALL = {"W_enc", "b_enc", "W_dec", "b_dec"}
TRAINED = dict.fromkeys(FORMS, ALL)
TRAINED |= {form: ALL | {"threshold"} for form in FORMS if form.startswith("jumprelu")}
TRAINED["gated"] = {"W_enc", "r_mag", "b_gate", "b_mag", "W_dec", "b_dec"}
WITH_FROZEN_ENCODER = {form: {"W_dec", "b_dec"} for form in FORMS}
WITH_FROZEN_ENCODER |= {form: {"b_enc", "W_dec", "b_dec"} for form in ("relu", "relu april", "p_anneal")}
WITH_FROZEN_ENCODER |= {form: {"threshold", "W_dec", "b_dec"} for form in FORMS if form.startswith("jumprelu")}
WITH_FROZEN_ENCODER["gated"] = {"b_gate", "W_dec", "b_dec"}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained_where(form, constraint):
    name, given = FORMS[form]
    trainee = make_trainee(name, constraint, X, on_architecture=given)
    wanting = {key for key, tensor in trainee.sae.tensors.items() if tensor.requires_grad}
    if not trainee.constraint.trains:
        assert wanting <= {"threshold"}
        return
    frozen = {"frozen_decoder": TRAINED[form] - {"W_dec"}, "frozen_encoder": WITH_FROZEN_ENCODER[form]}
    assert wanting == frozen.get(constraint, TRAINED[form])


def test_magnitudes_of_a_frozen_encoder_are_trained_on_demand():
    def wanting(**config):
        trainee = make_trainee("gated", "frozen_encoder", X, **config)
        return {key for key, tensor in trainee.sae.tensors.items() if tensor.requires_grad} - {"W_dec", "b_dec"}

    assert wanting() == {"b_gate"}
    assert wanting(train_magnitudes=True) == {"b_gate", "r_mag", "b_mag"}
    assert wanting(train_b_enc=False) == set()
    assert wanting(train_b_enc=False, train_magnitudes=True) == {"r_mag", "b_mag"}


def test_what_constraints_leave_out_and_why():
    dropped = {
        (form, constraint): dict(make_trainee(*FORMS[form][:1], constraint, X).recipe.objective.dropped)
        for form in ("ortsae", "matryoshka", "relu")
        for constraint in CONSTRAINTS
    }
    found = {key: set(names) for key, names in dropped.items() if names}
    assert found == {
        ("ortsae", "frozen_decoder"): {"orthogonality"},
        ("ortsae", "frozen_encoder"): {"aux_k"},
        ("matryoshka", "frozen_encoder"): {"aux_k"},
    }
    assert "frozen decoder" in dropped["ortsae", "frozen_decoder"]["orthogonality"]
    assert "cannot revive" in dropped["matryoshka", "frozen_encoder"]["aux_k"]


def test_ortsae_with_a_frozen_decoder_is_batch_topk_with_one():
    assert same_bits(bits(trained("ortsae", "frozen_decoder")), bits(trained("batch_topk", "frozen_decoder")))
    assert not same_bits(bits(trained("ortsae")), bits(trained("batch_topk")))


def test_ortsae_spreads_the_decoder():
    def closest(trainee):
        cosines = trainee.sae.w_dec.detach() @ trainee.sae.w_dec.detach().T
        return float(cosines.fill_diagonal_(-1).amax(1).square().mean())

    assert closest(trained("ortsae", steps=150)) < 0.8 * closest(trained("batch_topk", steps=150))


def test_matryoshka_of_one_group_is_batch_topk():
    x, training = X, settings(5)
    one = make_trainee("matryoshka", "trained", x, 0, training, on_architecture={"fractions": (1.0,)})
    other = make_trainee("batch_topk", "trained", x, 0, training)
    for number, batch in enumerate(stream(x, training).batches()):
        one.step(batch, number)
        other.step(batch, number)
    for name, tensor in other.sae.tensors.items():
        torch.testing.assert_close(one.sae.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_prefixes_of_matryoshka_explain_more_than_those_of_batch_topk():
    def explained(form):
        trainee = trained(form, steps=300)
        view = trainee.sae.training_step(X, X, torch.zeros(D_SAE, dtype=torch.bool))
        codes = view.selection.scatter(view.values.detach())[:, : D_SAE // 2]
        back = codes @ trainee.sae.w_dec.detach()[: D_SAE // 2] + trainee.sae.tensors["b_dec"].detach()
        return 1 - float((X - back).square().sum() / (X - X.mean(0)).square().sum())

    assert explained("matryoshka") > explained("batch_topk") + 0.02


def test_gates_learn_from_their_own_loss():
    trainee = trained("gated", steps=60)
    for name in ("b_gate", "b_mag", "r_mag"):
        assert float(trainee.sae.tensors[name].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("form", ["relu april", "jumprelu tanh"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_free_norms_are_folded_unless_the_encoder_is_frozen(form, constraint):
    trainee = trained(form, constraint)
    free = constraint in (*LEAVE_NORMS_FREE, "fixed_norm")
    assert trainee.folds_norms is free
    norms = trainee.sae.w_dec.detach().norm(dim=1)
    assert (float((norms - 1).abs().max()) > 0.01) is free
    raw = trainee.sae.folded(1.7)
    unit = raw.unit_decoder() if free else raw
    torch.testing.assert_close(unit.w_dec.norm(dim=1), torch.ones(D_SAE), rtol=1e-6, atol=1e-6)
    x = 1.7 * X
    torch.testing.assert_close(raw.reconstruct(x), unit.reconstruct(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(raw.encode(x).l0(), unit.encode(x).l0())
    if constraint == "frozen_encoder":
        assert torch.equal(unit.w_enc, trainee.start.w_enc)


def test_norms_start_small_in_the_form_of_april_and_frozen_ones_do_not():
    def norms(constraint):
        sae = make_trainee("relu", constraint, X, on_architecture=APRIL).sae
        return [float(weight.detach().norm(dim=dim).mean()) for weight, dim in ((sae.w_enc, 0), (sae.w_dec, 1))]

    for constraint in CONSTRAINTS:
        wanted = 0.1 if constraint in LEAVE_NORMS_FREE else 1.0
        assert norms(constraint) == pytest.approx([wanted, wanted], rel=1e-5)


def test_a_frozen_encoder_may_have_a_free_decoder_and_keeps_its_bits():
    training = settings(20, lr=0.02)
    trainee = make_trainee("batch_topk", "frozen_encoder", X, 0, training, decoder_norm="free")
    for number, batch in enumerate(stream(X, training).batches()):
        trainee.step(batch, number)
    assert not trainee.folds_norms
    assert torch.equal(trainee.sae.folded(2.0).w_enc, trainee.start.w_enc)


def test_free_norms_stay_within_caps():
    trainee = make_trainee("relu", "soft_frozen_decoder", X, 0, settings(60, lr=0.02), on_architecture=APRIL, tau=0.95)
    for number, batch in enumerate(stream(X, settings(60)).batches()):
        trainee.step(batch, number)
    rows = trainee.sae.w_dec.detach().double()
    cosine = torch.cosine_similarity(rows, trainee.start.w_dec.double(), dim=1)
    assert float(cosine.min()) == pytest.approx(0.95, abs=1e-6)
    assert float((rows.norm(dim=1) - 0.1).abs().max()) > 0.01


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constraint", ["trained", "frozen_encoder"])
def test_folding_scale_and_centre_changes_no_code(form, constraint):
    trainee = trained(form, constraint)
    if "threshold" in trainee.sae.tensors and trainee.sae.rule.calibrated() is not None:
        trainee.sae.tensors["threshold"].fill_(0.2)
    raw = trainee.sae.folded(1.7)
    assert raw.centring == ("none" if trainee.sae.centring == "fixed" else trainee.sae.centring)
    found, wanted = raw.encode(1.7 * X).to_dense(), 1.7 * trainee.sae.encode(X).to_dense()
    assert float((wanted > 0).float().mean()) > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


SAVED = {"gated": "gated", "topk": "topk"} | dict.fromkeys(("relu", "relu april", "p_anneal"), "standard")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_loaded_as_the_same_function(form, tmp_path):
    trainee = trained(form)
    sae = trainee.sae.folded(2.0)
    if sae.rule.calibrated() is not None:
        sae.tensors["threshold"].fill_(0.3)
    sae = sae.unit_decoder() if trainee.folds_norms else sae
    sae.save(tmp_path, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == SAVED.get(form, "jumprelu")
    loaded = SparseAutoencoder.load(tmp_path)
    x = 2 * normal(200, D_IN, seed=5)
    assert torch.equal(loaded.encode(x).to_dense(), sae.encode(x).to_dense())
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))


@pytest.mark.parametrize("form", ["ortsae", "p_anneal", "jumprelu", "jumprelu tanh", "gated"])
def test_a_training_in_two_halves_ends_with_the_same_bits(form):
    name, given = FORMS[form]
    training = settings(24, dead_rows=BATCH)
    whole, first, second = (make_trainee(name, "trained", X, 0, training, on_architecture=given) for _ in range(3))
    for number, batch in enumerate(stream(X, training).batches()):
        whole.step(batch, number)
        if number < 11:
            first.step(batch, number)
        if number == 11:
            second.load_state(*first.state())
        if number >= 11:
            second.step(batch, number)
    assert same_bits(bits(whole), bits(second))
    assert whole.steering.state() == second.steering.state()
