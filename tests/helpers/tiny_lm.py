"""A random Llama of a few thousand weights with a word tokenizer, written to a folder as transformers saves models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

WORDS = tuple(f"w{number}" for number in range(40))
BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"


def save_tiny_llama(folder: Path, bos: bool = True, padding_side: str = "left", layers: int = 3) -> Path:
    """Write model and tokenizer; the tokenizer prefers left padding, as some do, to be ignored."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = [*([BOS] if bos else []), EOS, PAD, UNK]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"eos_token": EOS, "pad_token": PAD, "unk_token": UNK, "padding_side": padding_side}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names, **({"bos_token": BOS} if bos else {}))
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_corpus(path: Path, documents: int = 200, seed: int = 0) -> Path:
    """Write one document a line, 3 to 20 words each."""
    draw = random.Random(seed)
    lines = (" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) for _ in range(documents))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
