"""One training step of SAELens and dictionary_learning, timed by their own trainers.

Runs in an environment of its own: pip install torch torchvision sae-lens dictionary-learning. Reads cases as JSON
lines from standard input, ``{"architecture", "d_in", "d_sae", "batch", "k", "dead", "steps"}``, and answers each with
a line ``{"saelens_ms", "dictionary_learning_ms"}``: the fastest of some steps, after warm-up. ``dead`` latents never
fire, and both libraries' loss for dead latents is at work on them (topk and batch_topk).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings

import torch

warnings.filterwarnings("ignore")
WARM_UP = 2
LONG_AGO = 10**12


def batches(d_in, rows, count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(rows, d_in, generator=generator), dim=1) for _ in range(count)]


def at_target(weight, bias, data, k, threshold=None):
    """Set a bias (or thresholds) so that k latents a row fire, as after a training."""
    with torch.no_grad():
        least = (data[0] @ weight).flatten().topk(k * data[0].shape[0]).values.min()
        (bias if threshold is None else threshold).fill_(-float(least) if threshold is None else float(least))


def silence(weight, dead):
    with torch.no_grad():
        weight[:, :dead] *= 1e-3


def fastest(step, count):
    times = []
    for number in range(WARM_UP + count):
        start = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - start)
    return min(times[WARM_UP:]) * 1e3


def saelens(case):
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sizes = {"d_in": case["d_in"], "d_sae": case["d_sae"]}
    names = {"topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "Standard"}
    name = names[case["architecture"]]
    keys = {"k": case["k"]} if "topk" in case["architecture"] else {}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(**sizes, **keys)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    data = batches(case["d_in"], case["batch"])
    if case["architecture"] == "relu":
        at_target(sae.W_enc, sae.b_enc, data, case["k"])
    elif case["architecture"] == "jumprelu":
        at_target(sae.W_enc, None, data, case["k"], sae.threshold if hasattr(sae, "threshold") else sae.log_threshold)
    settings = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=10**9, device="cpu",
        autocast=False, lr=1e-4, lr_end=1e-4, lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9,
        adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=case["batch"],
        dead_feature_window=1000, feature_sampling_window=2000, n_batches_for_norm_estimate=10,
        logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
    )  # fmt: skip
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter([]), save_checkpoint_fn=lambda **_: None)
    if case["dead"]:
        silence(sae.W_enc, case["dead"])
    silent = trainer.n_forward_passes_since_fired

    def step(number):
        if case["dead"]:
            silent[: case["dead"]] = LONG_AGO
        trainer._train_step(sae=sae, sae_in=data[number % len(data)])

    return fastest(step, case["steps"])


def dictionary_learning(case):
    from dictionary_learning.trainers import batch_top_k, jumprelu, standard, top_k

    common = {"steps": 10**6, "activation_dim": case["d_in"], "dict_size": case["d_sae"], "layer": 0, "lm_name": "none",
              "device": "cpu", "warmup_steps": 10}  # fmt: skip
    trainer = {
        "topk": lambda: top_k.TopKTrainer(k=case["k"], **common),
        "batch_topk": lambda: batch_top_k.BatchTopKTrainer(k=case["k"], **common),
        "jumprelu": lambda: jumprelu.JumpReluTrainer(sparsity_warmup_steps=10, target_l0=case["k"], **common),
        "relu": lambda: standard.StandardTrainer(sparsity_warmup_steps=10, **common),
    }[case["architecture"]]()
    data = batches(case["d_in"], case["batch"])
    if case["architecture"] == "relu":
        at_target(trainer.ae.encoder.weight.T, trainer.ae.encoder.bias, data, case["k"])
    elif case["architecture"] == "jumprelu":
        at_target(trainer.ae.W_enc, None, data, case["k"], trainer.ae.threshold)
    if case["dead"]:
        silence(trainer.ae.encoder.weight.T, case["dead"])

    def step(number):
        if case["dead"]:
            trainer.num_tokens_since_fired[: case["dead"]] = LONG_AGO
        trainer.update(number, data[number % len(data)])

    return fastest(step, case["steps"])


def main():
    for line in sys.stdin:
        case, found = json.loads(line), {}
        for library in (saelens, dictionary_learning):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found[f"{library.__name__}_ms"] = round(library(case), 2)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
