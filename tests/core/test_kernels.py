"""Sparse products against dense ones: outputs and gradients."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from saebench_core.kernels import Codes, Selected, Selection, decode, encode_at, from_mask, products
from tests.helpers.training import generator, normal

PATHS = {"sparse": 2.0, "dense": -1.0}
sizes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 40))


@contextmanager
def on_path(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "DENSE_SHARE", PATHS[name])
        yield


def draw_selection(rows, d_sae, density, seed):
    return from_mask(torch.rand(rows, d_sae, generator=generator(seed)) < density)


def selected(x, centre, weight, bias, selection):
    """The entries with their pre-activations from a dense product."""
    return Selected(selection, ((x - centre) @ weight + bias).detach()[selection.rows, selection.cols])


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs().max() if wanted.numel() else torch.tensor(0.0)
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    assert error <= 1e-5 * scale


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(0, 10**6))
def test_encode_at_equals_a_dense_product(path, size, density, seed):
    rows, d_in, d_sae = size
    x = normal(rows, d_in, seed=seed)
    selection = draw_selection(rows, d_sae, density, seed)
    upstream = normal(selection.cols.numel(), seed=seed + 1)
    inputs = [normal(d_in, seed=seed + 2), normal(d_in, d_sae, seed=seed + 3), normal(d_sae, seed=seed + 4)]

    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    with on_path(path):
        found = encode_at(x, *ours, selected(x, *inputs, selection))
        found.backward(upstream)

    dense = [tensor.double().requires_grad_() for tensor in inputs]
    wanted = ((x.double() - dense[0]) @ dense[1] + dense[2])[selection.rows, selection.cols]
    wanted.backward(upstream.double())
    assert_close(found.detach(), wanted.detach())
    for mine, other in zip(ours, dense, strict=True):
        assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(0, 10**6))
def test_decode_equals_a_dense_product(path, size, density, seed):
    rows, d_in, d_sae = size
    selection = draw_selection(rows, d_sae, density, seed)
    inputs = [normal(selection.cols.numel(), seed=seed + 1), normal(d_sae, d_in, seed=seed + 2)]
    upstream = normal(rows, d_in, seed=seed + 3)

    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    with on_path(path):
        found = decode(*ours, selection)
        found.backward(upstream)

    dense = [tensor.double().requires_grad_() for tensor in inputs]
    codes = torch.zeros(rows, d_sae, dtype=torch.float64).index_put((selection.rows, selection.cols), dense[0])
    wanted = codes @ dense[1]
    wanted.backward(upstream.double())
    assert_close(found.detach(), wanted.detach())
    for mine, other in zip(ours, dense, strict=True):
        assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("path", PATHS)
def test_the_order_of_entries_within_a_row_is_free(path):
    sorted_one = draw_selection(20, 30, 0.3, 0)
    order = torch.argsort(sorted_one.rows + torch.rand(sorted_one.rows.numel(), generator=generator(1)))
    other = Selection(sorted_one.rows[order], sorted_one.cols[order], 20, 30)
    assert not torch.equal(other.cols, sorted_one.cols)
    x, bias, upstream = normal(20, 5), normal(30, seed=1), normal(20, 5, seed=2)
    results = []
    for selection in (sorted_one, other):
        weight, decoder = normal(5, 30, seed=3).requires_grad_(), normal(30, 5, seed=4).requires_grad_()
        with on_path(path):
            at = selected(x, torch.zeros(5), weight, bias, selection)
            values = encode_at(x, torch.zeros(5), weight, bias, at)
            out = decode(values, decoder, selection)
            out.backward(upstream)
        results.append((out.detach(), weight.grad, decoder.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_by_finite_differences(path):
    selection = draw_selection(5, 11, 0.3, 0)
    x = normal(5, 4, dtype=torch.float64)
    shapes = ((4,), (4, 11), (11,))
    centre, weight, bias = (normal(*s, seed=n, dtype=torch.float64).requires_grad_() for n, s in enumerate(shapes, 1))

    def encode(centre, weight, bias):
        return encode_at(x, centre, weight, bias, selected(x, centre, weight, bias, selection))

    values = normal(selection.cols.numel(), dtype=torch.float64).requires_grad_()
    decoder = normal(11, 4, dtype=torch.float64).requires_grad_()
    with on_path(path):
        assert torch.autograd.gradcheck(encode, (centre, weight, bias))
        assert torch.autograd.gradcheck(lambda v, w: decode(v, w, selection), (values, decoder))


@pytest.mark.parametrize("path", PATHS)
def test_tensors_that_want_no_gradient_get_none(path):
    selection = draw_selection(5, 11, 0.3, 0)
    x, centre, weight = normal(5, 4), normal(4, seed=1), normal(4, 11, seed=2)
    bias = normal(11, seed=3).requires_grad_()
    with on_path(path):
        found = encode_at(x, centre, weight, bias, selected(x, centre, weight, bias, selection))
        decode(found, normal(11, 4, seed=4), selection).sum().backward()
    assert weight.grad is None
    assert centre.grad is None
    assert bias.grad.abs().sum() > 0


def test_devices_without_sparse_products_gather_in_parts(monkeypatch):
    selection = draw_selection(40, 50, 0.5, 0)
    values, weight = normal(selection.cols.numel()).requires_grad_(), normal(50, 6, seed=1)
    with on_path("sparse"):
        decode(values, weight, selection).square().sum().backward()
        whole, values.grad = values.grad, None
        monkeypatch.setattr(products, "_SPARSE_DEVICES", frozenset())
        monkeypatch.setattr(products, "_GATHER_ELEMENTS", 17 * 6)
        decode(values, weight, selection).square().sum().backward()
    torch.testing.assert_close(values.grad, whole)


def test_both_paths_are_taken_by_density(monkeypatch):
    taken = []
    scatter = Selection.scatter
    monkeypatch.setattr(Selection, "scatter", lambda self, values: taken.append(self.density) or scatter(self, values))
    thin, thick = draw_selection(50, 100, 0.02, 0), draw_selection(50, 100, 0.5, 0)
    for selection in (thin, thick):
        decode(normal(selection.cols.numel()), normal(100, 3), selection)
    assert taken == [thick.density]


@pytest.mark.parametrize("path", PATHS)
def test_repeated_calls_are_bit_equal(path):
    selection = draw_selection(200, 300, 0.1, 0)
    x, centre = normal(200, 16), normal(16, seed=1)
    results = []
    for _ in range(2):
        leaves = [normal(16, 300, seed=2), normal(300, seed=3), normal(300, 16, seed=4)]
        weight, bias, decoder = (tensor.requires_grad_() for tensor in leaves)
        with on_path(path):
            at = selected(x, centre, weight, bias, selection)
            out = decode(torch.relu(encode_at(x, centre, weight, bias, at)), decoder, selection)
            out.square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in (weight, bias, decoder))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([0.0, 0.1, 0.6]), st.integers(0, 10**6))
def test_selection_views_agree_with_the_mask(size, density, seed):
    rows, _, d_sae = size
    selection = draw_selection(rows, d_sae, density, seed)
    values = normal(selection.cols.numel(), seed=seed)
    codes = Codes(selection, values)
    dense = codes.to_dense()
    assert torch.equal(dense != 0, from_mask(dense != 0).scatter(torch.ones(int((dense != 0).sum()))) > 0)
    assert torch.equal(codes.l0(), (dense != 0).sum(1).float())
    assert torch.equal(selection.fired(values), (dense > 0).any(0))
    assert selection.density == selection.cols.numel() / (rows * d_sae)
    order, bounds = selection.by_latent
    assert bounds.tolist() == [0, *torch.bincount(selection.cols, minlength=d_sae).cumsum(0).tolist()]
    assert torch.equal(selection.cols[order], selection.cols.sort().values)
    starts = [int((selection.rows < row).sum()) for row in range(rows)]
    assert selection.offsets.tolist() == starts


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([0.0, 0.1, 0.6]), st.integers(0, 10**6))
def test_a_part_of_a_selection_keeps_its_order(size, density, seed):
    rows, _, d_sae = size
    whole = draw_selection(rows, d_sae, density, seed)
    kept = torch.rand(whole.cols.numel(), generator=generator(seed + 1)) < 0.5
    pre = normal(whole.cols.numel(), seed=seed)
    part, values = Selected(whole, pre).where(kept)
    assert part.rows.tolist() == [row for row, keep in zip(whole.rows.tolist(), kept.tolist(), strict=True) if keep]
    assert part.cols.tolist() == [col for col, keep in zip(whole.cols.tolist(), kept.tolist(), strict=True) if keep]
    assert torch.equal(values, pre[kept])


def test_shapes_are_enforced_in_tests():
    selection = draw_selection(3, 5, 1.0, 0)
    with pytest.raises(TypeCheckError):
        decode(normal(14), normal(5), selection)
