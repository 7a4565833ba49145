"""What autointerp shows and tests of a latent: windows, samples of them, and windows around peaks."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics._interp_peaks import Peaks, draw_peaks
from saebench_plugins.metrics._interp_samples import Sizes, draw_latents, draw_sample
from saebench_plugins.metrics._windows import Firing, Recorded, firing_of, record, window_counts

from saebench_core import ReadableModel, TokenBatch
from tests.helpers.contexts import FakeContext
from tests.helpers.interp import D_IN, SEQUENCES, VOCABULARY, WIDTH, TokenWorld, llm, one_to_one, recorded_of


@pytest.mark.parametrize("sequences", [33, 40])
def test_a_last_sequence_that_is_shorter_is_left_out(tmp_path, sequences):
    """It is padded among others, and narrower than they where it is alone in its batch of sixteen."""

    class Short(TokenWorld):
        def sequences(self, split, start, count):
            batch = super().sequences(split, start, count)
            if start + count < sequences or not len(batch.ids):
                return batch
            batch.attention[-1, 20:] = False
            batch.kept[-1, 20:] = False
            return TokenBatch(*(part[:, :20] for part in batch)) if len(batch.ids) == 1 else batch

    recorded = recorded_of(Short(sequences), tmp_path)
    assert len(recorded.ids) == sequences - 1
    rows = torch.nn.functional.one_hot(recorded.ids.flatten()[recorded.places], D_IN)
    assert torch.equal(recorded.activations[:, :VOCABULARY], rows[:, :VOCABULARY].float())


def test_windows_by_hand(tmp_path):
    model = TokenWorld()
    assert isinstance(model, ReadableModel)
    recorded = recorded_of(model, tmp_path)
    assert torch.equal(recorded.ids, model.ids)
    assert recorded.count(WIDTH) == SEQUENCES * 5
    assert torch.equal(recorded.tokens(7, WIDTH), model.ids[1, 16:24])
    kept = model.ids.clone()
    kept[:, 0] = -1
    windows = kept.reshape(-1, WIDTH)
    counts = window_counts(one_to_one(), recorded, WIDTH)
    for token in range(VOCABULARY):
        assert counts[token] == (windows == token).any(1).sum()
    assert counts[26] == 0
    firing = firing_of(one_to_one(), recorded, WIDTH, [5, 26])
    assert sorted(firing[5].windows.tolist()) == (windows == 5).any(1).nonzero()[:, 0].tolist()
    assert torch.equal(firing[5].values, (windows[firing[5].windows] == 5).float())
    assert len(firing[26].windows) == 0


@pytest.mark.parametrize("rows", [7, 100, 4096])
def test_windows_do_not_hang_on_how_rows_are_cut(tmp_path, monkeypatch, rows):
    recorded = recorded_of(TokenWorld(), tmp_path)
    expected = window_counts(one_to_one(), recorded, 13)
    whole = firing_of(one_to_one(), recorded, 13, [2, 24])
    monkeypatch.setattr("saebench_plugins.metrics._windows._ROWS_AT_ONCE", rows)
    assert torch.equal(window_counts(one_to_one(), recorded, 13), expected)
    for latent, firing in firing_of(one_to_one(), recorded, 13, [2, 24]).items():
        assert torch.equal(firing.windows, whole[latent].windows)
        assert torch.equal(firing.values, whole[latent].values)


def test_only_so_many_tokens_are_read(tmp_path):
    assert len(recorded_of(TokenWorld(), tmp_path, 1).ids) == 16
    assert len(recorded_of(TokenWorld(5), tmp_path).ids) == 5


@pytest.mark.parametrize(("multiple", "left_out"), [(10.0, 1), (60.0, 0), (None, 0)])
def test_attention_sinks_are_not_looked_at(tmp_path, multiple, left_out):
    class Sinks(TokenWorld):
        def read(self, tokens, site):
            rows = super().read(tokens, site)
            if self._range.start == 16:
                rows[100] *= 50
            return rows

    context = FakeContext(tmp_path, Sinks(), "s")
    recorded = Recorded.of(record(context, context.backbone, "evaluation", 10_000, multiple))
    usual = recorded_of(TokenWorld(), tmp_path)
    sink = 16 * 39 + 100
    others = torch.arange(len(usual.places)) != sink
    if left_out:
        assert torch.equal(recorded.places, usual.places[others])
        assert torch.equal(recorded.activations, usual.activations[others])
    else:
        assert torch.equal(recorded.places, usual.places)
        assert torch.equal(recorded.activations[sink], 50 * usual.activations[sink])
    assert torch.equal(recorded.ids, usual.ids)


def test_samples_are_balanced_disjoint_and_spread():
    values = torch.linspace(1, 0.1, 100)[:, None].repeat(1, WIDTH)
    firing = Firing(torch.arange(100) * 3, values)
    recorded = Recorded(torch.arange(400 * WIDTH).reshape(400, WIDTH), torch.arange(0), torch.zeros(0, 1))
    sample = draw_sample(9, firing, recorded, Sizes(WIDTH, 15, 40), 0)
    assert [window.number for window in sample.shown] == [3 * place for place in range(15)]
    active = [window for window, fires in zip(sample.tested, sample.active, strict=True) if fires]
    silent = [window for window, fires in zip(sample.tested, sample.active, strict=True) if not fires]
    assert len(active) == len(silent) == 20
    assert not {window.number for window in sample.tested} & {window.number for window in sample.shown}
    assert all(window.number % 3 == 0 and window.number < 300 for window in active)
    assert all(window.peak == 0 and (window.number % 3 or window.number >= 300) for window in silent)
    tenths = sorted((window.number // 3 - 15) * 10 // 85 for window in active)
    assert tenths == sorted([*range(10)] * 2)
    assert list(sample.active) != sorted(sample.active)
    again = draw_sample(9, firing, recorded, Sizes(WIDTH, 15, 40), 0)
    assert [window.number for window in again.tested] == [window.number for window in sample.tested]
    few = draw_sample(9, Firing(torch.arange(6), values[:6]), recorded, Sizes(WIDTH, 15, 40), 0)
    assert (len(few.shown), sum(few.active), len(few.tested)) == (3, 3, 6)
    everywhere = Firing(torch.arange(400), torch.ones(400, WIDTH))
    assert not draw_sample(9, everywhere, recorded, Sizes(WIDTH, 15, 40), 0).tested


def test_delphi_shows_windows_of_all_strengths_and_marks_tokens():
    values = torch.zeros(100, WIDTH)
    values[:, 2] = torch.linspace(1, 0.1, 100)
    values[:, 3] = values[:, 2] / 2
    values[:, 4] = values[:, 2] / 4
    recorded = Recorded(torch.arange(400 * WIDTH).reshape(400, WIDTH), torch.arange(0), torch.zeros(0, 1))
    sizes = Sizes(WIDTH, 20, 40, spread=True, fuzzed=True)
    sample = draw_sample(9, Firing(torch.arange(100) * 3, values), recorded, sizes, 0)
    assert sorted(window.number // 30 for window in sample.shown) == sorted([*range(10)] * 2)
    assert [window.peak for window in sample.shown] == sorted((window.peak for window in sample.shown), reverse=True)
    assert not {window.number for window in sample.tested} & {window.number for window in sample.shown}
    for window, fires in zip(sample.tested, sample.active, strict=True):
        if fires:
            assert window.marks.nonzero()[:, 0].tolist() == [2, 3]  # a quarter of the largest is below 0.3
        else:
            assert window.marks.sum() == 2
    places = {
        tuple(window.marks.tolist()) for window, fires in zip(sample.tested, sample.active, strict=True) if not fires
    }
    assert len(places) > 5


def peaks_of(codes, seed=0, **options):
    sequences, length = codes.shape
    recorded = Recorded(torch.arange(codes.numel()).reshape(sequences, length), torch.arange(0), torch.zeros(0, 1))
    places = codes.view(-1).nonzero()[:, 0]
    order = codes.view(-1)[places].argsort(descending=True, stable=True)
    firing = Firing(places[order], codes.view(-1)[places[order]][:, None])
    return draw_peaks(
        3, firing, recorded, Peaks(**{"around": 3, "top": 4, "weighted": 5, "held": 2, "silent": 6} | options), seed
    )


def test_saebench_draws_windows_around_peaks():
    draw = torch.Generator().manual_seed(0)
    codes = torch.where(torch.rand(40, 50, generator=draw) < 0.03, torch.rand(40, 50, generator=draw) + 0.1, 0)
    codes[5, 20], codes[5, 22], codes[6, 1] = 9, 8, 7  # the second is too near to the first, the third to an end
    sample = peaks_of(codes)
    assert (len(sample.shown), len(sample.tested), sum(sample.active)) == (5, 10, 4)
    every = [*sample.shown, *sample.tested]
    assert all(len(window.ids) == len(window.values) == 7 for window in every)
    assert all(3 <= window.number % 50 < 47 for window in every)
    middles = {window.number for window in every}
    assert len(middles) == 15
    assert 5 * 50 + 20 in middles
    assert not {5 * 50 + 22, 6 * 50 + 1} & middles
    for window, fires in zip(sample.tested, sample.active, strict=True):
        assert (window.peak > 0) == fires
        assert int(window.ids[3]) == window.number
    assert [window.peak for window in sample.shown] == sorted((window.peak for window in sample.shown), reverse=True)
    again = peaks_of(codes)
    assert [window.number for window in again.tested] == [window.number for window in sample.tested]
    assert [window.number for window in peaks_of(codes, 1).tested] != [window.number for window in sample.tested]


def test_saebench_draws_larger_codes_more_often():
    codes = torch.zeros(70, 9)  # the last ten rows are silent
    codes[:60, 4] = torch.tensor([1.0] * 30 + [3.0] * 30)
    codes[0, 4], codes[30, 4] = 90, 50
    others = [
        next(window for window in peaks_of(codes, seed, top=2, held=1, weighted=2, silent=2).shown if window.peak < 50)
        for seed in range(400)
    ]
    share = sum(window.peak == 3 for window in others) / len(others)
    assert share == pytest.approx(29 * 9 / (29 * 9 + 29), abs=0.05)
    codes[30, 4] = 3  # as large as the lowest top window is none of the others
    for seed in range(50):
        sample = peaks_of(codes, seed, top=2, held=1, weighted=2, silent=2)
        assert sum(window.peak == 1 for window in (*sample.shown, *sample.tested)) == 2


def test_saebench_does_without_latents_that_fire_too_seldom():
    codes = torch.zeros(20, 9)
    codes[:3, 4] = torch.tensor([3.0, 2.0, 1.0])
    assert peaks_of(codes, top=2, held=1, weighted=0).tested
    assert not peaks_of(codes, top=3, held=1, weighted=2).tested  # none is left to be drawn by its square
    codes[3:5, 4] = 0.5
    sample = peaks_of(codes, top=3, held=1, weighted=2)
    assert (len(sample.shown), sum(sample.active), len(sample.tested)) == (3, 2, 8)
    assert not peaks_of(codes, top=3, held=1, weighted=2, silent=100).tested
    assert not peaks_of(torch.ones(20, 9)).tested
    with pytest.raises(ValidationError, match="none is left to be shown"):
        AutointerpConfig(protocol={"type": "saebench", "held": 7}, judge=llm("http://localhost/v1"))


def test_no_window_of_saebench_shows_what_another_tests():
    draw = torch.Generator().manual_seed(1)
    codes = torch.where(torch.rand(30, 60, generator=draw) < 0.3, torch.rand(30, 60, generator=draw) + 0.1, 0)
    codes[:, 30:] = 0
    codes[12:] = 0
    sample = peaks_of(codes)
    middles = [window.number for window in (*sample.shown, *sample.tested) if window.peak > 0]
    assert len(middles) == 9
    for one in middles:
        assert not [other for other in middles if other != one and other // 60 == one // 60 and abs(other - one) <= 3]


def test_faint_codes_are_not_marked():
    codes = torch.zeros(20, 9)
    codes[:3, 4] = torch.tensor([10.0, 9.0, 8.0])
    codes[:3, 5] = codes[3:6, 4] = 0.09
    sample = peaks_of(codes, top=3, held=1, weighted=0)
    assert all((window.values > 0).sum() == 1 for window in sample.shown)
    assert not peaks_of(codes, top=3, held=1, weighted=2).tested  # what is so faint is no window either


def test_latents_are_drawn_among_those_that_fire():
    counts = torch.tensor([0, 5, 9, 3, 5, 7, 0, 6])
    assert draw_latents(counts, 100, 5, 0) == [1, 2, 4, 5, 7]
    assert len(draw_latents(counts, 2, 5, 0)) == 2
    assert draw_latents(counts, 2, 5, 0) == draw_latents(counts, 2, 5, 0)
