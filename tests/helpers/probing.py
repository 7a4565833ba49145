"""Models whose classes are planted in single words or coordinates, tables of their texts, and probes of them."""

from __future__ import annotations

import random

import torch
from saebench_plugins.metrics._probe_fits import Features, protocol_of
from saebench_plugins.metrics.sparse_probing import SparseProbing, SparseProbingConfig

from saebench_core import SparseAutoencoder, Subject, TokenBatch, TopK
from tests.helpers.contexts import FakeContext
from tests.helpers.plain import Plain

D_IN = 12
NOISE = range(4, D_IN)


class WordModel(Plain):
    """A word is a number, and its activation that unit vector; the first token is not kept."""

    d_in = D_IN

    def __init__(self):
        self.texts_read = []

    def tokenise(self, texts, max_tokens, keep="start"):
        self.texts_read.extend(texts)
        words = [list(map(int, text.split())) for text in texts]
        rest = max_tokens - 1
        ids = [[0, *(row[:rest] if keep == "start" else row[max(0, len(row) - rest) :])] for row in words]
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        real = torch.tensor([[place < len(row) for place in range(width)] for row in ids])
        kept = real.clone()
        kept[:, 0] = False
        return TokenBatch(padded, real, kept)

    def read(self, tokens, site):
        return torch.eye(D_IN)[tokens.ids[tokens.kept]]

    def sequences(self, split, start, count):
        raise NotImplementedError

    def logits(self, tokens, site, patch):
        raise NotImplementedError


class PictureModel(Plain):
    """Images of three tokens; the class is the coordinate that is large."""

    d_in = D_IN

    def __init__(self, sizes=None):
        self.sizes = sizes or {"train": 90, "evaluation": 60}
        draw = torch.Generator().manual_seed(0)
        self.classes = {split: torch.arange(n) % 3 for split, n in self.sizes.items()}
        self.pixels = {
            split: torch.rand(len(labels), 1, 3, D_IN, generator=draw)
            + 3 * torch.nn.functional.one_hot(labels, D_IN)[:, None, None]
            for split, labels in self.classes.items()
        }

    def image_count(self, split):
        return self.sizes[split]

    def images(self, split, start, count):
        return self.pixels[split][start : start + count]

    def labels(self, split):
        return self.classes[split]

    def class_names(self):
        return ["cat", "dog", "emu"]

    def read_images(self, images, site):
        return images[:, 0]

    def zero_shot_logits(self, images, site, patch):
        raise NotImplementedError


def identity_sae(d_in=D_IN):
    return SparseAutoencoder.start(torch.eye(d_in), torch.eye(d_in), torch.zeros(d_in), TopK(d_in), "none")


def random_sae(seed=0, d_sae=30, k=4):
    draw = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(d_sae, D_IN, generator=draw), dim=1)
    return SparseAutoencoder.start(w_dec.T.clone(), w_dec, torch.zeros(D_IN), TopK(k), "none")


def write_table(path, rows):
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def planted(tmp_path, classes=("a", "b", "c"), each=60, name="t"):
    """Class number i has the word i+1 in every text, among noise."""
    draw = random.Random(1)
    rows = []
    for number, label in enumerate(classes):
        for _ in range(each):
            words = [number + 1, *(draw.choice(NOISE) for _ in range(6))]
            draw.shuffle(words)
            rows.append((" ".join(map(str, words)), label))
    return {"type": "csv", "path": write_table(tmp_path / f"{name}.csv", rows)}


def metric_with(*tasks, **options):
    settings = {"train_size": 80, "test_size": 40, **options}
    return SparseProbing(SparseProbingConfig(tasks=tasks, **settings))


def scored(metric, backbone, sae, tmp_path):
    context = FakeContext(tmp_path / "store", backbone, "s")
    prepared = metric.prepare(context)
    return metric.score(Subject(sae, lambda: sae.w_dec), prepared, context), prepared


def fitted(name, features, probe, labels, seed=0):
    return protocol_of(name).fitted(Features.of(features.numpy(), probe), probe, labels, seed)
