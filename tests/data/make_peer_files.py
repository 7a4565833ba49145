"""Writes the checkpoints of `tests/data/peers` with the peers' own code, and beside each what they make of a batch.

Run it in an environment of its own, with `sae-lens`, `dictionary-learning` and `eai-sparsify` installed:

    python tests/data/make_peer_files.py

Every folder has the peer's files and `outputs.safetensors` with `x`, `z` and `x_hat`. What no peer can write any more
(SAELens before version 6) or has no writer in the open (Gemma Scope) is written here by the description of the format;
its outputs still come from a peer's class.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers import (
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    PAnnealTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

D_IN, D_SAE, K, STEPS, BATCH = 8, 16, 3, 40, 64
PEERS = Path(__file__).parent / "peers"
META = {"model_name": "tiny-model", "hook_name": "blocks.3.hook_resid_post", "context_size": 32}


def batch(seed, rows=32):
    """Activations with an offset and a scale far from one."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(7))
    return 3 * torch.randn(rows, D_IN, generator=generator) @ mixing + torch.arange(D_IN) / 2


X = batch(0)


def keep(folder, z, x_hat):
    tensors = {"x": X, "z": z.float(), "x_hat": x_hat.float()}
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "outputs.safetensors")


class Data(list):
    """Batches with the configuration of dictionary_learning's buffer."""

    @property
    def config(self):
        return {"d_submodule": D_IN, "ctx_len": 32, "out_batch_size": BATCH, "device": "cpu"}


def dictionary_learning():
    common = {"activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": "tiny-model", "device": "cpu"}
    common |= {"steps": STEPS, "warmup_steps": 2, "lr": 1e-2, "seed": 0, "submodule_name": "resid_post_layer_3"}
    topk = {"k": K, "threshold_start_step": 5, "threshold_beta": 0.5, "decay_start": 30}
    sparsity = {"sparsity_warmup_steps": 2}
    trainers = {
        "relu": {"trainer": StandardTrainer, **sparsity},
        "relu_april": {"trainer": StandardTrainerAprilUpdate, **sparsity},
        "p_anneal": {"trainer": PAnnealTrainer, **sparsity, "anneal_start": 10, "n_sparsity_updates": 5, "p_end": 0.5},
        "topk": {"trainer": TopKTrainer, **topk},
        "batch_topk": {"trainer": BatchTopKTrainer, **topk},
        "matryoshka": {"trainer": MatryoshkaBatchTopKTrainer, **topk, "group_fractions": [0.25, 0.25, 0.5]},
        "jumprelu": {"trainer": JumpReluTrainer, **sparsity, "target_l0": 4.0, "bandwidth": 0.1},
        "gated": {"trainer": GatedSAETrainer, **sparsity},
    }
    data = Data(batch(seed, BATCH) for seed in range(1, STEPS + 2))
    for name, config in trainers.items():
        place = PEERS / f"dictionary_learning_{name}"
        with tempfile.TemporaryDirectory() as folder:
            saved = [20] if name == "topk" else None
            trainSAE(
                data, [common | config], STEPS, save_dir=folder, save_steps=saved, normalize_activations=True,
                device="cpu",
            )  # fmt: skip
            shutil.copytree(Path(folder) / "trainer_0", place)
        ae, _ = load_dictionary(str(place), "cpu")
        keep(place, ae.encode(X), ae.decode(ae.encode(X)))
    _dictionary_learning_new()


def _dictionary_learning_new():
    """The class that no trainer of this version uses, as older runs saved it; one of them in the middle of its run."""
    torch.manual_seed(1)
    ae = AutoEncoderNew(D_IN, D_SAE)
    ae.encoder.bias.data.normal_()
    ae.decoder.bias.data.normal_()
    ae.decoder.weight.data *= 1 + 3 * torch.rand(D_SAE)
    x_hat, z = ae(X, output_features=True)
    for name, content in (
        ("new", ae.state_dict()),
        ("mid_run", {"step": 12, "ae": ae.state_dict(), "norm_factor": 1.5}),
    ):
        place = PEERS / f"dictionary_learning_{name}"
        place.mkdir()
        torch.save(content, place / "ae.pt")
        trainer = {"dict_class": "AutoEncoderNew", "trainer_class": "StandardTrainerNew", "lm_name": "tiny-model"}
        (place / "config.json").write_text(json.dumps({"trainer": trainer | {"layer": 3}}))
        keep(place, z, x_hat)


def filled(sae, seed=2):
    """Random tensors, with decoder norms that are not one and thresholds that matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            tensor.normal_()
            if "threshold" in name:
                tensor.abs_()
        sae.W_dec *= 1 + torch.rand(D_SAE, 1)
    return sae


def shared(sae, place):
    """What SAELens makes of an SAE when it is saved to be shared and loaded again."""
    sae.save_inference_model(place)
    return SAE.load_from_disk(place)


def saelens_sae(architecture, training, **settings):
    found, config = (get_sae_training_class if training else get_sae_class)(architecture)
    metadata = SAEMetadata(**META)
    return filled(found(config(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **settings)))


def saelens():
    inference = {
        "standard": ("standard", {}),
        "no_pre_bias": ("standard", {"apply_b_dec_to_input": False}),
        "topk": ("topk", {"k": K}),
        "topk_rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("jumprelu", {}),
        "gated": ("gated", {}),
    }
    for name, (architecture, settings) in inference.items():
        sae = saelens_sae(architecture, False, **settings)
        place = PEERS / f"saelens_{name}"
        sae.save_model(place)
        keep(place, sae.encode(X), sae(X))
    training = {
        "standard": ("standard", {}),
        "jumprelu": ("jumprelu", {}),
        "gated": ("gated", {}),
        "topk": ("topk", {"k": K}),
        "batchtopk": ("batchtopk", {"k": 3.5}),
        "batchtopk_free": ("batchtopk", {"k": 3.5, "rescale_acts_by_decoder_norm": False}),
        "matryoshka": ("matryoshka_batchtopk", {"k": 3.5, "matryoshka_widths": [4, 8, D_SAE]}),
    }
    for name, (architecture, settings) in training.items():
        for scaling in (None, 0.25):
            _saelens_training(name, architecture, settings, scaling)
    _saelens_old()


def _saelens_training(name, architecture, settings, scaling):
    place = PEERS / f"saelens_training_{name}{'_scaled' if scaling else ''}"
    normalise = {"normalize_activations": "expected_average_only_in"} if scaling else {}
    sae = saelens_sae(architecture, True, **settings, **normalise)
    if "batchtopk" in architecture:
        sae.topk_threshold.fill_(2.5)
    sae.save_model(place)
    (place / "runner_cfg.json").write_text(json.dumps({"training_tokens": 123_456}))
    if scaling:
        scaler = ActivationScaler()
        scaler.scaling_factor = scaling
        scaler.save(str(place / "activation_scaler.json"))
        sae.fold_activation_norm_scaling_factor(scaling)
    with tempfile.TemporaryDirectory() as folder:
        loaded = shared(sae, folder)
    keep(place, loaded.encode(X), loaded(X))


def _saelens_old():
    """Configurations as versions 2 to 5 wrote them; read, as all else, by SAELens."""
    flat = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small"}
    flat |= {"hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3, "activation_fn_str": "relu"}
    flat |= {"normalize_activations": "none", "training_tokens": 300_000_000, "finetuning_scaling_factor": False}
    old = {
        "standard": ("standard", {k: v for k, v in flat.items() if k != "finetuning_scaling_factor"}),
        "topk": ("topk", flat | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
        "jumprelu": ("jumprelu", flat | {"architecture": "jumprelu", "sae_lens_training_version": "3.12.0"}),
    }
    for name, (architecture, config) in old.items():
        place = PEERS / f"saelens_old_{name}"
        saelens_sae(architecture, False, **({"k": K} if architecture == "topk" else {})).save_model(place)
        (place / "cfg.json").write_text(json.dumps(config))
        sae = SAE.load_from_disk(place)
        keep(place, sae.encode(X), sae(X))


def gemma_scope():
    for name, lower in (("width_16k", False), ("width_65k", True)):
        place = PEERS / "gemma-scope-2b-pt-res" / "layer_12" / name / "average_l0_71"
        place.mkdir(parents=True)
        sae = saelens_sae("jumprelu", False, apply_b_dec_to_input=False)
        arrays = {key: tensor.detach().numpy() for key, tensor in sae.named_parameters()}
        if lower:
            arrays = {key.lower() if key.startswith("W_") else key: array for key, array in arrays.items()}
            arrays["scaling_factor"] = np.ones(D_SAE, np.float32)
        np.savez(place / "params.npz", **arrays)
        keep(place, sae.encode(X), sae(X))


def sparsify():
    for name, settings in (("normalised", {}), ("free", {"normalize_decoder": False, "num_latents": D_SAE})):
        torch.manual_seed(3)
        coder = SparseCoder(D_IN, SparseCoderConfig(k=K, expansion_factor=D_SAE // D_IN, **settings))
        with torch.no_grad():
            coder.W_dec += 0.3 * torch.randn(D_SAE, D_IN)
            if not settings:
                coder.set_decoder_norm_to_unit_norm()
            coder.encoder.bias.normal_()
            coder.b_dec.normal_()
        run = PEERS / f"sparsify_{name}"
        coder.save_to_disk(run / "layers.5")
        (run / "config.json").write_text(json.dumps({"model": "tiny-model"}))
        loaded = SparseCoder.load_from_disk(run / "layers.5")
        top, indices, _ = loaded.encode(X)
        keep(run / "layers.5", torch.zeros(len(X), D_SAE).scatter(1, indices, top), loaded.decode(top, indices))


def main():
    torch.set_num_threads(1)
    shutil.rmtree(PEERS, ignore_errors=True)
    PEERS.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        dictionary_learning()
        saelens()
        gemma_scope()
        sparsify()


if __name__ == "__main__":
    main()
