"""Matching pursuit on dictionaries whose codes are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from saebench_core.errors import InputError
from saebench_core.pursuit import pursue
from tests.helpers.contexts import FakeContext
from tests.helpers.training import build, normal


def test_an_orthogonal_dictionary_is_read_exactly():
    basis = torch.linalg.qr(normal(12, 12, seed=0))[0]
    codes = torch.zeros(40, 12).scatter_(1, normal(40, 12, seed=1).argsort(1)[:, :3], normal(40, 3, seed=2) + 3)
    assert torch.allclose(pursue(codes @ basis, basis, 3).to_dense(), codes, atol=1e-5)


def test_norms_of_atoms_go_into_the_codes():
    atoms, x = normal(30, 10, seed=0), normal(50, 10, seed=1)
    scale = torch.linspace(0.1, 5, 30)[:, None]
    plain, scaled = pursue(x, atoms, 4).to_dense(), pursue(x, atoms * scale, 4).to_dense()
    assert torch.allclose(plain @ atoms, scaled @ (atoms * scale), atol=1e-4)
    assert torch.equal(plain != 0, scaled != 0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 10**6))
def test_what_is_left_is_orthogonal_to_what_was_chosen_and_shrinks(k, seed):
    atoms, x = normal(16, 8, seed=seed), normal(20, 8, seed=seed + 1)
    codes = pursue(x, atoms, k).to_dense()
    residual = x - codes @ atoms
    assert int((codes != 0).sum(1).max()) <= k
    assert float(((residual @ atoms.T) * (codes != 0)).abs().max()) < 1e-3
    if k > 1:
        before = x - pursue(x, atoms, k - 1).to_dense() @ atoms
        assert bool((residual.norm(dim=1) <= before.norm(dim=1) + 1e-5).all())


def test_the_first_choice_by_hand():
    atoms = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.6, 0.8]])
    codes = pursue(torch.tensor([[3.0, 4.0], [-2.0, 0.1]]), atoms, 1).to_dense()
    assert torch.allclose(codes, torch.tensor([[0.0, 0.0, 5.0], [-2.0, 0.0, 0.0]]), atol=1e-5)


def test_rows_and_atoms_of_zeros_are_no_trouble():
    atoms = torch.cat([torch.zeros(1, 6), normal(2, 6, seed=0).repeat(3, 1)])
    codes = pursue(torch.cat([torch.zeros(1, 6), normal(3, 6, seed=1)]), atoms, 5)
    assert bool(codes.values.isfinite().all()) and bool((codes.to_dense()[0] == 0).all())


def test_rows_do_not_depend_on_the_others():
    atoms, x = normal(30, 10, seed=0), normal(50, 10, seed=1)
    assert torch.allclose(pursue(x, atoms, 4).to_dense()[7:9], pursue(x[7:9], atoms, 4).to_dense(), atol=1e-5)


@pytest.mark.parametrize("k", [0, 31])
def test_more_atoms_than_there_are_is_refused(k):
    with pytest.raises(InputError, match="between 1 and d_sae 30"):
        pursue(normal(2, 10), normal(30, 10), k)


def test_what_is_left_of_a_reconstructed_row_is_not_coded():
    dictionary = torch.nn.functional.normalize(normal(40, 12, seed=1), dim=1)
    rows = torch.stack([2 * dictionary[3], dictionary[5] - 3 * dictionary[9], normal(12, seed=2)])
    found = pursue(rows, dictionary, 4)
    assert (found.to_dense() != 0).sum(1).tolist() == [1, 2, 4]
    torch.testing.assert_close(found.to_dense()[0, 3], torch.tensor(2.0))
    assert found.to_dense()[1].nonzero()[:, 0].tolist() == [5, 9]


def told(page: str) -> dict[tuple[int, str], float]:
    """Return the theory page's table: explained variance by codes a row and dictionary."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    head = [name.strip().split()[0].replace(",", "") for name in lines[0].strip("|").split("|")]
    found = {}
    for line in lines[2:]:
        k, *values = (part.strip() for part in line.strip("|").split("|"))
        found |= {(int(k), name): float(value) for name, value in zip(head[1:], values, strict=True)}
    return found


@pytest.mark.parametrize(
    ("keys", "apart"),
    [({"probability": {"type": "constant", "p": 0.00625}}, 0.0), ({}, 0.02)],
    ids=["constant", "log_uniform"],
)
def test_the_theory_pages_table_is_what_a_pursuit_reaches(keys, apart):
    """Every entry; the random dictionaries are others than the page's, the rows half as many."""
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")
    world = build("backbone", "synthetic", **keys)
    world.prepare(FakeContext(None))
    x = next(iter(world.stream("activations", "evaluation", 0, 512))).inputs
    numbers = told(page)
    assert len(numbers) == 24
    for (k, name), number in numbers.items():
        dictionary = world.features() if name == "true" else normal(int(name), 100, seed=7)
        codes = pursue(x, dictionary, k)
        left = x - codes.to_dense() @ dictionary
        explained = 1 - float(left.square().sum() / (x - x.mean(0)).square().sum())
        assert explained == pytest.approx(number, abs=0.012 + apart), (k, name)
        negative = float((codes.values < 0).double().mean())
        assert negative == pytest.approx(0.35 if name == "true" else 0.5, abs=0.04) or (k < 20 and name == "true")
