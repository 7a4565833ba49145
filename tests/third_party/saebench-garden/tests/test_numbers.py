"""Numbers that one can work out by hand, for what the conformance kit cannot know."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from saebench_garden.coherence import interference, nearest_directions
from saebench_garden.learned_k import Budgeted, LearnedK, LearnedKConfig
from saebench_garden.shuffled_decoder import ShuffledDecoder, ShuffledDecoderConfig, shuffle_of
from saebench_garden.toy_model import ToyModel, ToyModelConfig, draw

from saebench_core import (
    Codes,
    Context,
    Json,
    PreActivations,
    Shape,
    SparseAutoencoder,
    Start,
    select_mask,
    tensor_sha256,
)

ROWS = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])


def pre_activations(rows: torch.Tensor) -> PreActivations:
    size = rows.shape[1]
    return PreActivations(rows, torch.eye(size), torch.zeros(size))


def test_a_row_gets_what_its_latents_pay_for() -> None:
    rule = Budgeted(1.0)
    price = torch.tensor([2.0, 3.0, 4.0, 2.0])  # so the first row pays 2 + 1 + 0.5 + 0.5, the second 0.5
    assert rule.budgets(rule.pool(pre_activations(ROWS)), price).tolist() == [4.0, 0.5, 0.0]
    cheap = {"price": torch.tensor([2.0, 3.0, 4.0, 2.0])}
    dear = {"price": 2 * cheap["price"]}
    kept = rule.select_inference(pre_activations(ROWS), cheap).selection
    assert (kept.rows.tolist(), sorted(kept.cols.tolist())) == ([0, 0, 0, 0], [0, 1, 2, 3])
    kept = rule.select_inference(pre_activations(ROWS), dear).selection
    assert (kept.rows.tolist(), sorted(kept.cols.tolist())) == ([0, 0], [0, 1])


def test_prices_learn_how_many_latents_a_row_gets() -> None:
    recipe = LearnedK(LearnedKConfig(d_sae=4, aux_coefficient=0.0)).recipe(Shape(4, 4, 2.0))
    sae = SparseAutoencoder.start(torch.eye(4), torch.eye(4), torch.zeros(4), recipe.rule, "none")
    price = sae.tensors["price"].requires_grad_()
    x = torch.tensor([[1.0, 0.9, 0.8, 0.7], [0.6, 0.0, 0.0, 0.0]])
    optimiser = torch.optim.Adam([price], lr=0.02)
    for _ in range(800):
        optimiser.zero_grad()
        step = sae.training_step(x, x, torch.zeros(4, dtype=torch.bool))
        loss, _ = recipe.objective.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert step.selection.rows.tolist() == [0, 0, 0, 0], "the first row has the four largest of the batch"
    assert sae.encode(x).l0().tolist() == [4.0, 0.0]


def test_a_shuffled_decoder_keeps_numbers_and_can_be_undone() -> None:
    drawn, trained = torch.eye(3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    held = ShuffledDecoder(ShuffledDecoderConfig())
    start = SparseAutoencoder.start(drawn, drawn, torch.zeros(3), Budgeted(1.0), "b_dec")
    twin = SparseAutoencoder.start(drawn, trained, torch.zeros(3), Budgeted(1.0), "b_dec")
    found = held.finish(start, twin)
    assert not torch.equal(found.w_dec, trained)
    assert torch.equal(found.w_dec.sort(dim=1).values, trained)
    assert torch.equal(found.w_enc, twin.w_enc)
    assert held.certify(found, Start(drawn, drawn)) == {"unshuffled_w_dec_sha256": tensor_sha256(trained)}
    orders = shuffle_of(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    assert orders.double().mean(0).tolist() == pytest.approx([2.0] * 5, abs=0.4), "no coordinate has a place of its own"


def test_coherence_of_directions_that_are_known() -> None:
    half = 0.5**0.5
    directions = torch.tensor([[1.0, 0.0], [0.0, -2.0], [half, half]])
    found = nearest_directions(directions)
    assert found.cosines.tolist() == pytest.approx([half] * 3)
    assert found.latents.tolist()[:2] == [2, 2]
    pre = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    selected = select_mask(pre, pre > 0)
    pairs = interference(Codes(selected.selection, selected.pre), directions)
    assert sorted(pairs.tolist()) == pytest.approx([0.0, 0.0, half, half])


class Trainer:
    """As much of a context as a backbone that trains a model needs."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, int, int]] = []

    def progress(self, label: str, done: int, total: int) -> None:
        self.told.append((label, done, total))

    def product(self, config: Mapping[str, Json], build: Callable[[Path], None]) -> Path:
        build(self.folder)
        return self.folder


def test_rows_are_sums_of_the_features(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    model = ToyModel(ToyModelConfig(n_features=12, d_hidden=5, steps=400))
    model.prepare(cast(Context, trainer))
    assert trainer.told[-1] == ("train the toy model", 400, 400)
    (batch,) = model.stream("hidden", "train", 1000, 20)
    codes = model.codes("train", 1000, 20)
    assert codes.l0().sum() > 0
    torch.testing.assert_close(codes.to_dense() @ model.features(), batch.inputs)


def test_the_model_learns_to_give_its_features_back(tmp_path: Path) -> None:
    def error(steps: int) -> float:
        folder = tmp_path / str(steps)
        folder.mkdir()
        config = ToyModelConfig(n_features=12, d_hidden=5, steps=steps)
        model = ToyModel(config)
        model.prepare(cast(Context, Trainer(folder)))
        x = draw(config, 2000, "held out")
        return float(((np.maximum(x @ model.weight @ model.weight.T, 0) - x) ** 2).sum(1).mean())

    assert error(800) < 0.6 * error(1)
