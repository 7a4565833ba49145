"""Checkpoints that the peers' code wrote (`tests/data/make_peer_files.py`) give the peers' codes and reconstructions.

Written by their libraries: dictionary_learning 0.1.0, SAELens 6.54.12, sparsify 1.3.3. Written by the description of
the format, with outputs of SAELens' classes: SAELens before version 6, Gemma Scope.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench_core.errors import InputError
from saebench_core.formats import FORMATS, Facts, find_weights, read_checkpoint
from saebench_core.rules import BatchTopK, Gated, JumpReLU, ReLU, TopK
from tests.helpers.training import random_sae

PEERS = Path(__file__).parents[1] / "data" / "peers"
FOLDERS = sorted(path.parent.relative_to(PEERS).as_posix() for path in PEERS.rglob("outputs.safetensors"))
GEMMA = "gemma-scope-2b-pt-res/layer_12"
UNIT = [
    *(name for name in FOLDERS if name.startswith("dictionary_learning")),
    *(
        "saelens_topk_rescaled",
        "saelens_training_topk",
        "saelens_training_batchtopk_scaled",
        "sparsify_normalised/layers.5",
    ),
]


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies a peer's folder to where it can be changed."""

    def make(name):
        shutil.copytree(PEERS / name, tmp_path / name)
        return tmp_path / name

    return make


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def edit_tensors(path, **changes):
    tensors = load_file(path)
    save_file({**tensors, **changes}, path)


@pytest.mark.parametrize("name", FOLDERS)
def test_codes_and_reconstructions_are_the_peers(name):
    outputs = load_file(PEERS / name / "outputs.safetensors")
    sae = read_checkpoint(PEERS / name).sae
    assert 0.5 < float((outputs["z"] > 0).sum(1).float().mean()) < 11
    codes = sae.encode(outputs["x"])
    torch.testing.assert_close(codes.to_dense(), outputs["z"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(outputs["x"]), outputs["x_hat"], atol=1e-5, rtol=1e-5)
    assert all(tensor.dtype == torch.float32 for tensor in sae.tensors.values())
    assert sae.w_enc.stride() == (1, sae.d_in)


@pytest.mark.parametrize("name", UNIT)
def test_decoders_are_of_unit_norm_where_the_format_folds_them(name):
    norms = read_checkpoint(PEERS / name).sae.w_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(16), atol=2e-6, rtol=0)


def facts(name):
    return read_checkpoint(PEERS / name).facts


def test_facts_are_what_the_files_say():
    learnt = {"model": "tiny-model", "layer": 3, "hook": "resid_post_layer_3", "tokens": 40 * 64}
    assert facts("dictionary_learning_topk") == Facts("dictionary_learning", "AutoEncoderTopK", k=3, **learnt)
    assert facts("dictionary_learning_jumprelu").k == 4.0
    assert facts("dictionary_learning_relu").k is None
    assert facts("dictionary_learning_relu_april").notes == ("decoder norms",)
    assert facts("dictionary_learning_mid_run").tokens is None
    lens = {"model": "tiny-model", "hook": "blocks.3.hook_resid_post"}
    assert facts("saelens_topk") == Facts("saelens", "topk", k=3.0, **lens)
    notes = ("scale of activations", "decoder norms")
    trained = Facts("saelens", "batchtopk", k=3.5, tokens=123_456, notes=notes, **lens)
    assert facts("saelens_training_batchtopk_scaled") == trained
    old = {"model": "gpt2-small", "hook": "blocks.3.hook_resid_pre", "tokens": 300_000_000}
    assert facts("saelens_old_topk") == Facts("saelens", "topk", k=3.0, **old)
    scope = {"model": "gemma-2-2b", "layer": 12, "hook": "residual stream after the layer", "k": 71.0}
    assert facts(f"{GEMMA}/width_16k/average_l0_71") == Facts("gemma_scope", "jumprelu", **scope)
    coder = {"model": "tiny-model", "layer": 5, "hook": "layers.5", "k": 3.0}
    assert facts("sparsify_free/layers.5") == Facts("sparsify", "topk", **coder)


@pytest.mark.parametrize(
    ("name", "rule", "centring"),
    [
        ("dictionary_learning_relu", ReLU(), "b_dec"),
        ("dictionary_learning_new", ReLU(), "none"),
        ("dictionary_learning_batch_topk", JumpReLU(), "b_dec"),
        ("dictionary_learning_jumprelu", JumpReLU(), "none"),
        ("dictionary_learning_gated", Gated(), "b_dec"),
        ("saelens_training_gated_scaled", Gated(), "b_dec"),
        ("saelens_no_pre_bias", ReLU(), "none"),
        ("saelens_training_matryoshka", JumpReLU(), "b_dec"),
        ("sparsify_free/layers.5", TopK(3), "b_dec"),
    ],
)
def test_rules_and_centrings(name, rule, centring):
    sae = read_checkpoint(PEERS / name).sae
    assert (sae.rule, sae.centring) == (rule, centring)


def test_a_checkpoint_of_a_run_is_read_with_the_configuration_above_it():
    path = PEERS / "dictionary_learning_topk" / "checkpoints" / "ae_20.pt"
    found = read_checkpoint(path)
    assert (found.facts.tokens, found.facts.architecture) == (20 * 64, "AutoEncoderTopK")
    final = read_checkpoint(PEERS / "dictionary_learning_topk").sae
    assert found.sae.rule == final.rule and not torch.equal(found.sae.w_enc, final.w_enc)


@pytest.mark.parametrize(
    "rule", [ReLU(), TopK(4), BatchTopK(4.0), JumpReLU(start=0.1), Gated()], ids=lambda rule: type(rule).__name__
)
def test_what_we_wrote_is_read(rule, tmp_path):
    sae = random_sae(rule)
    training = {"batch_size": 32, "steps": 10}
    sae.save(tmp_path, {"model_name": "m", "hook_name": "h", "l0": 4.0, "saebench": {"cell": {"training": training}}})
    found = read_checkpoint(tmp_path)
    x = torch.randn(20, sae.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.sae.reconstruct(x), sae.reconstruct(x))
    assert (found.facts.tokens, found.facts.k, found.facts.hook) == (320, 4.0, "h")


def test_a_rule_that_the_format_does_not_know_can_be_given(tmp_path):
    random_sae(TopK(4)).save(tmp_path, {})
    edit(tmp_path / "cfg.json", architecture="stranger")
    with pytest.raises(InputError, match="stranger"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path, rule_of=lambda config: TopK(2)).sae.rule == TopK(2)


def test_jumprelu_checkpoints_before_6_18_hold_logarithms(copy):
    place = copy("saelens_training_jumprelu")
    weights = place / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(
        {**{k: v for k, v in tensors.items() if k != "threshold"}, "log_threshold": tensors["threshold"].log()}, weights
    )
    found = read_checkpoint(place).sae.tensors["threshold"]
    torch.testing.assert_close(found, tensors["threshold"])


def test_the_factor_of_fine_tuning_goes_into_the_decoder(copy):
    place = copy("saelens_old_standard")
    factor = torch.linspace(0.5, 2.0, 16)
    outputs = load_file(place / "outputs.safetensors")
    edit_tensors(place / "sae_weights.safetensors", finetuning_scaling_factor=factor)
    with pytest.raises(InputError, match="scaling factor"):
        read_checkpoint(place)
    edit(place / "cfg.json", finetuning_scaling_factor=True)
    sae = read_checkpoint(place).sae
    torch.testing.assert_close(sae.encode(outputs["x"]).to_dense(), outputs["z"], atol=1e-5, rtol=1e-5)
    wanted = (outputs["z"] * factor) @ load_file(place / "sae_weights.safetensors")["W_dec"] + sae.tensors["b_dec"]
    torch.testing.assert_close(sae.reconstruct(outputs["x"]), wanted, atol=1e-4, rtol=1e-5)


def test_embeddings_of_gemma_scope_are_scaled(tmp_path):
    source = PEERS / GEMMA / "width_16k" / "average_l0_71"
    place = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    shutil.copytree(source, place)
    plain, scaled = read_checkpoint(source).sae, read_checkpoint(place).sae
    torch.testing.assert_close(scaled.w_enc * 8**0.5, plain.w_enc)
    torch.testing.assert_close(scaled.w_dec, plain.w_dec * 8**0.5)


def test_half_precision_is_read_as_fp32(copy):
    place = copy("sparsify_free/layers.5")
    tensors = load_file(place / "sae.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, place / "sae.safetensors")
    sae = read_checkpoint(place).sae
    assert torch.equal(sae.w_dec, tensors["W_dec"].bfloat16().float())


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_ever_unpickled(copy, tmp_path):
    trap = Trap(tmp_path / "sprung")
    place = copy("dictionary_learning_relu")
    torch.save({"encoder.weight": trap}, place / "ae.pt")
    with pytest.raises(InputError, match="not unpickled"):
        read_checkpoint(place)
    (place / "ae.pt").write_bytes(pickle.dumps({"ae": trap}, protocol=2))
    with pytest.raises(InputError, match="not unpickled"):
        read_checkpoint(place)
    np.savez(tmp_path / "params.npz", W_enc=np.array([trap], dtype=object))
    with pytest.raises(InputError, match="not unpickled"):
        read_checkpoint(tmp_path / "params.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_told(name, tmp_path):
    for content in (b"", b"damaged" * 50):
        (tmp_path / FORMATS[name]).write_bytes(content)
        for config in ("cfg.json", "config.json"):
            (tmp_path / config).write_text('{"trainer": {"dict_class": "AutoEncoder"}, "k": 2}')
        with pytest.raises(InputError, match="cannot be read"):
            read_checkpoint(tmp_path)


REFUSED = [
    ("dictionary_learning_relu", "config.json", {"trainer": {"dict_class": "CrossCoder"}}, "known: AutoEncoder"),
    ("dictionary_learning_relu", "config.json", {"trainer": {"dict_class": "AutoEncoderTopk"}}, "did you mean"),
    ("dictionary_learning_relu", "config.json", {"trainer": {}}, "trainer.dict_class"),
    (
        "dictionary_learning_relu",
        "config.json",
        {"trainer": {"dict_class": "AutoEncoderNew"}},
        "no tensor 'decoder.bias'",
    ),
    (
        "dictionary_learning_topk",
        "config.json",
        {"trainer": {"dict_class": "AutoEncoderTopK", "k": 7}},
        "k is 3 .* and 7",
    ),
    ("saelens_standard", "cfg.json", {"architecture": "temporal"}, "standard, topk"),
    ("saelens_standard", "cfg.json", {"normalize_activations": "layer_norm"}, "layer_norm.*fold it"),
    ("saelens_standard", "cfg.json", {"normalize_activations": True}, "expected_average_only_in.*fold it"),
    ("saelens_standard", "cfg.json", {"activation_fn": "tanh-relu"}, "tanh-relu.*allowed: relu, topk"),
    ("saelens_standard", "cfg.json", {"architecture": "jumprelu"}, "threshold"),
    ("sparsify_free/layers.5", "cfg.json", {"activation": "groupmax"}, "groupmax.*allowed: topk"),
    ("sparsify_free/layers.5", "cfg.json", {"transcode": True}, "transcoder"),
    ("sparsify_free/layers.5", "cfg.json", {"skip_connection": True}, "skip connection"),
    (
        "sparsify_free/layers.5",
        "cfg.json",
        {"num_latents": 8},
        "16 latents, but 8 and 8|d_in 8 and 16 latents, but 8 and 8",
    ),
    ("sparsify_free/layers.5", "cfg.json", {"k": None}, "key k"),
]


@pytest.mark.parametrize(("name", "file", "changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(name, file, changes, message, copy):
    place = copy(name)
    edit(place / file, **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_checkpoint(place)
    assert str(place) in str(caught.value)


def test_thresholds_that_were_never_set_are_refused(copy):
    place = copy("dictionary_learning_batch_topk")
    state = torch.load(place / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, place / "ae.pt")
    with pytest.raises(InputError, match="threshold was never set"):
        read_checkpoint(place)


def test_numbers_that_are_not_finite_are_refused(copy):
    place = copy("saelens_standard")
    edit_tensors(place / "sae_weights.safetensors", b_enc=torch.full((16,), float("nan")))
    with pytest.raises(InputError, match="not every number is finite in b_enc"):
        read_checkpoint(place)


def test_transcoders_and_factors_of_gemma_scope_are_refused(tmp_path):
    source = PEERS / GEMMA / "width_65k" / "average_l0_71"
    shutil.copytree(source, tmp_path / "gemma-scope-2b-pt-transcoders")
    with pytest.raises(InputError, match="transcoder"):
        read_checkpoint(tmp_path / "gemma-scope-2b-pt-transcoders")
    arrays = dict(np.load(source / "params.npz"))
    for changes, message in (
        ({"scaling_factor": np.full(16, 2.0)}, "scaling_factor"),
        ({"b_enc": None}, "no array b_enc"),
    ):
        kept = {name: array for name, array in (arrays | changes).items() if array is not None}
        np.savez(tmp_path / "params.npz", **kept)
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / "params.npz")


def test_the_format_is_told_by_the_files(tmp_path):
    for name, file in FORMATS.items():
        place = tmp_path / name
        place.mkdir()
        (place / file).touch()
        assert find_weights(place) == find_weights(place, name) == find_weights(place / file) == (name, place / file)
    with pytest.raises(InputError, match=r"no SAE here: .*params.npz \(gemma_scope\).*there are: dictionary_learning/"):
        find_weights(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_weights(tmp_path / "missing")
    (tmp_path / "saelens" / "params.npz").touch()
    with pytest.raises(InputError, match=r"several formats \(saelens, gemma_scope\)"):
        find_weights(tmp_path / "saelens")
    assert find_weights(tmp_path / "saelens", "gemma_scope")[0] == "gemma_scope"
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match="the name tells no format"):
        find_weights(tmp_path / "weights.bin")
    with pytest.raises(InputError, match=r"did you mean 'saelens'.*allowed: auto, saelens"):
        find_weights(tmp_path, "sae_lens")
