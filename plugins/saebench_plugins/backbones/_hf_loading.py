"""Loading of transformers models: sizes without weights, GGUF files, tokens, random weights."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from saebench_core import InputError, Packing, TokenBatch
from saebench_plugins.backbones._gguf_header import read_header

__all__ = ["Sizes", "Tokens", "config_sizes", "convert_gguf", "decoder_layers", "gguf_sizes", "quiet", "randomise"]


class Sizes(NamedTuple):
    layers: int
    width: int
    vocabulary: int
    parameters: int


@dataclass(frozen=True)
class Tokens:
    """The tokenizer, and the one rule of which positions are rows."""

    tokenizer: Any
    packing: Packing
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, length: int, bos: bool, skip_first: int) -> Tokens:
        """Read the special tokens of a tokenizer."""
        begins, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        special = frozenset(token for token in (*tokenizer.all_special_ids, begins, eos, pad) if token is not None)
        packing = Packing(length, begins if bos else None, eos, special, skip_first)
        return cls(tokenizer, packing, next(token for token in (pad, eos, 0) if token is not None))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return token ids without special tokens of the tokenizer's own making."""
        return cast("list[list[int]]", self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])

    def begin(self, ids: list[int]) -> list[int]:
        """Put BOS in front if sequences begin with it."""
        return ids if self.packing.bos is None else [self.packing.bos, *ids]

    def cut(self, ids: list[int], length: int, keep: Literal["start", "end"]) -> list[int]:
        """Return at most so many tokens of a text, BOS in front and counted."""
        rest = length - len(self.begin([]))
        return self.begin(ids[:rest] if keep == "start" else ids[max(0, len(ids) - rest) :])

    def batch(self, flat: Tensor, lengths: Tensor, device: torch.device) -> TokenBatch:
        """Pad sequences that lie end to end on the right, whatever side the tokenizer prefers."""
        lengths = lengths.to(device)
        width = max(1, int(lengths.max())) if len(lengths) else 1
        real = torch.arange(width, device=device) < lengths[:, None]
        ids = torch.full(real.shape, self.pad, dtype=torch.int64, device=device)
        ids[real] = flat.to(device, torch.int64)
        kept = real & ~torch.isin(ids, torch.tensor(sorted(self.packing.special), dtype=torch.int64, device=device))
        kept &= kept.cumsum(1) > self.packing.skip_first
        attention = real.clone()
        attention[:, 0] = True  # of an empty text too: attention over nothing is not a number
        return TokenBatch(ids, attention, kept)


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"{type(model).__name__} has no list of {count} decoder layers that could be read")


@torch.no_grad()
def randomise(model: nn.Module, generator: Callable[[str], torch.Generator]) -> None:
    """Redraw every parameter from a normal with its own mean and deviation; each has its own generator."""
    for name, parameter in model.named_parameters():
        deviation, mean = torch.std_mean(parameter.to(torch.float32), correction=0)
        noise = torch.randn(parameter.shape, generator=generator(f"random weights/{name}"), device="cpu")
        if noise.numel() > 1:
            noise = (noise - noise.mean()) / noise.std(correction=0)
        parameter.copy_(noise.to(parameter.device) * deviation + mean)


def config_sizes(config: Any) -> Sizes:
    text = config.get_text_config()
    width, layers, vocabulary = int(text.hidden_size), int(text.num_hidden_layers), int(text.vocab_size)
    inner = getattr(text, "intermediate_size", None) or 4 * width
    inside = sum(inner) if isinstance(inner, list) else layers * inner  # some have a size for each layer
    embeddings = vocabulary * width * (1 if getattr(text, "tie_word_embeddings", False) else 2)
    return Sizes(layers, width, vocabulary, embeddings + layers * 4 * width**2 + 3 * width * inside)


def gguf_sizes(file: Path) -> Sizes:
    try:
        settings, elements = read_header(file)
        architecture = settings["general.architecture"]
        layers = int(settings[f"{architecture}.block_count"])
        width = int(settings[f"{architecture}.embedding_length"])
        vocabulary = int(settings["tokenizer.ggml.tokens"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{file.name} is no GGUF file of a language model ({error})") from error
    return Sizes(layers, width, vocabulary, sum(elements.values()))


def convert_gguf(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a GGUF file's dequantised weights and tokenizer as transformers saves a model.

    The reader below is used directly: ``from_pretrained(gguf_file=...)`` gives the same weights, but needs one more
    package, and returns a model that it then refuses to save.
    """
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        make: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model = make(config, dtype=dtype)
        read: Any = load_gguf_checkpoint
        tensors = read(str(file), return_tensors=True, model_to_load=model, torch_dtype=dtype)["tensors"]
        model.to_empty(device="cpu")
        model.tie_weights()
        model.load_state_dict(tensors, strict=False)
        _check_filled(model, tensors, file)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_filled(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a file that lacks a tensor; one that is tied to another needs none of its own."""
    state = model.state_dict()
    filled = {state[name].data_ptr() for name in tensors}
    missing = sorted(name for name, tensor in state.items() if tensor.data_ptr() not in filled)
    if missing:
        raise InputError(f"{file.name} lacks {', '.join(missing[:5])}; it cannot be read as a {type(model).__name__}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars of loading off the terminal; errors are raised as ever."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
