"""Going on from edited activations, against whole forward passes with a hook of their own."""

from __future__ import annotations

import contextlib

import pytest
import torch
from saebench_plugins.backbones import _hf_beginnings
from saebench_plugins.backbones._hf_editing import pieces_of
from saebench_plugins.backbones.hf_lm import HfLm, HfLmConfig

from saebench_core import EditableModel, InputError
from tests.helpers.contexts import FakeContext
from tests.helpers.tiny_lm import save_tiny_llama, write_corpus

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w11 w12 w13"]


SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def other_family(name):
    """A model of another family: places that are learned, or layers that see a few tokens back."""
    import transformers

    special = {"vocab_size": 44, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    if name == "gpt2":
        config = transformers.GPT2Config(**special, n_positions=64, n_embd=16, n_layer=3, n_head=2)
        return transformers.GPT2LMHeadModel(config)
    window = 8 if "near" in name else 64
    config = transformers.Gemma2Config(**special, **SIZES, num_key_value_heads=1, head_dim=8, sliding_window=window)
    return transformers.Gemma2ForCausalLM(config)


@pytest.fixture(scope="module", params=["llama", "llama without BOS", "gpt2", "gemma2", "nearsighted gemma2"])
def lm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    save_tiny_llama(folder / "model", bos=request.param != "llama without BOS")
    if not request.param.startswith("llama"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            other_family(request.param).save_pretrained(folder / "model")
    corpus = {"type": "text_files", "paths": [str(write_corpus(folder / "corpus.txt"))], "document": "line"}
    backbone = HfLm(HfLmConfig(model=str(folder / "model"), corpus=corpus, context=16, max_tokens=400))
    backbone.prepare(FakeContext(folder / "store"))
    return backbone


def whole(lm, tokens, number, edit=None):
    """Return states after a layer and the last token's logits of plain forward passes, one sequence at a time."""
    states, logits = [], []

    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden.detach())
        if edit is None:
            return output
        hidden = edit(len(states) - 1, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for ids, attention in zip(tokens.ids, tokens.attention, strict=True):
        handle = lm._layers[number].register_forward_hook(hook)
        try:
            logits.append(lm._model(input_ids=ids[attention][None]).logits[0, -1])
        finally:
            handle.remove()
    return states, torch.stack(logits)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_goes_on_from_states_as_if_from_the_start(lm, number):
    assert isinstance(lm, EditableModel)
    site = f"layers.{number}"
    tokens = lm.tokenise(TEXTS, 16)
    states = lm.states(tokens, site)
    expected, logits = whole(lm, tokens, number)
    for found, one, attention in zip(states, expected, tokens.attention, strict=True):
        torch.testing.assert_close(found[attention], one[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.resume(tokens, site, states), logits, rtol=1e-4, atol=1e-4)
    again, _ = whole(lm, tokens, number)  # no layer is left passed by
    assert all(torch.equal(one, two) for one, two in zip(expected, again, strict=True))


def test_an_edit_changes_what_follows_and_gradients_reach_it(lm):
    tokens = lm.tokenise(TEXTS, 16)
    states = lm.states(tokens, "layers.1")
    added = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edited = states.index_put(
        (torch.arange(4), torch.tensor([1, 0, 2, 0])), states[torch.arange(4), [1, 0, 2, 0]] + added
    )
    found = lm.resume(tokens, "layers.1", edited)
    found.square().sum().backward()
    gradient = added.grad.clone()
    added.grad = None

    def edit(place, hidden):
        hidden = hidden.clone()
        hidden[0, [1, 0, 2, 0][place]] += added[place]
        return hidden

    _, logits = whole(lm, tokens, 1, edit)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert (found - whole(lm, tokens, 1)[1]).abs().max() > 0.01
    logits.square().sum().backward()
    torch.testing.assert_close(gradient, added.grad, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in lm._model.parameters())


def test_words_are_those_of_greedy_generation(lm):
    tokens = lm.tokenise(TEXTS, 16)
    found = lm.generate(tokens, 5, "layers.1", None)
    for ids, attention, one in zip(tokens.ids, tokens.attention, found, strict=True):
        prompt = ids[attention][None]
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        known = lm._model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert torch.equal(known[0, prompt.shape[1] :], one)
    states = lm.states(tokens, "layers.1")
    assert torch.equal(lm.generate(tokens, 5, "layers.1", states), found)
    turned = lm.generate(tokens, 5, "layers.1", states.flip(-1))
    assert not torch.equal(turned, found)
    alone = [lm.generate(lm.tokenise([text], 16), 5, "layers.1", None)[0] for text in TEXTS]
    assert torch.equal(torch.stack(alone), found)
    assert lm.words(torch.tensor([[5, 6, 1]])) == [" ".join(lm._tokens.tokenizer.convert_ids_to_tokens([5, 6]))]


SHARED = ["w1 w2 w3 w9", "w1 w2 w3 w8 w7", "w4 w5", "w1 w2 w3 w6 w5 w9"]


@contextlib.contextmanager
def tokens_given(lm):
    """Count the tokens that forward passes are given."""
    counted = []
    handle = lm._model.register_forward_pre_hook(
        lambda module, args, kwargs: counted.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield counted
    handle.remove()


def begun(lm):
    """Texts of which three share a beginning of three words, and one shares none."""
    tokens = lm.tokenise(SHARED, 16)
    before = len(lm._tokens.begin([]))
    return tokens, torch.tensor([before + 3, before + 3, 0, before + 3])


def test_what_is_after_a_beginning_is_as_without(lm):
    tokens, own = begun(lm)
    states = lm.states(tokens, "layers.1")
    rows = states[torch.arange(4), own] + 9 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    rows.requires_grad_()
    both = []
    for given in (None, own):
        edited = states.index_put((torch.arange(4), own), rows)
        found = lm.resume(tokens, "layers.1", edited, given)
        both.append((found.detach(), torch.autograd.grad(found.square().sum(), rows)[0]))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    for given in (None, states, edited.detach()):
        plain = lm.generate(tokens, 5, "layers.1", given)
        assert torch.equal(lm.generate(tokens, 5, "layers.1", given, own), plain)
    assert not torch.equal(plain, lm.generate(tokens, 5, "layers.1", None, own))


def test_a_beginning_is_computed_once(lm):
    tokens, own = begun(lm)
    if not lm._beginnings.can_pad(tokens, 1):
        pytest.skip("its layers see too few tokens")
    states, left = lm.states(tokens, "layers.0"), 4 * int((tokens.attention.sum(1) - own).max())
    lm._beginnings._kept.clear()
    with tokens_given(lm) as first:
        lm.generate(tokens, 1, "layers.0", None, own)
    assert sum(first) == int(own.max()) + left
    with tokens_given(lm) as again:
        lm.generate(tokens, 1, "layers.0", None, own)
    assert sum(again) == left < tokens.ids.numel()
    with tokens_given(lm) as others:
        lm.resume(tokens, "layers.0", states, own)
    assert sum(others) == left + 1  # one token asks what layers return


def test_an_output_layer_may_be_no_module(lm, monkeypatch):
    tokens, own = begun(lm)
    states = lm.states(tokens, "layers.1")
    expected, words = lm.resume(tokens, "layers.1", states, own), lm.generate(tokens, 3, "layers.1", None, own)
    monkeypatch.setattr(lm._model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(lm.resume(tokens, "layers.1", states, own), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.generate(tokens, 3, "layers.1", None, own), words)


def test_no_more_beginnings_are_kept_than_there_is_room_for(lm, monkeypatch):
    monkeypatch.setattr(_hf_beginnings, "_KEPT", 2)
    tokens = lm.tokenise(["w1 w2", "w3 w4", "w5 w6"], 16)
    own = torch.ones(3, dtype=torch.int64) + len(lm._tokens.begin([]))
    for _ in range(2):
        assert torch.equal(lm.generate(tokens, 2, "layers.1", None, own), lm.generate(tokens, 2, "layers.1", None))
    assert len(lm._beginnings._kept) <= 2


def test_a_model_that_cannot_go_on_computes_everything(lm, monkeypatch):
    tokens, own = begun(lm)
    expected = lm.generate(tokens, 3, "layers.1", None)
    forward = lm._model.forward

    def forgetful(input_ids, attention_mask=None, use_cache=None, past_key_values=None, position_ids=None, **options):
        if position_ids is not None:
            position_ids = torch.zeros_like(position_ids)
        return forward(
            input_ids=input_ids,
            attention_mask=None if past_key_values is not None else attention_mask,
            use_cache=use_cache,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **options,
        )

    monkeypatch.setattr(lm._model, "forward", forgetful)
    monkeypatch.setattr(lm._beginnings, "_reach", None)
    assert not lm._beginnings.can_pad(tokens) and lm._beginnings._reach == 0
    states = lm.states(tokens, "layers.1")
    torch.testing.assert_close(lm.resume(tokens, "layers.1", states, own), lm.resume(tokens, "layers.1", states))
    monkeypatch.undo()
    assert torch.equal(lm.generate(tokens, 3, "layers.1", None, own), expected)


def test_characters_are_found_among_tokens(lm):
    texts = ["w1 w22 w3", "w12 w2"]
    places = lm.locate(texts, [texts[0].index("22") + 1, 0])
    tokens = lm.tokenise(texts, 16)
    found = [lm._tokens.tokenizer.decode(ids[place]) for ids, place in zip(tokens.ids, places, strict=True)]
    assert found == ["w22", "w12"]
    with pytest.raises(InputError, match="no token of 'w1 w2' holds its character 2"):
        lm.locate(["w1 w2"], [2])


def test_pieces_join_to_the_text(lm):
    ids = lm.tokenise(["w1 w22 w3"], 16).ids[0]
    pieces = lm.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == lm._tokens.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    assert pieces[-1].strip() == "w3"


def test_a_character_of_several_tokens_goes_to_the_last():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = tokenizer("a é€", add_special_tokens=False)["input_ids"]
    assert pieces_of(tokenizer, ids) == ["a", " ", "", "é", "", "", "€"]
