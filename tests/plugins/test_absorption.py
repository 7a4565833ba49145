"""First-letter absorption where letters, and the words that take their part, are planted."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from saebench_plugins.metrics._absorbed import absorbed, letter_latents
from saebench_plugins.metrics._letter_probes import _QUESTION
from saebench_plugins.metrics.absorption import Absorption, AbsorptionConfig

from saebench_core import (
    EditableModel,
    NotApplicable,
    SparseAutoencoder,
    Subject,
    TokenBatch,
    TopK,
)
from tests.helpers.contexts import FakeContext, at_home
from tests.helpers.plain import Plain

LETTERS = "abcdef"
WORDS = ["".join((first, second, third)) for first, second, third in itertools.product(LETTERS, "mnop", "rstuv")]
VOCABULARY = ["<pad>", *WORDS, "has", "the", "first", "letter:", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "un", "known"]
D_IN = len(LETTERS) + len(WORDS)


class Spelling(Plain):
    """A word's activation has its letter and itself, each a coordinate of its own."""

    modality = "language"
    d_in = D_IN

    def tokenise(self, texts, max_tokens, keep="start"):
        ids = [[VOCABULARY.index(word) for word in self._split(text)] for text in texts]
        width = max(map(len, ids))
        attention = torch.tensor([[place < len(row) for place in range(width)] for row in ids])
        return TokenBatch(torch.tensor([row + [0] * (width - len(row)) for row in ids]), attention, attention)

    def _split(self, text):
        return [part for word in text.split() for part in (("un", "known") if word == "unknown" else (word,))]

    def locate(self, texts, characters):
        found = []
        for text, character in zip(texts, characters, strict=True):
            before = (
                self._split(text[: character + 1].rsplit(None, 1)[0])
                if " " in text[: character + 1].strip() or "\n" in text[: character + 1]
                else []
            )
            word = text[: character + 1].split()[-1]
            found.append(len(before) + (1 if word == "unknown" else 0))
        return torch.tensor(found)

    def sequences(self, split, start, count):
        draw = random.Random(0)
        every = [*WORDS, *WORDS, "unknown"]
        draw.shuffle(every)
        rows = [every[place : place + 11] for place in range(0, 11 * (len(every) // 11), 11)][start : start + count]
        return (
            self.tokenise([" ".join(row) for row in rows], 99)
            if rows
            else TokenBatch(*(torch.zeros(0, 1) for _ in range(3)))
        )

    def words(self, ids):
        texts = [" ".join(VOCABULARY[token] for token in row if token) for row in ids.tolist()]
        return [text.replace("un known", "unknown") for text in texts]

    def pieces(self, ids):
        return [VOCABULARY[token] for token in ids.tolist()]

    def read(self, tokens, site):
        table = torch.zeros(len(VOCABULARY), D_IN)
        for number, word in enumerate(WORDS):
            table[VOCABULARY.index(word), LETTERS.index(word[0])] = 1
            table[VOCABULARY.index(word), len(LETTERS) + number] = 1
        return table[tokens.ids[tokens.kept]]

    def logits(self, tokens, site, patch):
        raise NotImplementedError

    states = resume = logits_from = generate = logits


def faithful():
    return SparseAutoencoder.start(torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(2), "none")


def absorbing(words):
    """Some words' latents also write the letter, and silence it."""
    w_enc, w_dec = torch.eye(D_IN), torch.eye(D_IN)
    for word in words:
        latent, letter = len(LETTERS) + WORDS.index(word), LETTERS.index(word[0])
        w_enc[latent, letter] = -1
        w_dec[latent, letter] = 1
    return SparseAutoencoder.start(w_enc, w_dec, torch.zeros(D_IN), TopK(2), "none")


def run(sae, tmp_path, **options):
    settings = {"words": 500, "min_letters": 6, **options}
    metric = Absorption(AbsorptionConfig(**settings))
    model = Spelling()
    assert isinstance(model, EditableModel)
    context = FakeContext(tmp_path / "store", model, "s")
    prepared = metric.prepare(context)
    return metric.score(Subject(sae, lambda: sae.w_dec), prepared, context), prepared


def test_nothing_is_absorbed_where_letters_have_their_latents(tmp_path):
    result, prepared = run(faithful(), tmp_path)
    assert set(prepared.facts["words"]) < {*WORDS}  # the word of two tokens is left out
    assert len(prepared.facts["words"]) > 100
    assert result.scores["fraction"].value == result.scores["full"].value == 0
    assert result.scores["main_f1"].value == 1.0
    assert result.scores["main_latents"].value == 1.0
    assert result.items["latent"] == list(range(6))


def test_what_words_take_from_letters_is_found(tmp_path):
    _, prepared = run(faithful(), tmp_path)
    tested = [
        word for word, used in zip(prepared.facts["words"], prepared.tensors["tested"].tolist(), strict=True) if used
    ]
    taken = [word for letter in LETTERS for word in [word for word in tested if word[0] == letter][:1]]
    result, _ = run(absorbing(taken), tmp_path)
    expected = [1 / count for count in result.items["words"]]
    assert result.items["full"] == pytest.approx(expected)
    assert result.items["fraction"] == pytest.approx(expected)


def test_shares_by_hand():
    """Words with x w = 1: whole, half carried by another, all by another, and by others that are too far from w."""
    w = torch.tensor([1.0, 0, 0])
    w_dec = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.05, 1, 0]])
    codes = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.0, 1, 0], [0.0, 0, 20.0]])
    sae = SparseAutoencoder.start(torch.eye(3), w_dec, torch.zeros(3), TopK(3), "none")
    found = absorbed(sae, sae.encode(codes), torch.ones(4, 1) * w, [0], w, torch.arange(4))
    assert found[0].tolist() == pytest.approx([0, 0.5, 1, 0])
    assert found[1].tolist() == [0, 0, 1, 1]


def test_a_letter_takes_latents_as_long_as_they_help():
    """Half of the words with the letter have latent 0, the others latent 1; latent 2 is noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4 == 0
    codes = torch.zeros(400, 3)
    codes[labels.nonzero()[::2, 0], 0] = 1
    codes[labels.nonzero()[1::2, 0], 1] = 1
    codes[:, 2] = torch.rand(400, generator=draw)
    sae = SparseAutoencoder.start(torch.eye(3), torch.eye(3), torch.zeros(3), TopK(3), "none")
    tested = torch.rand(400, generator=draw) < 0.3
    main, f1 = letter_latents(sae.encode(codes), labels, tested, 10, 0.03)
    assert sorted(main) == [0, 1]
    assert f1 == 1.0
    assert len(letter_latents(sae.encode(codes), labels, tested, 1, 0.03)[0]) == 1


@pytest.mark.parametrize("unit", [0.01, 10.0, 1000.0])
def test_the_unit_of_activations_is_of_no_account(unit, tmp_path, monkeypatch):
    taken = [letter + "mr" for letter in LETTERS]
    wanted, _ = run(absorbing(taken), tmp_path / "one")
    read = Spelling.read
    monkeypatch.setattr(Spelling, "read", lambda self, tokens, site: unit * read(self, tokens, site))
    found, _ = run(absorbing(taken), tmp_path / "two")
    assert found.items["latent"] == list(range(6))
    for name, score in wanted.scores.items():
        assert found.scores[name].value == pytest.approx(score.value)


def test_a_latent_that_speaks_against_a_letter_is_none_of_its_own():
    """Latent 0 fires on all other words, and tells the letter fully; latent 1 on two thirds of its words."""
    labels = torch.arange(400) % 10 == 0
    codes = torch.zeros(400, 2)
    codes[~labels, 0] = 1
    codes[labels, 1] = torch.tensor([1.0, 1, 0] * 14)[:40]
    sae = SparseAutoencoder.start(torch.eye(2), torch.eye(2), torch.zeros(2), TopK(2), "none")
    main, f1 = letter_latents(sae.encode(codes), labels, torch.arange(400) % 7 == 0, 10, 0.03)
    assert main == [1]
    assert 0.5 < f1 < 1


def test_letters_are_as_heavy_as_all_other_words():
    """A latent on all of a rare letter's words and on a tenth of the others: the letter is said for all of them."""
    labels = torch.arange(1000) % 50 == 0
    codes = torch.zeros(1000, 1)
    codes[labels] = 1
    codes[torch.arange(1000) % 10 == 3] = 1
    sae = SparseAutoencoder.start(torch.eye(1), torch.eye(1), torch.zeros(1), TopK(1), "none")
    tested = torch.arange(1000) % 3 == 0
    true, said = int((labels & tested).sum()), int(((codes[:, 0] > 0) & tested).sum())
    main, f1 = letter_latents(sae.encode(codes), labels, tested, 10, 0.03)
    assert main == [0]
    assert f1 == pytest.approx(2 * true / (true + said))


def test_an_sae_that_never_fires_has_a_latent_all_the_same():
    codes = SparseAutoencoder.start(torch.eye(2), torch.eye(2), torch.zeros(2), TopK(1), "none").encode(
        -torch.ones(40, 2)
    )
    main, f1 = letter_latents(codes, torch.arange(40) % 4 == 0, torch.arange(40) % 3 == 0, 10, 0.03)
    assert len(main) == 1
    assert 0 <= f1 <= 1


def test_a_model_that_does_not_spell(tmp_path):
    result, _ = run(faithful(), tmp_path, min_letters=20)
    assert all(isinstance(score, NotApplicable) for score in result.scores.values())
    assert "6 first letters" in result.scores["fraction"].reason
    assert set(result.scores) == set(Absorption(AbsorptionConfig()).scores())


def test_prompts_ask_about_the_last_word():
    from saebench_plugins.metrics._letter_probes import _prompt

    text = _prompt(["amr", "bmr"], "cmr", 2, torch.Generator().manual_seed(0))
    assert text.endswith(f"\ncmr{_QUESTION}")
    assert text.count(_QUESTION) == 3


def test_no_tensor_is_made_on_an_implicit_device(tmp_path, monkeypatch):
    sae = faithful()
    wanted, _ = run(sae, tmp_path / "one")
    kept = Spelling.__init__

    def started(self):
        kept(self)
        at_home(self, "sequences", "tokenise", "locate", "read", "states")

    monkeypatch.setattr(Spelling, "__init__", started)
    with torch.device("meta"):
        found, _ = run(sae, tmp_path / "two")
    assert found == wanted
