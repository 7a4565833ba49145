"""A language model whose answers hang on planted coordinates of cities, and RAVEL on it."""

from __future__ import annotations

import json

import torch
from saebench_plugins.metrics._ravel_pairs import RavelConfig
from saebench_plugins.metrics.ravel import Ravel

from saebench_core import SparseAutoencoder, Subject, TokenBatch, TopK
from tests.helpers.contexts import FakeContext
from tests.helpers.plain import Plain

D_IN = 8
COUNTRIES, LANGUAGES = ("Aland", "Bland", "Cland"), ("xish", "yish", "zish")
CITIES = {
    f"{country[0]}{language[0]}{number}": (country, language)
    for country in COUNTRIES
    for language in LANGUAGES
    for number in range(4)
}
WORDS = ["<pad>", "<bos>", "country", "language", "of", *COUNTRIES, *LANGUAGES, *CITIES]


class PlantedModel(Plain):
    """A city's activation has its country in coordinates 0 to 2 and its language in 3 to 5; the last word asks.

    Attributes:
        inert: answer from the tokens, whatever the activations at the site are.
    """

    modality = "language"
    d_in = D_IN

    def __init__(self, inert=False):
        self.inert = inert
        self.generated = 0

    def sequences(self, split, start, count):
        raise NotImplementedError

    def read(self, tokens, site):
        return self.states(tokens, site)[tokens.kept]

    def logits(self, tokens, site, patch):
        raise NotImplementedError

    def tokenise(self, texts, max_tokens, keep="start"):
        ids = [[1, *(WORDS.index(word) for word in text.split())] for text in texts]
        width = max(map(len, ids))
        attention = torch.tensor([[place < len(row) for place in range(width)] for row in ids])
        return TokenBatch(torch.tensor([row + [0] * (width - len(row)) for row in ids]), attention, attention)

    def locate(self, texts, characters):
        return torch.tensor(
            [1 + text[: character + 1].count(" ") for text, character in zip(texts, characters, strict=True)]
        )

    def states(self, tokens, site):
        table = torch.zeros(len(WORDS), D_IN)
        for city, (country, language) in CITIES.items():
            table[WORDS.index(city), COUNTRIES.index(country)] = 1
            table[WORDS.index(city), 3 + LANGUAGES.index(language)] = 1
        table[WORDS.index("of"), 6:] = 0.5
        return table[tokens.ids]

    def resume(self, tokens, site, states, own=None):
        states = self.states(tokens, site) if self.inert else states
        total = (states * tokens.attention[..., None]).sum(1)
        last = tokens.ids[torch.arange(len(tokens.ids)), tokens.attention.sum(1) - 1]
        found = torch.full((len(total), len(WORDS)), -20.0)
        first = len(WORDS[:5])
        where = torch.arange(len(WORDS))
        country = (where >= first) & (where < first + 3)
        language = (where >= first + 3) & (where < first + 6)
        spread = torch.zeros(len(total), len(WORDS))
        spread[:, first : first + 6] = 10 * total[:, :6]
        asked = torch.where((last == WORDS.index("country"))[:, None], country, language)
        return torch.where(asked, spread, found)

    def logits_from(self, tokens, site, states):
        raise NotImplementedError

    def generate(self, tokens, count, site, states, own=None):
        self.generated += len(tokens.ids)
        states = self.states(tokens, site) if states is None else states
        first = self.resume(tokens, site, states).argmax(-1)
        return torch.stack([first, *[torch.zeros_like(first)] * (count - 1)], dim=1)

    def pieces(self, ids):
        return [WORDS[word] for word in ids.tolist()]

    def words(self, ids):
        return [" ".join(WORDS[word] for word in row if word) for row in ids.tolist()]


def write_ravel(folder, values=None, templates=None, kind="city"):
    values = values or {
        city: {"Country": country, "Language": language} for city, (country, language) in CITIES.items()
    }
    templates = templates or {
        "Country": ["of %s country", "%s of country"],
        "Language": ["of %s language", "%s language"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ravel_{kind}_entity_attributes.json").write_text(json.dumps(values))
    (folder / f"ravel_{kind}_attribute_to_prompts.json").write_text(json.dumps(templates))
    return {"type": "ravel", "path": str(folder), "kind": kind}


def metric_of(tmp_path, **options):
    settings = {"pairs": 200, "learning_rate": 0.05, "rotation_epochs": 2, **options}
    return Ravel(RavelConfig(entities=(write_ravel(tmp_path / "ravel"),), **settings))


def identity_sae():
    return SparseAutoencoder.start(torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(D_IN), "none")


def mixing_sae():
    """Latents of which each has a part of a country and of a language."""
    draw = torch.Generator().manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=draw))
    return SparseAutoencoder.start(
        torch.cat([turned, -turned], 1), torch.cat([turned, -turned], 1).T, torch.zeros(D_IN), TopK(D_IN), "none"
    )


def run(metric, model, sae, tmp_path, context=None):
    context = context or FakeContext(tmp_path / "store", model, "s")
    prepared = metric.prepare(context)
    return metric.score(Subject(sae, lambda: sae.w_dec), prepared, context), prepared


def write_what_it_answers(model, folder):
    """A random model knows nothing, so what it answers about words is written down as right."""
    templates = {"A": ["w1 %s w2", "%s w3 w4 w5"], "B": ["w6 %s w7", "%s w8"]}
    values = {}
    for city in range(10, 40):
        values[f"w{city}"] = {}
        for name, (template, _) in templates.items():
            ids = model.generate(model.tokenise([template.replace("%s", f"w{city}")], 16), 2, "layers.0", None)
            values[f"w{city}"][name] = model.words(ids)[0]
    return write_ravel(folder, values, templates)
