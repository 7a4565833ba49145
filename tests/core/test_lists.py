"""Places, limits and orders in lists, against what they are defined as, on a CPU and as other devices have them."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from saebench_core.kernels import lists


@pytest.fixture(params=["cpu", "elsewhere"], autouse=True)
def device(request):
    """Run every test with numpy, and with numpy out of reach."""
    if request.param == "cpu":
        yield
        return

    def elsewhere(function):
        def call(tensor, *args):
            class Away(torch.Tensor):
                device = SimpleNamespace(type="elsewhere")
                numpy = None

            return function(tensor.as_subclass(Away), *args)

        return call

    names = ("places", "kth_largest", "divided", "order")
    with mock.patch.multiple(lists, **{name: elsewhere(getattr(lists, name)) for name in names}):
        yield


def numbers(of, **limits):
    return st.lists(of, max_size=40, **limits)


def plain(tensor):
    return tensor.as_subclass(torch.Tensor).tolist()


@settings(deadline=None, max_examples=40)
@given(numbers(st.booleans()))
def test_places(mask):
    wanted = [place for place, true in enumerate(mask) if true]
    assert plain(lists.places(torch.tensor(mask, dtype=torch.bool))) == wanted


def test_places_of_a_table_are_those_of_its_flat_list():
    assert plain(lists.places(torch.tensor([[True, False, False], [False, True, True]]))) == [0, 4, 5]
    assert plain(lists.places(torch.tensor([[True, False], [False, True], [False, True]]).T)) == [0, 4, 5]


@settings(deadline=None, max_examples=60)
@given(numbers(st.floats(width=32, allow_nan=False), min_size=1), st.data())
def test_kth_largest(row, data):
    k = data.draw(st.integers(1, len(row)))
    table = torch.tensor([row, row[::-1]])
    before = table.clone()
    assert plain(lists.kth_largest(table, k)) == [sorted(row, reverse=True)[k - 1]] * 2
    assert plain(lists.kth_largest(table[0], k)) == sorted(row, reverse=True)[k - 1]
    assert torch.equal(table, before)


@settings(deadline=None, max_examples=40)
@given(numbers(st.integers(0, 2**40)), st.integers(1, 2**33))
def test_divided(entries, by):
    quotients, remainders = lists.divided(torch.tensor(entries, dtype=torch.int64), by)
    assert plain(quotients) == [entry // by for entry in entries]
    assert plain(remainders) == [entry % by for entry in entries]


@pytest.mark.parametrize("count", [1, 7, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_order_is_stable_and_of_all_numbers_below_the_count(count):
    entries = np.random.default_rng(0).integers(0, count, 500)
    entries[:2] = count - 1
    wanted = sorted(range(500), key=lambda place: entries[place])
    assert plain(lists.order(torch.from_numpy(entries), count)) == wanted


def test_empty_lists():
    none = torch.zeros(0, dtype=torch.int64)
    assert plain(lists.order(none, 5)) == []
    assert plain(lists.places(none.bool())) == []
    assert [plain(part) for part in lists.divided(none, 3)] == [[], []]
