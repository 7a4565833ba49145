"""Judges of descriptions: a language model behind a server, how its answers are read, and an embedding."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.metrics._interp_answers import answered, auroc
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics._interp_dialogues import DETECTION, PAPER, SAEBENCH, marked, read_list, read_numbers
from saebench_plugins.metrics._interp_judges import EmbeddingJudge, Mark
from saebench_plugins.metrics._text_encoder import TextEncoder
from saebench_plugins.metrics._windows import Window, carried

from saebench_core import InputError, MissingPackageError, NotApplicable, SparseAutoencoder, Subject, TopK
from tests.helpers.contexts import FakeContext
from tests.helpers.interp import (
    D_IN,
    VOCABULARY,
    WIDTH,
    Knows,
    TokenWorld,
    first_scores,
    llm,
    metric_of,
    one_to_one,
    run,
    server,
)


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
    assert prepared.floors == {"accuracy": 0.5, "yield": 0.0, "above_0.7": 0.0}
    assert result.scores["answered"].value == 1.0
    assert {key for _, key in knows.asked} == {"Bearer secret"}
    assert not [path for path in (tmp_path / "store").rglob("*.json") if "secret" in path.read_text()]
    assert set(result.scores) == set(metric.scores())


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


def test_a_judge_that_mostly_says_nothing_gives_no_score(tmp_path):
    with server(Knows(wrong=["x", "", ""] * 9)) as url:
        metric = metric_of(llm(url, concurrency=1), latents=3, shuffled=False)
        result, _ = run(metric, one_to_one(), tmp_path)
    for name in ("accuracy", "yield", "above_0.7", "accuracy_shuffled"):
        assert "said something of 0% of the windows" in result.scores[name].reason
    assert result.scores["answered"].value == 0
    assert result.scores["refused"].value + result.scores["unparsed"].value == 3 * 20
    assert result.scores["undescribed"].value == 2
    assert set(result.scores) == set(metric.scores())


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


def test_a_character_of_several_tokens_is_marked_whole():
    pieces, values = ["ラ", "", "", "ク", " x", "", "é"], torch.tensor([0.0, 2.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    assert carried(pieces, values.tolist()) == (["ラ", "ク", " x", "é"], [0.0, 2.0, 0.0, 1.0])
    assert marked(pieces, values > 0) == "ラ<<ク>> x<<é>>"
    shown = DETECTION.show(pieces, Window(0, torch.arange(7), values), 2.0)
    assert shown == 'ラ<<ク>> x<<é>>\n   ("ク", 10), ("é", 5)'


def test_answers_by_hand():
    marks = [Mark(True, None), Mark(False, None), Mark(None, None), Mark(True, None), Mark(False, None)]
    found = answered(marks, [True, True, False, False, False])
    assert found["accuracy"] == 2 / 5  # no answer is a wrong answer
    assert found["answered"] == 4 / 5
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
    grid = torch.tensor([[1, 5, 2, 9], [3, 5, 4, 9], [9, 9, 9, 9], [5, 6, 7, 8], [10, 11, 5, 12], [13, 14, 15, 16]])
    embedded = counted_words(["".join(model.pieces(ids)) for ids in grid])
    judge = EmbeddingJudge(
        lambda windows: [model.pieces(window.ids) for window in windows], counted_words, embedded, around=1
    )
    values = torch.tensor([0.0, 1, 0, 0])
    description = judge.describe([Window(0, grid[0], values), Window(1, grid[1], values)])
    tested = [Window(number, grid[number], torch.zeros(4)) for number in range(2, 6)]
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


def test_windows_are_embedded_once_for_all_saes(tmp_path, monkeypatch):
    embedded = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda encoder, texts: embedded.extend(texts) or embed(encoder, texts))
    judge = {"type": "embedding", "encoder": save_tiny_bert(tmp_path / "bert")}
    model, metric = TokenWorld(), metric_of(judge, latents=5, tested=20)
    context = FakeContext(tmp_path / "store", model, "s")
    prepared = metric.prepare(context)
    windows = ["".join(model.pieces(ids)) for ids in model.ids.view(-1, WIDTH)]
    assert embedded == windows
    embedded.clear()
    for _ in range(2):
        metric.score(Subject(one_to_one(), lambda: None), prepared, context)
    assert len(embedded) == 2 * 5 * 6  # what is around the largest codes of those that are shown


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
