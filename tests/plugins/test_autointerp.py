"""Descriptions of latents whose meaning is planted: tokens, neighbours of tokens, and nothing."""

from __future__ import annotations

import json
import random
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.metrics._interp_answers import answered, auroc
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics._interp_dialogues import DETECTION, PAPER, SAEBENCH, marked, read_list, read_numbers
from saebench_plugins.metrics._interp_judges import EmbeddingJudge, Mark
from saebench_plugins.metrics._interp_peaks import Peaks, draw_peaks
from saebench_plugins.metrics._interp_samples import Sizes, draw_latents, draw_sample
from saebench_plugins.metrics._windows import Firing, Recorded, Window, firing_of, record, window_counts
from saebench_plugins.metrics.autointerp import Autointerp

from saebench_core import (
    Backbone,
    BackboneDescription,
    InputError,
    MissingPackageError,
    NotApplicable,
    Observed,
    ReadableModel,
    Score,
    SparseAutoencoder,
    Subject,
    TokenBatch,
    TopK,
)
from tests.helpers.contexts import FakeContext

VOCABULARY, LENGTH, SEQUENCES = 24, 40, 60
D_IN = VOCABULARY + 4
WIDTH = 8


class TokenWorld(Backbone):
    """Coordinate t is 1 at token t; coordinate 24 is 1 after token 3, 25 at random, the others never."""

    def __init__(self, sequences=SEQUENCES):
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCABULARY, (sequences, LENGTH), generator=draw)
        self.chance = torch.rand(sequences, LENGTH, generator=draw) < 0.05
        self.reads = 0

    def describe(self):
        return BackboneDescription("language", {"s": D_IN})

    def prepare(self, context):
        pass

    def rows_available(self, site, split):
        return self.ids.numel()

    def stream(self, site, split, start, rows):
        return iter(())

    def sequences(self, split, start, count):
        ids = self.ids[start : start + count]
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[:, 0] = False
        self._range = slice(start, start + count)
        return TokenBatch(ids, torch.ones_like(kept), kept)

    def read(self, tokens, site):
        self.reads += 1
        rows = torch.nn.functional.one_hot(tokens.ids, D_IN).float()
        rows[:, 1:, 24] = (tokens.ids[:, :-1] == 3).float()
        rows[..., 25] = self.chance[self._range][: len(rows)].float()
        return rows[tokens.kept]

    def pieces(self, ids):
        return [f" t{token}" for token in ids.tolist()]

    def tokenise(self, texts, max_tokens, keep="start"):
        raise NotImplementedError

    logits = words = tokenise


class StrongAndWeak(TokenWorld):
    """The same tokens, with activations that differ in size."""

    def read(self, tokens, site):
        strengths = 1 + torch.rand(SEQUENCES, LENGTH, generator=torch.Generator().manual_seed(1))
        return super().read(tokens, site) * strengths[self._range][: len(tokens.ids)][tokens.kept][:, None]


def one_to_one(d_in=D_IN):
    return SparseAutoencoder.start(torch.eye(d_in), torch.eye(d_in), torch.zeros(d_in), TopK(3), "none")


def metric_of(judge=None, **options):
    shuffled = {"shuffled": options.pop("shuffled")} if "shuffled" in options else {}
    protocol = {"type": "paper", **options}
    if protocol["type"] == "saebench":
        protocol = {"around": 3, **protocol}
    else:
        protocol = {"width": WIDTH, "shown": 6, "tested": 20, "fewest": 4, **protocol}
    judges = {"judge": judge} if judge else {}
    return Autointerp(AutointerpConfig(tokens=10_000, protocol=protocol, **shuffled, **judges))


def run(metric, sae, tmp_path, model=None, context=None):
    model = model or TokenWorld()
    context = context or FakeContext(tmp_path / "store", model, "s")
    prepared = metric.prepare(context)
    return metric.score(Subject(sae, lambda: sae.w_dec), prepared, context), prepared


def recorded_of(model, tmp_path, tokens=10_000):
    return Recorded.of(record(FakeContext(tmp_path, model, "s"), model, "evaluation", tokens))


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


def test_tokens_tell_what_tokens_mean_and_nothing_else(tmp_path):
    result, prepared = run(metric_of(latents=100), one_to_one(), tmp_path)
    found = dict(zip(result.items["latent"], result.items["accuracy"], strict=True))
    # a token at a sequence's start is no row, and tells where nothing fires
    assert min(found[token] for token in range(VOCABULARY)) >= 0.85
    assert sum(found[token] for token in range(VOCABULARY)) / VOCABULARY > 0.96
    assert found[25] < 0.8  # fires at random
    assert found[24] < 0.8  # its neighbour before tells, not its own token
    assert result.items["description"][5] == "' t5'"
    area = dict(zip(result.items["latent"], result.items["auroc"], strict=True))
    assert area[7] > 0.85
    assert abs(result.scores["tokens_accuracy_shuffled"].value - 0.5) < 0.1
    assert prepared.floors == {"tokens_accuracy": 0.5, "tokens_auroc": 0.5}
    good = result.scores["tokens_above_0.7"].value
    assert result.scores["alive"].value == pytest.approx(26 / 28)
    assert result.scores["tokens_yield"].value == pytest.approx(good * 26 / 28)
    assert set(result.scores) == set(metric_of().scores())
    pieces, values = json.loads(result.items["contexts"][0])[0]
    assert next(piece for piece, value in zip(pieces, values, strict=True) if value > 0) == " t0"


def test_equal_runs_are_equal_and_read_the_model_once(tmp_path):
    model = TokenWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    metric = metric_of(latents=5)
    first, prepared = run(metric, one_to_one(), tmp_path, model, context)
    reads = model.reads
    again = metric.score(Subject(one_to_one(), lambda: None), prepared, context)
    assert first == again
    assert model.reads == reads


def test_an_sae_that_never_fires(tmp_path):
    dead = SparseAutoencoder.start(-torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(3), "none")
    result, _ = run(metric_of(), dead, tmp_path)
    assert result.scores["alive"].value == 0
    assert isinstance(result.scores["tokens_accuracy"], NotApplicable)
    assert set(result.scores) == set(metric_of().scores())


def test_it_needs_tokens_that_can_be_read():
    class Bare(Backbone):
        describe = prepare = rows_available = stream = None

    assert isinstance(metric_of().applicable(Bare()), NotApplicable)
    assert metric_of().applicable(TokenWorld()) is None


class Knows:
    """Answers as a language model that sees through tokens: it names the marked ones, and finds them again."""

    def __init__(self, failures=(), wrong=()):
        self.failures, self.wrong = list(failures), list(wrong)
        self.asked = []
        self.refusal = "no"
        self.lock = threading.Lock()

    def reply(self, messages):
        system, text = messages[0]["content"], messages[1]["content"]
        if "You are shown" in system:
            marked = [part.split(">>")[0].strip() for part in text.split("<<")[1:]]
            return "the word " + max(set(marked), key=marked.count)
        word = text.split("the word ")[1].split("\n")[0]
        lines = text.split("Excerpts:\n")[1].splitlines()
        if "<<" in "".join(lines):
            return json.dumps([int(word in line.split("<<", 1)[1].split(">>")[0].split()) for line in lines])
        there = [int(word in line.split()) for line in lines]
        if "apart by commas" in system:
            return ", ".join(str(number) for number, here in enumerate(there, 1) if here) or "None"
        return json.dumps(there)


@contextmanager
def server(knows):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            if self.path.startswith("/page"):
                return self.send(200, "<html>a page</html>")
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with knows.lock:
                knows.asked.append((request, self.headers["Authorization"]))
                failure = knows.failures.pop(0) if knows.failures else None
                wrong = knows.wrong.pop(0) if knows.wrong else None
            if failure:
                return self.send(failure, {"error": {"message": knows.refusal}})
            message = {"role": "assistant", "content": knows.reply(request["messages"]) if wrong is None else wrong}
            finish = "content_filter" if wrong == "" else "stop"
            choice = {"index": 0, "message": message, "finish_reason": finish}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            return self.send(
                200,
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                },
            )

        def send(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def llm(url, **options):
    return {"type": "llm", "base_url": url, "model": "m", **options}


def test_a_language_model_judges_and_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    model = TokenWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    knows = Knows()
    with server(knows) as url:
        metric = metric_of(llm(url, api_key_env="MY_KEY"), latents=6)
        result, prepared = run(metric, one_to_one(), tmp_path, model, context)
        asked = len(knows.asked)
        assert asked == 6 * (1 + 2 + 2)  # a phrase, twenty windows ten at a time, and those by another's phrase
        again = metric.score(Subject(one_to_one(), lambda: None), prepared, context)
        assert len(knows.asked) == asked
    assert first_scores(result) == first_scores(again)
    by_latent = dict(zip(result.items["latent"], result.items["accuracy"], strict=True))
    assert all(value == 1.0 for latent, value in by_latent.items() if latent < VOCABULARY)
    assert abs(result.scores["accuracy_shuffled"].value - 0.5) < 0.15
    assert result.scores["requests"].value == asked
    assert result.scores["tokens_read"].value == 100 * asked
    assert result.scores["unparsed"].value == result.scores["refused"].value == result.scores["retries"].value == 0
    assert prepared.floors == {"accuracy": 0.5}
    assert {key for _, key in knows.asked} == {"Bearer secret"}
    assert not [path for path in (tmp_path / "store").rglob("*.json") if "secret" in path.read_text()]
    assert set(result.scores) == set(metric.scores())


@pytest.mark.parametrize(
    ("options", "asked", "floor"),
    [
        ({"type": "saebench", "latents": 4}, 4 * 3, 10 / 14),
        ({"type": "delphi", "latents": 4}, 4 * (1 + 4 + 4), 0.5),
        ({"type": "delphi", "scorer": "fuzzing", "latents": 4}, 4 * (1 + 4 + 4), 0.5),
    ],
)
def test_other_protocols(tmp_path, options, asked, floor):
    """One-hot tokens are told rightly; of shuffled descriptions the floor is right, or they name what is not there."""
    knows = Knows()
    only = SparseAutoencoder.start(
        torch.eye(D_IN)[:, :VOCABULARY], torch.eye(D_IN)[:VOCABULARY], torch.zeros(D_IN), TopK(3), "none"
    )
    with server(knows) as url:
        metric = metric_of(llm(url), **options)
        result, prepared = run(metric, only, tmp_path, StrongAndWeak())
    assert len(knows.asked) == asked
    assert first_scores(result)["accuracy"] == 1.0
    assert first_scores(result)["balanced_accuracy"] == first_scores(result)["f1"] == 1.0
    assert prepared.floors["accuracy"] == pytest.approx(floor)
    assert result.scores["accuracy_shuffled"].value < 0.8
    assert set(result.scores) == set(metric.scores())


def test_proxies_follow_what_they_can():
    for protocol in ({"type": "saebench"}, {"type": "delphi", "scorer": "fuzzing"}):
        with pytest.raises(ValidationError, match="needs a judge of type llm, but it is tokens"):
            AutointerpConfig(protocol=protocol)
    scores = Autointerp(AutointerpConfig(protocol={"type": "delphi"})).scores()
    assert "tokens_balanced_accuracy" in scores


def first_scores(result):
    return {name: score.value for name, score in result.scores.items() if isinstance(score, Score)}


def test_failed_calls_are_tried_again_and_counted(tmp_path):
    knows = Knows(failures=[429, 500, 503])
    with server(knows) as url:
        result, _ = run(metric_of(llm(url, concurrency=1), latents=2, shuffled=False), one_to_one(), tmp_path)
    assert result.scores["retries"].value == 3
    assert result.scores["accuracy"].value == 1.0
    assert isinstance(result.scores["accuracy_shuffled"], NotApplicable)


def test_a_server_that_does_not_answer_says_so(tmp_path):
    with (
        server(Knows(failures=[500] * 10)) as url,
        pytest.raises(InputError, match=r"did not answer.*run again to go on"),
    ):
        run(metric_of(llm(url, max_retries=0, concurrency=1), latents=2), one_to_one(), tmp_path)


def test_answers_that_cannot_be_read_are_wrong_and_counted(tmp_path):
    """The first list is cut short and stays so, the second is refused, the third is mended on request."""
    wrong = [None, None, "[0, 1", "nonsense", "", "x", None, None]
    knows = Knows(wrong=wrong)
    with server(knows) as url:
        result, _ = run(metric_of(llm(url, concurrency=1), latents=2, shuffled=False), one_to_one(), tmp_path)
    assert result.scores["repaired"].value == 2
    assert result.scores["unparsed"].value == 10
    assert result.scores["refused"].value == 10
    assert sorted(result.items["accuracy"]) == [0.0, 1.0]


def test_budgets_stop_and_what_was_answered_is_kept(tmp_path):
    model = TokenWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    knows = Knows()
    with server(knows) as url:
        few = metric_of(llm(url, concurrency=1, max_requests=5), latents=4, shuffled=False)
        prepared = few.prepare(context)
        subject = Subject(one_to_one(), lambda: None)
        with pytest.raises(InputError, match="stopped at 5 requests"):
            few.score(subject, prepared, context)
        dear = metric_of(llm(url, concurrency=1, budget_usd=0.0001, price_input=1.0), latents=4, shuffled=False)
        with pytest.raises(InputError, match=r"stopped at 0\.0001 dollars"):
            dear.score(subject, prepared, context)
        with pytest.raises(InputError, match="replay_only"):
            metric_of(llm(url, replay_only=True), latents=4, shuffled=False).score(subject, prepared, context)
        whole = metric_of(llm(url), latents=4, shuffled=False)
        done = whole.score(subject, prepared, context)
        assert len(knows.asked) == 4 * 3  # nothing twice
        replayed = metric_of(llm(url, replay_only=True), latents=4, shuffled=False).score(subject, prepared, context)
    assert first_scores(done) == first_scores(replayed)


def test_limits_are_shared_by_all_cells_of_a_run(tmp_path):
    model = TokenWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    with server(Knows()) as url:
        metric = metric_of(llm(url, concurrency=1, max_requests=8), latents=2, shuffled=False)
        run(metric, one_to_one(), tmp_path, model, context)
        turned = SparseAutoencoder.start(torch.eye(D_IN).flip(0), torch.eye(D_IN), torch.zeros(D_IN), TopK(3), "none")
        with pytest.raises(InputError, match="stopped at 8 requests"):
            run(metric, turned, tmp_path, model, context)


def test_what_scores_hang_on_is_neither_limit_nor_key():
    def identity(**options):
        return AutointerpConfig(judge=llm("http://localhost/v1", **options)).identity()

    limits = {"max_requests": 3, "concurrency": 9, "replay_only": True, "api_key_env": "X", "timeout": 3}
    assert identity() == identity(**limits)
    assert identity() != identity(temperature=0.5)
    judge = llm("http://localhost/v1")
    assert AutointerpConfig(judge=judge, protocol={"type": "delphi"}).identity() != identity()
    with pytest.raises(ValidationError, match="price_input"):
        AutointerpConfig(judge=llm("http://localhost/v1", budget_usd=1))


def test_keys_go_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "dear")
    knows = Knows()
    with server(knows) as url:
        run(metric_of(llm(url), latents=1, shuffled=False), one_to_one(), tmp_path)
    assert {key for _, key in knows.asked} == {"Bearer none"}
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        run(metric_of({"type": "llm"}), one_to_one(), tmp_path)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingPackageError, match=r"saebench-core\[autointerp\]"):
        run(metric_of({"type": "llm"}), one_to_one(), tmp_path)


def test_a_server_of_another_kind_is_named_and_keys_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-word")
    knows = Knows(failures=[401])
    knows.refusal = "bad key secret-word"
    with server(knows) as url:
        judge = llm(url, api_key_env="MY_KEY", concurrency=1)
        with pytest.raises(InputError, match=r"bad key \*\*\*") as caught:
            run(metric_of(judge, latents=1), one_to_one(), tmp_path)
        assert "secret-word" not in str(caught.value)
        with pytest.raises(InputError, match="is the base_url right"):
            run(metric_of(llm(url.removesuffix("/v1") + "/page"), latents=1), one_to_one(), tmp_path)


def test_marks_stand_around_neighbours_that_fire():
    pieces, values = ["The", " cat", " sat", "\non", " mat"], torch.tensor([0.0, 0.5, 2.0, 0.0, 0.4])
    window = Window(0, torch.arange(5), values)
    assert marked(pieces, values > 0) == "The <<cat sat>> on <<mat>>"
    assert PAPER.show(pieces, window, 4.0) == "The <<cat sat>> on <<mat>>"
    assert DETECTION.show(pieces, window, 4.0) == 'The cat <<sat>> on mat\n   (" cat", 1), (" sat", 5), (" mat", 1)'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 0, 1]", [1, 0, 1]),
        ("Sure: [1,0,1].", [1, 0, 1]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("[1, 0, 1", None),
        ("[, ,]", None),
        ("", None),
    ],
)
def test_lists_are_read_or_not(text, expected):
    assert read_list(text, 3) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 3", [1, 0, 1]),
        ("2.", [0, 1, 0]),
        (" None. ", [0, 0, 0]),
        ("3,3", [0, 0, 1]),
        ("4", None),
        ("0", None),
        ("1 and 3", None),
        ("1,", None),
        ("", None),
    ],
)
def test_numbers_are_read_or_not(text, expected):
    assert read_numbers(text, 3) == expected


def test_descriptions_are_taken_out_of_answers():
    assert SAEBENCH.phrase('This neuron activates on the word "and" \n in lists.') == 'the word "and" in lists.'
    assert SAEBENCH.phrase("verbs") == "verbs"
    assert DETECTION.phrase("It is so.\n[EXPLANATION]: names of\ntowns") == "names of towns"


def test_answers_by_hand():
    marks = [Mark(True, None), Mark(False, None), Mark(None, None), Mark(True, None), Mark(False, None)]
    found = answered(marks, [True, True, False, False, False])
    assert found["accuracy"] == 2 / 5  # no answer is a wrong answer
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["f1"] == pytest.approx(2 / (2 + 2 + 1))
    assert auroc(marks, [True, True, False, False, False]) is None
    assert auroc([Mark(True, 0.9), Mark(False, 0.2), Mark(False, 0.5)], [True, True, False]) == 0.5


def save_tiny_bert(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"t{token}" for token in range(VOCABULARY))])
    }
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=1.0,
        )
        BertModel(config).save_pretrained(folder)
    return str(folder)


def counted_words(texts):
    """Embed a text by the words that it has."""
    found = torch.tensor([[float(text.split().count(f"t{token}")) for token in range(VOCABULARY)] for text in texts])
    return torch.nn.functional.normalize(found, dim=1)


def test_windows_like_those_shown_are_called_active():
    model = TokenWorld()
    judge = EmbeddingJudge(lambda windows: [model.pieces(window.ids) for window in windows], counted_words, around=1)
    values = torch.tensor([0.0, 1, 0, 0])
    description = judge.describe(
        [Window(0, torch.tensor([1, 5, 2, 9]), values), Window(1, torch.tensor([3, 5, 4, 9]), values)]
    )
    tested = [
        Window(2, torch.tensor(ids), torch.zeros(4))
        for ids in ([9, 9, 9, 9], [5, 6, 7, 8], [10, 11, 5, 12], [13, 14, 15, 16])
    ]
    marks, _ = judge.marks(description, tested)
    assert [mark.active for mark in marks] == [False, True, True, False]
    assert marks[0].score == marks[3].score == 0  # what is not around a peak does not count
    assert marks[1].score > 0.3


def test_an_encoder_of_transformers_embeds(tmp_path):
    judge = {"type": "embedding", "encoder": save_tiny_bert(tmp_path / "bert")}
    result, _ = run(metric_of(judge, latents=30, tested=40), one_to_one(), tmp_path)
    assert 0.4 < result.scores["embedding_auroc"].value < 1
    assert 0.35 < result.scores["embedding_accuracy_shuffled"].value < 0.6
    again, _ = run(metric_of(judge, latents=30, tested=40), one_to_one(), tmp_path)
    assert first_scores(result) == first_scores(again)
    with pytest.raises(InputError, match="no file"):
        run(metric_of({"type": "embedding", "encoder": str(tmp_path / "none")}), one_to_one(), tmp_path)


def test_random_guesses_have_half(tmp_path):
    """What a judge that knows nothing scores, whatever the latents are."""
    draw = random.Random(0)
    knows = Knows()
    knows.reply = lambda messages: (
        "x" if "<<" in messages[0]["content"] else json.dumps([draw.randint(0, 1) for _ in range(10)])
    )
    with server(knows) as url:
        result, _ = run(metric_of(llm(url, concurrency=1), latents=20, shuffled=False), one_to_one(), tmp_path)
    assert abs(result.scores["accuracy"].value - 0.5) < 0.1


def test_the_report_shows_latents_of_trained_saes_beside_twins(tmp_path):
    result, _ = run(metric_of(latents=8), one_to_one(), tmp_path)
    cells = [
        Observed("lm", "s", "topk", constraint, 3.0, seed, constraint == "trained", result.items)
        for constraint in ("untrained", "trained")
        for seed in (1, 0)
    ]
    (gallery,) = metric_of().galleries(cells)
    assert gallery.title == "lm / s · topk · L0 3"
    assert [(column.label, column.trained) for column in gallery.columns] == [("trained", True), ("untrained", False)]
    cards = gallery.columns[0].cards
    assert [card.title.split(", ")[1] for card in cards] == ["told best"] * 3 + ["at random"] * 3
    assert cards[0].note == "accuracy 1.00"
    excerpt = cards[0].excerpts[0]
    assert max(excerpt.strengths) == 1.0
    assert len(excerpt.pieces) == len(excerpt.strengths) == WIDTH


def test_latents_to_rate_are_drawn_whatever_their_scores_and_what_a_report_shows(tmp_path):
    result, _ = run(metric_of(latents=26), one_to_one(), tmp_path)
    cell = Observed("lm", "s", "topk", "trained", 3.0, 0, True, result.items)
    (gallery,) = metric_of().to_rate([cell], 12)
    cards = gallery.columns[0].cards
    drawn = [int(card.title.removeprefix("latent ")) for card in cards]
    assert len({*drawn}) == 12 and drawn != sorted(drawn)
    scores = dict(zip(result.items["latent"], result.items["accuracy"], strict=True))
    assert [card.score for card in cards] == [scores[latent] for latent in drawn]
    (shown,) = metric_of().galleries([cell])
    reported = [card.title.split(",")[0] for card in shown.columns[0].cards[3:]]
    assert reported != [card.title for card in cards[:3]]


def test_no_tensor_is_made_on_an_implicit_device(tmp_path):
    model, sae = TokenWorld(), one_to_one()
    wanted, _ = run(metric_of(latents=5), sae, tmp_path / "one", model)
    with torch.device("meta"):
        found, _ = run(metric_of(latents=5), sae, tmp_path / "two", model)
    assert found == wanted
