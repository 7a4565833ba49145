"""Selection through a screen against the whole matrix: the same entries, whatever format screened."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from saebench_core.kernels import DenseSwitch, PreActivations, candidates, fast_screen, screening
from tests.helpers.training import given_pre, normal

sizes = st.tuples(st.integers(1, 12), st.integers(1, 40))
WAYS = {"dense": {"dense": True}, "bf16": {"screen": "bf16"}, "fp32": {"screen": "fp32"}}
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def sparse(monkeypatch):
    """Small sizes take the way that large ones take."""
    monkeypatch.setattr(screening, "DENSE_SHARE", 2.0)


def matrix(rows, d_sae, kind, seed=0):
    pre = normal(rows, d_sae, seed=seed)
    changes = {
        "normal": lambda: pre,
        "tied": lambda: (pre * 4).round() / 4,
        "negative": lambda: -pre.abs(),
        "few positive": lambda: pre - 2,
        "all equal": lambda: torch.ones_like(pre),
        "close": lambda: 1 + pre * 1e-4,  # far closer together than bf16 can tell
        "first rows small": lambda: pre.abs() * torch.linspace(1e-3, 10, rows)[:, None],
        "one row large": lambda: pre * torch.where(torch.arange(rows) == rows // 2, 1e3, 1.0)[:, None],
        "zero rows": lambda: pre * (torch.arange(rows) % 2)[:, None],
    }
    return changes[kind]()


KINDS = ["normal", "tied", "negative", "few positive", "all equal", "close", "first rows small", "one row large",
         "zero rows"]  # fmt: skip


def kept_mask(selected):
    assert bool((selected.selection.rows.diff() >= 0).all())
    return selected.selection.scatter(torch.ones_like(selected.pre)) > 0


def check_values(selected, pre):
    assert torch.equal(selected.pre, pre[selected.selection.rows, selected.selection.cols])


def wanted_batch_topk(pre, count):
    positive = pre[pre > 0].sort(descending=True).values
    return pre > 0 if positive.numel() <= count else pre >= positive[count - 1]


@ways
@pytest.mark.usefixtures("sparse")
@settings(deadline=None, max_examples=80)
@given(sizes, st.integers(1, 60), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_batch_topk_equals_an_exact_sort(way, size, count, kind, seed):
    pre = matrix(*size, kind, seed)
    found = given_pre(pre, **WAYS[way]).batch_topk(count)
    assert torch.equal(kept_mask(found), wanted_batch_topk(pre, count))
    check_values(found, pre)


@ways
@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("count", [1, 300, 5_000, 60_000, 150_000, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_topk_of_large_batches_equals_an_exact_sort(way, count, kind):
    pre = matrix(300, 512, kind)  # the first guess comes from every second row
    assert torch.equal(kept_mask(given_pre(pre, **WAYS[way]).batch_topk(count)), wanted_batch_topk(pre, count))


@ways
def test_batch_topk_of_nothing_keeps_nothing(way):
    assert given_pre(normal(3, 5), **WAYS[way]).batch_topk(0).pre.numel() == 0


@ways
@pytest.mark.usefixtures("sparse")
@settings(deadline=None, max_examples=80)
@given(sizes, st.integers(1, 10), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_row_topk_keeps_the_largest_of_each_row(way, size, k, kind, seed):
    assume(k <= size[1])
    pre = matrix(*size, kind, seed)
    found = given_pre(pre, **WAYS[way]).row_topk(k)
    mask = kept_mask(found)
    assert mask.sum(1).tolist() == [k] * size[0]
    lowest_kept = torch.where(mask, pre, torch.inf).min(1).values
    highest_left = torch.where(mask, -torch.inf, pre).max(1).values
    assert bool((lowest_kept >= highest_left).all())
    check_values(found, pre)


@ways
@settings(deadline=None, max_examples=80)
@given(sizes, st.sampled_from(KINDS), st.sampled_from(["zero", "scalar", "each"]), st.integers(0, 10**6))
def test_above_is_strict_for_one_threshold_and_for_one_a_latent(way, size, kind, form, seed):
    pre = matrix(*size, kind, seed)
    threshold = {"zero": 0.0, "scalar": torch.tensor(0.25), "each": normal(size[1], seed=seed + 1)}[form]
    found = given_pre(pre, **WAYS[way]).above(threshold)
    assert torch.equal(kept_mask(found), pre > threshold)
    check_values(found, pre)


@ways
@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("k", [1, 6, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_row_topk_of_wide_rows_equals_an_exact_sort(way, k, kind):
    pre = matrix(40, 2048, kind)  # in groups of 64, 64 and 8
    found = given_pre(pre, **WAYS[way]).row_topk(k)
    kept = pre[kept_mask(found)].view(40, k)
    assert torch.equal(kept.sort(1, descending=True).values, pre.topk(k, dim=1).values)
    check_values(found, pre)


@ways
@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("d_sae", [40, 64])
def test_latents_that_never_fire_for_their_bias_or_threshold_take_no_other_along(way, d_sae):
    x, weight, bias = normal(30, 7), normal(d_sae, 7, seed=1).T, normal(d_sae, seed=2)
    off, never = torch.zeros(d_sae, dtype=torch.bool), float("-inf")
    off[[3, d_sae - 1]] = True
    shut, others = torch.where(off, never, bias), (~off).nonzero()[:, 0]
    found, wanted = (
        [made.row_topk(5), made.batch_topk(90), made.above(0.5)]
        for made in (
            PreActivations(x, weight, shut, **WAYS[way]),
            PreActivations(x, weight.T[others].T, bias[others], **WAYS[way]),
        )
    )
    for one, other in zip(found, wanted, strict=True):
        assert other.pre.numel() > 60
        assert torch.equal(kept_mask(one)[:, others], kept_mask(other))
        values, expected = (each.selection.scatter(each.pre) for each in (one, other))
        assert torch.allclose(values[:, others], expected, rtol=1e-5)
    threshold = torch.where(off, -never, 0.5)
    each = PreActivations(x, weight, bias, **WAYS[way]).above(threshold)
    assert torch.equal(kept_mask(each), kept_mask(found[2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_maxima_of_bits_are_those_of_numbers_where_there_is_one_above_zero(dtype):
    values = (normal(50, 96) - 1).to(dtype)
    values[0], values[1, ::2] = -0.0, 0.0
    part = candidates.Part(0, values, torch.zeros(50, 1))
    exact, fast = part.maxima(16, positive=False), part.maxima(16, positive=True)
    assert torch.equal(fast[exact > 0], exact[exact > 0])
    assert bool((fast[exact <= 0] <= 0).all())
    assert 0 < int((exact > 0).sum()) < exact.numel()


def in_parts(monkeypatch, size):
    """Look through parts of so many bytes, however few rows that is."""
    monkeypatch.setattr(candidates, "_CHUNK_BYTES", size)
    monkeypatch.setattr(candidates, "_CHUNK_ROWS", 1)


@pytest.mark.parametrize("how", ["row_topk", "batch_topk", "above"])
def test_formats_and_cuts_into_parts_change_no_bit(how, monkeypatch):
    x, weight, bias = normal(300, 48), normal(700, 48, seed=1).T, normal(700, seed=2)
    argument = {"row_topk": 9, "batch_topk": 2_700, "above": 12.0}[how]
    results = []
    for screen, chunk in [("bf16", 1 << 24), ("fp32", 1 << 24), ("bf16", 1 << 14), ("fp32", 1 << 15)]:
        in_parts(monkeypatch, chunk)
        found = getattr(PreActivations(x, weight, bias, screen), how)(argument)
        results.append((found.selection.rows, found.selection.cols, found.pre))
    assert results[0][0].numel() > 1_000
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other, strict=True))


@pytest.mark.parametrize("screen", ["bf16", "fp32"])
def test_margins_bound_the_error_of_the_screen(screen):
    """The bound holds for vectors whose rounding errors all point the same way, where no average helps."""
    ulp = 2.0**-8
    x = torch.full((4, 64), 1 + 0.49 * ulp) * torch.tensor([1.0, -1.0, 3.0, 0.1])[:, None]
    latents = torch.full((32, 64), 1 + 0.49 * ulp) * torch.linspace(-2, 2, 32)[:, None]
    bias = torch.linspace(-1, 1, 32) * (1 + 0.3 * ulp)
    screened = candidates.Screened.of(x, latents.T, bias, screen)
    (part,) = screened.parts()
    true = x.double() @ latents.double().T + bias.double()
    low = screened.lowest(part.values.float()) - part.margins
    high = part.values.float() + screened.unit * part.values.float().abs() + part.margins
    assert bool((low.double() <= true).all())
    assert bool((true <= high.double()).all())


def test_a_screen_without_margins_would_miss_entries(monkeypatch):
    """The mutant: candidates by the screened values alone."""
    pre = PreActivations(normal(300, 48), normal(2000, 48, seed=1).T, normal(2000, seed=2), "bf16")
    sure = pre.row_topk(9)
    found = candidates.Screened.candidates

    def careless(self, part, least, tops):
        return found(self, part._replace(margins=torch.zeros_like(part.margins)), least + part.margins, tops)

    monkeypatch.setattr(candidates.Screened, "candidates", careless)
    monkeypatch.setattr(candidates.Screened, "lowest", lambda self, values: values)
    assert not torch.equal(kept_mask(sure), kept_mask(pre.row_topk(9)))


def test_memory_stays_within_parts(monkeypatch):
    """No tensor of batch x d_sae is made: the largest is one part's."""
    in_parts(monkeypatch, 1 << 16)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
            largest.extend(t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided)
            return out

    x, weight, bias = normal(512, 8), normal(2048, 8, seed=1).T, normal(2048, seed=2)
    with Watch():
        PreActivations(x, weight, bias, "bf16").row_topk(3)
        PreActivations(x, weight, bias, "bf16").batch_topk(1_500)
        PreActivations(x, weight, bias, "bf16").above(12.0)
    assert max(largest) < 512 * 2048 * 2 / 4


def test_numbers_that_are_none_select_nothing_and_end():
    x, weight, bias = normal(20, 8), normal(400, 8, seed=1).T, normal(400, seed=2)
    x[3] = torch.nan
    broken = torch.full((20, 8), torch.nan)
    for screen in ("bf16", "fp32"):
        for batch in (x, broken):
            pre = PreActivations(batch, weight, bias, screen)
            for found in (pre.row_topk(3), pre.batch_topk(60), pre.above(0.0)):
                assert bool((found.selection.cols < 400).all())
                assert bool(found.pre.isfinite().all())


def test_the_density_switch_has_hysteresis():
    switch = DenseSwitch()
    taken = []
    for density in (0.5, 0.085, 0.07, 0.06, 0.07, 0.09, 0.11, 0.09, 0.06):
        switch.update(density)
        taken.append(switch.now)
    assert taken == [True, True, True, False, False, False, True, True, False]


def test_the_screen_is_chosen_by_a_measurement(monkeypatch):
    times = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(screening, "_seconds", lambda left, right: times[left.dtype])
    fast_screen.cache_clear()
    assert fast_screen("cpu") == "bf16"
    times[torch.bfloat16] = 3.0
    assert fast_screen("cpu") == "bf16", "measured once a process"
    fast_screen.cache_clear()
    assert fast_screen("cpu") == "fp32"
    fast_screen.cache_clear()
