"""Windows of text in which a latent fires, and in which it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core import LanguageModel, MetricContext, ReadableModel, SparseAutoencoder, Split, TokenBatch
from saebench_plugins.metrics._pooled import store_rows
from saebench_plugins.metrics._text_encoder import Embed

__all__ = ["Firing", "Recorded", "Window", "carried", "embed_windows", "firing_of", "record", "window_counts"]

_SEQUENCES: Final = 16
_WINDOWS: Final = 256
_ROWS_AT_ONCE: Final = 1 << 14


@dataclass(frozen=True)
class Recorded:
    """A corpus as the model read it.

    Attributes:
        ids: tokens, ``(sequences, length)``.
        places: sequence and position of every row, as one number: ``sequence * length + position``.
        activations: rows at the site.
    """

    ids: Int[Tensor, "sequences length"]
    places: Int[Tensor, " rows"]
    activations: Float[Tensor, "rows d_in"]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Recorded:
        """Return what `record` stored."""
        return cls(tensors["ids"], tensors["places"], tensors["activations"])

    def windows(self, width: int) -> Int[Tensor, " rows"]:
        """Return the window of every row; -1 for what is left at the end of a sequence."""
        length = self.ids.shape[1]
        each = length // width
        sequence, position = self.places // length, self.places % length
        window = sequence * each + position // width
        return torch.where(position < each * width, window, torch.full_like(window, -1))

    def count(self, width: int) -> int:
        """Return the number of windows."""
        return len(self.ids) * (self.ids.shape[1] // width)

    def tokens(self, window: int, width: int) -> Int[Tensor, " width"]:
        """Return a window's tokens."""
        each = self.ids.shape[1] // width
        start = (window % each) * width
        return self.ids[window // each, start : start + width]


@dataclass(frozen=True)
class Window:
    """A piece of text.

    Attributes:
        number: which window it is.
        ids: its tokens.
        values: a latent's code at each token.
        marks: tokens of which is asked whether the latent fires there; None where the whole window is asked about.
    """

    number: int
    ids: Int[Tensor, " width"]
    values: Float[Tensor, " width"]
    marks: Bool[Tensor, " width"] | None = None

    @property
    def peak(self) -> float:
        """Largest code."""
        return float(self.values.max())


@dataclass(frozen=True)
class Firing:
    """Where one latent fires.

    Attributes:
        windows: windows in which it fires, those with the largest codes first.
        values: its codes there, ``(windows, width)``.
    """

    windows: Int[Tensor, " windows"]
    values: Float[Tensor, "windows width"]


def record(
    context: MetricContext, model: LanguageModel, split: Split, tokens: int, max_norm_multiple: float | None
) -> dict[str, Tensor]:
    """Return tokens and activations of a split's first sequences, about so many tokens; fewer if it ends.

    A last sequence that is shorter than the others is left out, and so are rows with a norm above so many medians.
    """
    ids: list[Tensor] = []
    places: list[Tensor] = []

    def read() -> Iterator[Sequence[Tensor]]:
        seen = asked = 0
        while seen < tokens:
            batch = model.sequences(split, asked, _SEQUENCES)
            asked += len(batch.ids)
            length = ids[0].shape[1] if ids else batch.ids.shape[1]
            whole = batch.attention.sum(1) == length
            if not whole.any() or batch.ids.shape[1] != length:
                return
            batch = TokenBatch(*(part[whole] for part in batch))
            before = sum(map(len, ids)) * length
            ids.append(batch.ids.cpu())
            places.append(batch.kept.flatten().nonzero()[:, 0].cpu() + before)
            seen += batch.ids.numel()
            context.progress("autointerp: activations", min(seen, tokens), tokens)
            yield [model.read(batch, context.site)]

    rows, _ = store_rows(read())
    usual: slice | Tensor = slice(None)
    if max_norm_multiple is not None:
        norms = torch.cat([part.to(torch.float32).norm(dim=1) for part in torch.split(rows, _ROWS_AT_ONCE)])
        usual = norms <= max_norm_multiple * norms.median()
    return {"ids": torch.cat(ids), "places": torch.cat(places)[usual], "activations": rows[usual]}


def embed_windows(
    context: MetricContext, model: ReadableModel, recorded: Recorded, width: int, embed: Embed
) -> Float[Tensor, "windows size"]:
    """Return what an encoder makes of the text of every window, by number."""
    total = recorded.count(width)
    parts = []
    for start in range(0, total, _WINDOWS):
        end = min(start + _WINDOWS, total)
        texts = ("".join(model.pieces(recorded.tokens(window, width))) for window in range(start, end))
        parts.append(embed(list(texts)))
        context.progress("autointerp: embeddings", end, total)
    return torch.cat(parts)


def window_counts(sae: SparseAutoencoder, recorded: Recorded, width: int) -> Int[Tensor, " d_sae"]:
    """Return in how many windows each latent fires."""
    counts = torch.zeros(sae.d_sae, dtype=torch.int64, device="cpu")
    last = torch.zeros(0, dtype=torch.int64, device="cpu")  # keys of the window that the next part may go on with
    for windows, latents, _, _ in _entries(sae, recorded, width):
        keys: Tensor = torch.unique(windows * sae.d_sae + latents)
        keys = keys[~torch.isin(keys, last)]
        counts += torch.bincount(keys % sae.d_sae, minlength=sae.d_sae)
        last = torch.cat([last, keys])
        last = last[last // sae.d_sae == last.max() // sae.d_sae] if len(last) else last
    return counts


def firing_of(sae: SparseAutoencoder, recorded: Recorded, width: int, latents: Sequence[int]) -> dict[int, Firing]:
    """Return where some latents fire."""
    wanted = torch.zeros(sae.d_sae, dtype=torch.bool, device="cpu")
    wanted[list(latents)] = True
    parts = []
    for part in _entries(sae, recorded, width):
        kept = wanted[part[1]]
        parts.append([column[kept] for column in part])
    windows, owners, positions, values = (torch.cat(columns) for columns in zip(*parts, strict=True))
    found = {}
    for latent in latents:
        own = owners == latent
        there, place = torch.unique(windows[own], return_inverse=True)
        dense = torch.zeros(len(there), width, device="cpu")
        dense[place, positions[own]] = values[own]
        order = dense.amax(1).sort(descending=True, stable=True).indices if len(there) else there
        found[latent] = Firing(there[order], dense[order])
    return found


def _entries(sae: SparseAutoencoder, recorded: Recorded, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield window, latent, position in the window and value of all positive codes, some rows at a time."""
    windows, length = recorded.windows(width), recorded.ids.shape[1]
    for start in range(0, len(windows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        codes = sae.encode(recorded.activations[part].to(sae.device, torch.float32))
        rows, cols, values = codes.selection.rows.cpu(), codes.selection.cols.cpu(), codes.values.cpu()
        own = windows[part][rows]
        kept: Bool[Tensor, " entries"] = (own >= 0) & (values > 0)
        position = (recorded.places[part] % length % width)[rows]
        yield own[kept], cols[kept], position[kept], values[kept]


def carried(pieces: Sequence[str], values: Sequence[float]) -> tuple[list[str], list[float]]:
    """Leave out pieces without text; what they have goes to the next one, where the character that they begin ends."""
    found: tuple[list[str], list[float]] = ([], [])
    waiting = 0.0
    for piece, value in zip(pieces, values, strict=True):
        waiting = max(waiting, value)
        if piece:
            found[0].append(piece)
            found[1].append(waiting)
            waiting = 0.0
    return found
