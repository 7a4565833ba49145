"""The SAE: codes, folding, files, memory and devices."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench_core import sae as sae_module
from saebench_core.errors import InputError
from saebench_core.rules import BatchTopK, Gated, JumpReLU, ReLU, TopK
from saebench_core.sae import SparseAutoencoder, inference_rule, read_config
from tests.helpers.training import D_IN, D_SAE, normal, random_sae

RULES = {"relu": ReLU(), "topk": TopK(4), "batch_topk": BatchTopK(4.0), "jumprelu": JumpReLU(0.05, 0.1)}
CENTRINGS = ("b_dec", "none")
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
X = normal(50, D_IN, seed=30)


def same_codes(left, right):
    return (
        torch.equal(left.selection.rows, right.selection.rows)
        and torch.equal(left.selection.cols, right.selection.cols)
        and torch.equal(left.values, right.values)
    )


@rules
@pytest.mark.parametrize("centring", (*CENTRINGS, "fixed"))
def test_codes_and_reconstructions_follow_the_formula(rule, centring):
    sae = random_sae(rule, centring)
    t = {name: tensor.double() for name, tensor in sae.tensors.items()}
    centre = {"b_dec": t["b_dec"], "none": torch.zeros(D_IN).double(), "fixed": t.get("centre")}[centring]
    pre = (X.double() - centre) @ t["W_enc"] + t["b_enc"]
    if isinstance(rule, TopK):
        kept = pre >= pre.topk(rule.k, dim=1).values[:, -1:]
    else:
        kept = pre > t.get("threshold", torch.zeros(()))
    wanted = torch.where(kept, pre.relu(), 0.0)
    codes = sae.encode(X)
    torch.testing.assert_close(codes.to_dense().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codes.l0(), (wanted > 0).sum(1).float())
    torch.testing.assert_close(sae.reconstruct(X).double(), wanted @ t["W_dec"] + t["b_dec"], rtol=1e-5, atol=1e-5)


@rules
@pytest.mark.parametrize("centring", CENTRINGS)
def test_a_saved_sae_gives_the_same_bits(rule, centring, tmp_path):
    sae = random_sae(rule, centring)
    sae.save(tmp_path / "sae", {"l0": 4.0})
    loaded = SparseAutoencoder.load(tmp_path / "sae")
    assert loaded.centring == centring
    assert same_codes(sae.encode(X), loaded.encode(X))
    assert torch.equal(sae.reconstruct(X), loaded.reconstruct(X))
    assert loaded.w_enc.stride() == sae.w_enc.stride()


COMMON_KEYS = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}


@rules
def test_files_are_what_saelens_reads(rule, tmp_path):
    random_sae(rule).save(tmp_path, {"model_name": "m", "hook_name": "h"})
    config = json.loads((tmp_path / "cfg.json").read_text())
    further = {"k", "rescale_acts_by_decoder_norm"} if isinstance(rule, TopK) else set()
    assert set(config) == COMMON_KEYS | further
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (D_IN, D_SAE, "float32")
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == config["reshape_activations"] == "none"
    assert config["metadata"].items() >= {"model_name": "m", "hook_name": "h"}.items()
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    if config["architecture"] == "jumprelu":
        shapes["threshold"] = (D_SAE,)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes


def test_without_pre_encoder_bias_the_file_says_so(tmp_path):
    random_sae(ReLU(), "none").save(tmp_path, {})
    assert read_config(tmp_path)["apply_b_dec_to_input"] is False


@rules
@pytest.mark.parametrize("centring", (*CENTRINGS, "fixed"))
def test_folding_commutes_with_scaling(rule, centring):
    sae, scale = random_sae(rule, centring), 3.7
    folded = sae.folded(scale)
    torch.testing.assert_close(folded.reconstruct(X), scale * sae.reconstruct(X / scale), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.encode(X).to_dense(), scale * sae.encode(X / scale).to_dense())
    assert folded.centring == ("none" if centring == "fixed" else centring)
    assert torch.equal(folded.w_dec, sae.w_dec)


@rules
def test_folding_by_a_power_of_two_is_exact(rule):
    sae = random_sae(rule)
    assert torch.equal(sae.folded(4.0).reconstruct(X), 4 * sae.reconstruct(X / 4))


def test_folding_makes_copies():
    sae = random_sae(BatchTopK(4.0))
    folded = sae.folded(1.0)
    for name, tensor in sae.tensors.items():
        before = folded.tensors[name].clone()
        tensor.add_(1.0)
        assert torch.equal(folded.tensors[name], before)


def test_a_fixed_centre_must_be_folded_before_saving(tmp_path):
    sae = random_sae(TopK(4), "fixed")
    with pytest.raises(InputError, match="fold"):
        sae.save(tmp_path, {})
    folded = sae.folded(2.0)
    folded.save(tmp_path, {})
    assert torch.equal(SparseAutoencoder.load(tmp_path).reconstruct(X), folded.reconstruct(X))


def test_batch_topk_codes_in_training_equal_the_saved_jumprelu_at_their_threshold(tmp_path):
    sae = random_sae(BatchTopK(4.0))
    step = sae.training_step(X, X, torch.zeros(D_SAE, dtype=torch.bool))
    assert step.values.numel() == 4 * X.shape[0]
    left = sae.pre_activations(X)[step.selection.scatter(torch.ones_like(step.values)) == 0].max()
    assert 0 < left < step.values.min()
    sae.tensors["threshold"].fill_(float(left))
    sae.save(tmp_path, {})
    loaded = SparseAutoencoder.load(tmp_path)
    assert isinstance(loaded.rule, JumpReLU)
    assert torch.equal(loaded.encode(X).to_dense(), step.selection.scatter(step.values))
    assert torch.equal(loaded.reconstruct(X), step.reconstruction)


@rules
def test_encoding_does_not_depend_on_the_chunks(rule, monkeypatch):
    sae = random_sae(rule)
    whole = sae.encode(X)
    monkeypatch.setattr(sae_module, "_CHUNK_ENTRIES", 3 * D_SAE)
    parts = sae.encode(X)
    assert len(list(sae.chunks(X))) == 17
    assert bool((parts.selection.rows.diff() >= 0).all())
    assert parts.selection.n_rows == X.shape[0]
    torch.testing.assert_close(parts.to_dense(), whole.to_dense())
    assert torch.equal(parts.l0(), whole.l0())


@rules
def test_an_empty_batch_has_no_codes(rule):
    codes = random_sae(rule).encode(X[:0])
    assert codes.to_dense().shape == (0, D_SAE)


def test_the_encoder_is_a_copy_of_the_decoder():
    w_dec = torch.nn.functional.normalize(normal(D_SAE, D_IN), dim=1)
    b_dec = normal(D_IN, seed=1)
    sae = SparseAutoencoder.start(w_dec.T, w_dec, b_dec, ReLU(), "fixed")
    assert torch.equal(sae.w_enc, w_dec.T)
    pointers = [w_dec, b_dec, *sae.tensors.values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in pointers}) == len(pointers)
    assert sae.w_enc.T.is_contiguous()
    assert torch.equal(sae.tensors["b_enc"], torch.zeros(D_SAE))


def test_the_rule_fills_its_tensors_at_the_start():
    sae = SparseAutoencoder.start(normal(D_IN, D_SAE), normal(D_SAE, D_IN), normal(D_IN), JumpReLU(0.1, 0.25), "none")
    assert sae.tensors["threshold"].tolist() == [0.25] * D_SAE
    assert sae.centre().tolist() == [0.0] * D_IN


def broken(change):
    tensors = dict(random_sae(JumpReLU()).tensors)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("threshold"),
        lambda t: t.pop("W_enc"),
        lambda t: t.update(extra=torch.zeros(1)),
        lambda t: t.update(threshold=torch.zeros(())),
        lambda t: t.update(W_dec=t["W_dec"].T),
        lambda t: t.update(W_enc=t["W_enc"][0]),
        lambda t: t.update(b_dec=torch.zeros(D_SAE)),
    ],
)
def test_wrong_tensors_are_refused(change, tmp_path):
    with pytest.raises(InputError):
        SparseAutoencoder(broken(change), JumpReLU())
    random_sae(JumpReLU()).save(tmp_path, {})
    stored = {name: tensor.contiguous() for name, tensor in broken(change).items()}
    save_file(stored, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError):
        SparseAutoencoder.load(tmp_path)


def test_folders_without_an_sae_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cfg\.json"):
        SparseAutoencoder.load(tmp_path)
    random_sae(TopK(4)).save(tmp_path, {})
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="sae_weights"):
        SparseAutoencoder.load(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match="sae_weights"):
        SparseAutoencoder.load(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        SparseAutoencoder.load(tmp_path)


def test_rules_of_saved_architectures():
    assert inference_rule({"architecture": "standard"}) == ReLU()
    assert isinstance(inference_rule({"architecture": "jumprelu"}), JumpReLU)
    assert inference_rule({"architecture": "topk", "k": 7}) == TopK(7)
    with pytest.raises(InputError, match="'k'"):
        inference_rule({"architecture": "topk"})
    assert inference_rule({"architecture": "gated"}) == Gated()
    with pytest.raises(InputError, match="temporal"):
        inference_rule({"architecture": "temporal"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_number_format_become_fp32(dtype, tmp_path):
    sae = random_sae(ReLU())
    sae.save(tmp_path, {})
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in sae.tensors.items()}
    save_file(stored, tmp_path / "sae_weights.safetensors")
    loaded = SparseAutoencoder.load(tmp_path)
    assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
    torch.testing.assert_close(loaded.w_dec, sae.w_dec, rtol=0.01, atol=0.01)


@rules
@pytest.mark.parametrize("dense_share", [-1.0, 2.0])
def test_a_training_step_makes_no_tensor_on_a_default_device(rule, dense_share, monkeypatch):
    monkeypatch.setattr("saebench_core.kernels.products.DENSE_SHARE", dense_share)
    sae, dead = random_sae(rule), torch.zeros(D_SAE, dtype=torch.bool)
    for tensor in sae.tensors.values():
        tensor.requires_grad_()
    with torch.device("meta"):  # a tensor made without a device lands there and cannot be mixed with the others
        step = sae.training_step(X, X, dead)
        (step.reconstruction - X).square().sum().backward()
        codes = sae.encode(X)
        results = [step.reconstruction, step.values, codes.values, codes.l0(), codes.to_dense(), sae.decode(codes)]
        results += [codes.selection.fired(codes.values), sae.centre(), sae.folded(2.0).w_enc]
    assert {tensor.device.type for tensor in results} == {"cpu"}
    assert sae.w_dec.grad.device.type == "cpu"
