"""Causal language models of the transformers library: from a hub, a local folder, or a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from saebench_core import (
    ActivationBatch,
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Context,
    InputError,
    Json,
    Patch,
    PluginError,
    Split,
    TextSource,
    TokenBatch,
    hookimpl,
    split_of_text,
)
from saebench_plugins.backbones._hf_beginnings import Beginnings
from saebench_plugins.backbones._hf_corpus import Corpus, packed_corpora
from saebench_plugins.backbones._hf_editing import generated, logits_from, pieces_of, place_of, resumed, states_after
from saebench_plugins.backbones._hf_forward import patched, rows_after
from saebench_plugins.backbones._hf_loading import Tokens, decoder_layers, randomise
from saebench_plugins.backbones._hf_passing import FirstLayers
from saebench_plugins.backbones._hf_source import ModelSource

__all__ = ["HfLm", "HfLmConfig"]

_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CPU_FLOPS: Final = {"bf16": 4e11, "fp32": 1.5e11}  # rough rates of SmolLM2-135M on two cores
_CUDA_FLOPS: Final = 5e13


class HfLmConfig(BackboneConfig):
    """A causal language model. Sites are ``layers.N``: the residual stream after decoder layer N.

    Documents are joined by EOS and cut into sequences that begin with BOS. Special tokens are read by the model,
    and their positions are no rows. Nor is the first ordinary token of a sequence: where models park their
    attention, norms are enormous, and a few such rows outweigh all others. In SmolLM2-135M after layer 15 the norm at
    BOS is 140 times the median; at the token after it too, in one sequence of fifty; no later token exceeds four times.
    """

    type: Literal["hf_lm"] = "hf_lm"
    model: str = Field(description="Hub name, local folder, or .gguf file; package:PKG/FILE for installed packages.")
    revision: str | None = Field(None, description="Commit or tag of a hub's model: pin it, a branch may move.")
    corpus: TextSource = Field(description="Where the texts come from.")
    context: int = Field(128, ge=2, description="Tokens in a sequence.")
    max_tokens: PositiveInt = Field(2_000_000, description="Rows of the train split at which the corpus is cut.")
    holdout: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Share of the documents kept for evaluation, and as much for calibration; both are cut at this "
        "share of `max_tokens`.",
    )
    bos: bool = Field(True, description="Begin every sequence with BOS, if the tokenizer has one.")
    skip_first: int = Field(
        1, ge=0, description="Leading ordinary tokens of a sequence that are no rows either: attention sinks."
    )
    max_norm_multiple: PositiveFloat | None = Field(
        10.0,
        description="Rows with a norm above so many medians are in no split (probes still read them); null: no limit.",
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: every tensor redrawn from a normal with its mean and deviation."
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: the run's backbone_dtype.")
    forward_batch: PositiveInt = Field(16, description="Sequences in a forward pass.")


class HfLm(Backbone):
    """Reads, streams and patches a causal language model."""

    def __init__(self, config: HfLmConfig) -> None:
        self.config = config
        self._source = ModelSource(config.model, config.revision)
        self._model: Any = None
        self._layers: nn.ModuleList = nn.ModuleList()
        self._beginnings: Beginnings
        self._tokens: Tokens
        self._device = torch.device("cpu")
        self._corpora: dict[Split, Corpus] = {}
        self._limits: dict[str, float] = {}
        self._first: dict[str, FirstLayers] = {}

    def describe(self) -> BackboneDescription:
        """Return sites and sizes from the model's configuration, or a GGUF file's header."""
        sizes = self._source.sizes
        slim = self.config.dtype == "bf16"
        layers = [int(site.rpartition(".")[2]) + 1 for site in self.config.sites or () if site in self._sites()]
        share = max(layers, default=sizes.layers) / sizes.layers
        speed = _CUDA_FLOPS if torch.cuda.is_available() else _CPU_FLOPS["bf16" if slim else "fp32"]
        body = sizes.parameters - sizes.vocabulary * sizes.width
        return BackboneDescription(
            modality="language",
            sites=self._sites(),
            memory_bytes=sizes.parameters * (2 if slim else 4),
            disk_bytes=self._corpus_bytes() + (sizes.parameters * (2 if slim else 4) if self._source.is_gguf else 0),
            seconds_per_row=2 * body * share / speed,
            flops_per_row=2 * body * share,
            whole_pass=sizes.parameters / (body * share),
            facts={
                "layers": sizes.layers,
                "vocabulary": sizes.vocabulary,
                "parameters": sizes.parameters,
                "dtype": self.config.dtype,
            },
        )

    def _corpus_bytes(self) -> int:
        """Return the room of the packed corpus: an id for each token, two counts for each sequence."""
        rows = self.config.max_tokens * (1 + 2 * self.config.holdout)
        return math.ceil(4 * rows * (1 + 2 / self.config.context))

    def _sites(self) -> dict[str, int]:
        return {f"layers.{number}": self._source.sizes.width for number in range(self._source.sizes.layers)}

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the model's files (a hub's name and revision), and of the corpus."""
        return {"model": self._source.fingerprint, "corpus": self.config.corpus.fingerprint()}

    def prepare(self, context: Context) -> None:
        """Load the model, and tokenise the corpus once."""
        dtype = _DTYPES.get(self.config.dtype, context.backbone_dtype)
        self._device = context.device
        tokenizer, model = self._source.load(context, dtype)
        self._model = model.to(context.device).eval().requires_grad_(False)
        self._tokens = Tokens.of(tokenizer, self.config.context, self.config.bos, self.config.skip_first)
        self._layers = decoder_layers(self._model, self._source.sizes.layers)
        if self.config.weights == "random":
            randomise(self._model, context.generator)
        self._beginnings = Beginnings(self._model)
        self._corpora = self._pack(context)

    def _pack(self, context: Context) -> dict[Split, Corpus]:
        config = self.config
        identity: dict[str, Json] = {
            "product": "packed corpus",
            "tokenizer": self._source.fingerprint,
            "corpus": {"config": config.corpus.model_dump(mode="json"), "files": config.corpus.fingerprint()},
            "packing": config.model_dump(include={"context", "max_tokens", "holdout", "bos", "skip_first", "seed"}),
        }

        held_out = math.ceil(config.holdout * config.max_tokens)
        goals: dict[Split, int] = {"train": config.max_tokens, "calibration": held_out, "evaluation": held_out}
        corpora = packed_corpora(
            config.corpus,
            self._tokens,
            goals,
            lambda text: split_of_text(text, config.seed, config.holdout),
            identity,
            context,
        )
        empty = [split for split, corpus in corpora.items() if not corpus.rows]
        if empty:
            raise InputError(
                f"the corpus leaves no token for the {' and the '.join(empty)} split; "
                f"give more documents, or a `holdout` above {config.holdout:g}"
            )
        return corpora

    def rows_available(self, site: str, split: Split) -> int:
        """Return the number of kept positions of a split."""
        return self._corpora[split].rows

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield activations after the site's layer.

        Forward passes always take the same blocks of ``forward_batch`` sequences, so that a value does not depend
        on where the stream is cut. Rows are numbered before those above the norm limit are left out.
        """
        size = self.config.forward_batch
        per_block = [int(part.sum()) for part in torch.split(self._corpora[split].kept, size)]
        ends = torch.tensor([0, *per_block]).cumsum(0).tolist()
        for block, (first, end) in enumerate(pairwise(ends)):
            low, high = max(start, first), min(start + rows, end)
            if low < high:
                tokens = self.sequences(split, block * size, size)
                values = self._forward_to(tokens, site)[low - first : high - first]
                values = values[values.norm(dim=1) <= self._norm_limit(site)]
                yield ActivationBatch(values, values)

    def _norm_limit(self, site: str) -> float:
        """Return the largest norm of a row that is used: a few attention sinks outweigh all other rows together.

        The median is that of the first block of the train split, whatever is streamed.
        """
        multiple = self.config.max_norm_multiple
        if multiple is None:
            return math.inf
        if site not in self._limits:
            first = self._forward_to(self.sequences("train", 0, self.config.forward_batch), site)
            self._limits[site] = multiple * float(first.norm(dim=1).median())
        return self._limits[site]

    def tokenise(self, texts: Sequence[str], max_tokens: int, keep: Literal["start", "end"] = "start") -> TokenBatch:
        """Return the start or the end of the texts' tokens; BOS and dropped positions as in `stream`."""
        ids = [self._tokens.cut(ids, max_tokens, keep) for ids in self._tokens.encode(list(texts))]
        flat = torch.tensor([token for text in ids for token in text], dtype=torch.int64)
        return self._tokens.batch(flat, torch.tensor([len(text) for text in ids], dtype=torch.int64), self._device)

    def sequences(self, split: Split, start: int, count: int) -> TokenBatch:
        """Return the split's packed sequences."""
        corpus = self._corpora[split]
        lengths = corpus.lengths[start : start + count]
        first = start * self.config.context
        return self._tokens.batch(corpus.ids[first : first + int(lengths.sum())], lengths, self._device)

    def read(self, tokens: TokenBatch, site: str) -> Float[Tensor, "kept d_in"]:
        """Return the activations of the kept tokens, ``forward_batch`` sequences at a time."""
        size = self.config.forward_batch
        parts = [TokenBatch(*part) for part in zip(*(torch.split(tensor, size) for tensor in tokens), strict=True)]
        return torch.cat([self._forward_to(part, site) for part in parts])

    def _forward_to(self, tokens: TokenBatch, site: str) -> Float[Tensor, "kept d_in"]:
        return rows_after(self._layer(site), tokens.kept, lambda: self._call(tokens))

    def logits(
        self, tokens: TokenBatch, site: str, patch: Patch | None
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return fp32 logits; ``patch`` replaces the kept tokens' activations after the site's layer."""
        output = patched(self._layer(site), tokens.kept, patch, lambda: self._call(tokens))
        return cast(Tensor, output.logits.to(torch.float32))

    def locate(self, texts: Sequence[str], characters: Sequence[int]) -> Int[Tensor, " texts"]:
        """Return the place of the last token that holds a character of each text."""
        before = len(self._tokens.begin([]))
        pairs = zip(texts, characters, strict=True)
        return torch.tensor([before + place_of(self._tokens.tokenizer, *pair) for pair in pairs], dtype=torch.int64)

    def states(self, tokens: TokenBatch, site: str) -> Float[Tensor, "sequences length d_in"]:
        """Return the residual stream after the site's layer at every position, in the model's number format."""
        return states_after(self._layer(site), lambda: self._call(tokens))

    def resume(
        self,
        tokens: TokenBatch,
        site: str,
        states: Float[Tensor, "sequences length d_in"],
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Float[Tensor, "sequences vocabulary"]:
        """Return fp32 logits after each sequence's last token; layers up to the site are passed by."""
        return resumed(self._model, self._up_to(site), self._beginnings.begun(tokens, own), states)

    def logits_from(
        self, tokens: TokenBatch, site: str, states: Float[Tensor, "sequences length d_in"]
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return fp32 logits at every position; layers up to the site are passed by."""
        return logits_from(self._model, self._up_to(site), tokens, states)

    def generate(
        self,
        tokens: TokenBatch,
        count: int,
        site: str,
        states: Float[Tensor, "sequences length d_in"] | None,
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Int[Tensor, "sequences count"]:
        """Return the likeliest next tokens, with ``states`` after the site's layer if they are given."""
        return generated(self._model, self._layer(site), self._beginnings, tokens, count, states, own)

    def words(self, ids: Int[Tensor, "sequences count"]) -> list[str]:
        """Return the text of tokens, special ones left out."""
        return cast("list[str]", self._tokens.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True))

    def pieces(self, ids: Int[Tensor, " count"]) -> list[str]:
        """Return the text of each token, with its blanks."""
        return pieces_of(self._tokens.tokenizer, ids.tolist())

    def _layer(self, site: str) -> nn.Module:
        if site not in self._sites():
            raise InputError(f"no site {site!r}; there are layers.0 to layers.{self._source.sizes.layers - 1}")
        return self._layers[int(site.rpartition(".")[2])]

    def _up_to(self, site: str) -> FirstLayers:
        if site not in self._first:
            layers = list(self._layers)
            self._first[site] = FirstLayers(self._model, layers[: layers.index(self._layer(site)) + 1])
        return self._first[site]

    def _call(self, tokens: TokenBatch) -> Any:
        if self._model is None:
            raise PluginError("hf_lm: call `prepare` before reading activations")
        return self._model(input_ids=tokens.ids, attention_mask=tokens.attention.to(torch.int64), use_cache=False)


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """Offer the backbone."""
    return [
        BackboneSpec(
            config=HfLmConfig,
            build=HfLm,
            summary="Causal language models of transformers: hub, local folder or GGUF file",
            source="https://github.com/huggingface/transformers",
            depends=("transformers", "tokenizers"),
        )
    ]
