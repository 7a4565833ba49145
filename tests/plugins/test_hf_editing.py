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


PLAIN = ["llama", "llama without BOS", "gpt2", "gemma2", "nearsighted gemma2"]
OTHERS = ["mamba", "rwkv", "openai-gpt", "gemma4_text"]
"""Without a past, with states of layers handed on, with lists, with keys that layers share."""

SPECIAL = {"vocab_size": 44, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
SMALL = {"n_positions": 64, "n_embd": 16, "n_layer": 3, "n_head": 2}
OPTIONS = {
    "gpt2": SMALL,
    "openai-gpt": SMALL,
    "gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64},
    "nearsighted gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 3},
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 3, "context_length": 64},
    "gemma4_text": {
        **SIZES,
        "num_hidden_layers": 5,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 44,
    },
}


def prepared(name, folder, options=None):
    """A backbone over a small random model of a family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    save_tiny_llama(folder / "model", bos=name != "llama without BOS")
    if not name.startswith("llama"):
        config = AutoConfig.for_model(name.split()[-1], **{**SPECIAL, **(options or OPTIONS[name])})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    corpus = {"type": "text_files", "paths": [str(write_corpus(folder / "corpus.txt"))], "document": "line"}
    backbone = HfLm(HfLmConfig(model=str(folder / "model"), corpus=corpus, context=16, max_tokens=400))
    backbone.prepare(FakeContext(folder / "store"))
    return backbone


@pytest.fixture(scope="module", params=PLAIN)
def lm(request, tmp_path_factory):
    return prepared(request.param, tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module", params=[*PLAIN, *OTHERS])
def any_lm(request, tmp_path_factory):
    return prepared(request.param, tmp_path_factory.mktemp("lm"))


def whole(lm, tokens, number, edit=None):
    """Return states after a layer and the last token's logits of plain forward passes, one sequence at a time."""
    states, logits = [], []

    def hook(module, inputs, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        states.append(hidden.detach())
        if edit is None:
            return output
        hidden = edit(len(states) - 1, hidden)
        return hidden if isinstance(output, torch.Tensor) else type(output)([hidden, *output[1:]])

    for ids, attention in zip(tokens.ids, tokens.attention, strict=True):
        handle = lm._layers[number].register_forward_hook(hook)
        try:
            logits.append(lm._model(input_ids=ids[attention][None]).logits[0, -1])
        finally:
            handle.remove()
    return states, torch.stack(logits)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_goes_on_from_states_as_if_from_the_start(any_lm, number):
    lm = any_lm
    assert isinstance(lm, EditableModel)
    site = f"layers.{number}"
    tokens = lm.tokenise(TEXTS, 16)
    states = lm.states(tokens, site)
    expected, logits = whole(lm, tokens, number)
    for found, one, attention in zip(states, expected, tokens.attention, strict=True):
        torch.testing.assert_close(found[attention], one[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.resume(tokens, site, states), logits, rtol=1e-4, atol=1e-4)
    every = lm.logits_from(tokens, site, states)[torch.arange(4), tokens.attention.sum(1) - 1]
    torch.testing.assert_close(every, logits, rtol=1e-4, atol=1e-4)
    again, _ = whole(lm, tokens, number)  # no layer is left passed by
    assert all(torch.equal(one, two) for one, two in zip(expected, again, strict=True))


def test_an_edit_changes_what_follows_and_gradients_reach_it(any_lm):
    lm = any_lm
    tokens = lm.tokenise(TEXTS, 16)
    states = lm.states(tokens, "layers.1")
    added = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edited = states.index_put(
        (torch.arange(4), torch.tensor([1, 0, 2, 0])), states[torch.arange(4), [1, 0, 2, 0]] + added
    )
    found = lm.resume(tokens, "layers.1", edited)
    if lm._model.config.model_type == "rwkv":
        return  # writes over what gradients would need
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


def test_words_are_those_of_greedy_generation(any_lm):
    lm = any_lm
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
    lm.resume(tokens, "layers.0", states, own)  # tries once whether layers can be passed by
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


def test_layers_are_passed_by_where_that_is_the_same(any_lm):
    """All is computed where keys are shared or states handed on; else one token asks what layers return."""
    lm, counted = any_lm, []
    tokens = lm.tokenise(TEXTS, 16)
    states = lm.states(tokens, "layers.1")
    lm.resume(tokens, "layers.1", states)
    inside = next(module for module in lm._layers[0].modules() if not [*module.children()])
    handle = inside.register_forward_hook(lambda module, inputs, output: counted.append(inputs[0].shape[1]))
    try:
        lm.resume(tokens, "layers.1", states)
    finally:
        handle.remove()
    whole_pass = lm._model.config.model_type in ("rwkv", "gemma4_text")
    assert counted == [tokens.ids.shape[1] if whole_pass else 1]


def test_layers_of_several_streams_are_refused(tmp_path):
    options = {
        **OPTIONS["gemma4_text"],
        "intermediate_size": [32] * 5,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 5,
    }
    lm = prepared("gemma3n_text", tmp_path, options)
    assert lm.describe().sites["layers.3"] == 16
    with pytest.raises(InputError, match=r"shape \(2, 1, .*layers return \(sequences, tokens, width\)"):
        lm.read(lm.tokenise(["w1 w2 w3"], 16), "layers.1")


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
