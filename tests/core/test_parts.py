"""Batches that are cut while a large share is selected: the same gradients, and nothing dense of the whole batch."""

from __future__ import annotations

import pytest
import torch

from saebench_core.training import trainee as module
from tests.helpers.training import BATCH, D_SAE, activations, make_trainee, settings

X = activations()
FORMS = {
    "relu": ("relu", {}),
    "relu april": ("relu", {"form": "april_2024"}),
    "jumprelu": ("jumprelu", {"bandwidth": 0.1}),
    "jumprelu step": ("jumprelu", {"loss": "step_l0", "bandwidth": 0.1}),
    "jumprelu tanh": ("jumprelu", {"loss": "tanh"}),
    "gated": ("gated", {}),
    "p_anneal": ("p_anneal", {}),
}


def gradients(form, part_entries, monkeypatch, steps=3):
    """Gradients of one batch, and all tensors after some steps."""
    monkeypatch.setattr(module, "_PART_ENTRIES", part_entries)
    name, given = FORMS[form]
    one = make_trainee(name, "trained", X, 0, settings(40, sparsity_warmup_steps=0), on_architecture=given)
    one._dense.now = True
    tally = one._accumulate(X[:BATCH], 5)
    found = {key: tensor.grad.clone() for key, tensor in one._trained.items()}
    for number in range(steps):
        one._dense.now = True
        one.step(X[number * BATCH :][:BATCH], number)
    return found, tally, one


@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_parts_add_up_to_those_of_the_batch(form, rows, monkeypatch):
    whole, tally, first = gradients(form, 1 << 30, monkeypatch)
    cut, in_parts, second = gradients(form, rows * D_SAE, monkeypatch)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-6)
    assert (in_parts.rows, in_parts.active, in_parts.entries) == (tally.rows, tally.active, tally.entries)
    assert in_parts.loss == pytest.approx(tally.loss, rel=1e-5)
    assert in_parts.error == pytest.approx(tally.error, rel=1e-5)
    assert torch.equal(in_parts.fired, tally.fired)
    for name, tensor in first.sae.tensors.items():
        torch.testing.assert_close(second.sae.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    assert second.report.l0 == first.report.l0
    assert second.heldout_variance(X) == pytest.approx(first.heldout_variance(X), abs=1e-4)


@pytest.mark.parametrize("form", ["batch_topk", "matryoshka", "ortsae", "topk"])
def test_what_looks_at_the_whole_batch_is_not_cut(form, monkeypatch):
    monkeypatch.setattr(module, "_PART_ENTRIES", D_SAE)
    one = make_trainee(form, "trained", X)
    one._dense.now = True
    assert len(one._parts(X[:BATCH])) == 1


def test_a_sparse_step_is_not_cut(monkeypatch):
    monkeypatch.setattr(module, "_PART_ENTRIES", D_SAE)
    one = make_trainee("relu", "trained", X)
    one._dense.now = False
    assert len(one._parts(X[:BATCH])) == 1
    one._dense.now = True
    assert len(one._parts(X[:BATCH])) == BATCH


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_first_step_holds_nothing_dense_of_the_batch(architecture, monkeypatch):
    rows, d_sae = 2048, 768
    monkeypatch.setattr(module, "_PART_ENTRIES", 64 * d_sae)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
            largest.extend(t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided)
            return out

    one = make_trainee(architecture, "trained", activations(rows), 0, settings(10), d_sae=d_sae)
    one._dense.now = True
    with Watch():
        one.step(activations(rows), 0)
    assert one._dense.now, "half of all entries were selected"
    assert max(largest) < rows * d_sae * 4 / 8
