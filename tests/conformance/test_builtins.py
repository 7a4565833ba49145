"""Every plugin of the catalog against every check of its kind. The only list is the catalog."""

from __future__ import annotations

import functools
import json

import pytest

from saebench_core.activations import collect
from saebench_core.catalog import PluginChoice, make_catalog
from saebench_core.conformance import checks_of, run_check, subject_of
from saebench_core.conformance.subjects import required_keys
from tests.helpers.tiny_lm import WORDS, save_tiny_llama, write_corpus
from tests.helpers.training import MemoryBackbone, activations, quiet, random_sae

CATALOG = make_catalog(PluginChoice(frozenset()))


def stored_activations(folder):
    for seed, split in enumerate(("train", "calibration", "evaluation")):
        place = folder / "rows" / split
        place.mkdir(parents=True)
        collect(MemoryBackbone(activations(300, 8, seed)), "values", split, 300, place, quiet)
    return {"path": str(folder / "rows")}


def tiny_llama(folder):
    corpus = {"type": "text_files", "paths": [str(write_corpus(folder / "corpus.txt"))], "document": "line"}
    model = str(save_tiny_llama(folder / "llama"))
    return {"model": model, "corpus": corpus, "context": 12, "holdout": 0.15, "forward_batch": 4, "sites": ["layers.1"]}


def tiny_clip(folder):
    sizes = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "embed_dim": 8, "text_width": 8}
    more = {"text_layers": 1, "text_heads": 2, "steps": 3, "batch_size": 16, "warmup_steps": 1, "shift": 1}
    return {
        "model": {"type": "contrastive", **sizes, **more},
        "images": {"type": "digits"},
        "sites": ["visual.blocks.0"],
    }


def saved_sae(folder):
    from saebench_core.rules import JumpReLU

    random_sae(JumpReLU()).save(folder / "sae", {})
    return {"path": str(folder / "sae"), "twin": {"type": "topk"}}


def labelled_texts(folder):
    rows = [f"{WORDS[n % 7]} {WORDS[n % 2]} {WORDS[n % 5]},{'odd' if n % 2 else 'even'}" for n in range(80)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    task = {"type": "csv", "path": str(folder / "texts.csv"), "text": "text", "label": "label"}
    return {"tasks": [task], "train_size": 40, "test_size": 20, "k": [2]}


def cities(folder):
    """Write entities, of which the kit's language model knows nothing; what a site does is judged in test_ravel.py."""
    values = {f"city{number}": {"A": f"a{number}", "B": f"b{number}"} for number in range(8)}
    (folder / "ravel_city_entity_attributes.json").write_text(json.dumps(values))
    (folder / "ravel_city_attribute_to_prompts.json").write_text(json.dumps({"A": ["in %s"], "B": ["of %s"]}))
    return {"entities": [{"type": "ravel", "path": str(folder), "kind": "city"}]}


KEYS = {
    "activations": stored_activations,
    "hf_lm": tiny_llama,
    "open_clip": tiny_clip,
    "pretrained": saved_sae,
}
"""What entries of these types cannot do without; every other plugin is checked with its defaults."""

SMALLER = {"sparse_probing": labelled_texts}
"""What stands in for defaults that would take minutes: 113 tables, where the package that has them is installed."""

FURTHER = [
    ("architecture", "relu", {"form": "april_2024"}),
    ("architecture", "jumprelu", {"loss": "step_l0"}),
    ("architecture", "jumprelu", {"loss": "tanh"}),
    ("architecture", "ortsae", {"chunk": 10, "every": 2, "reduce": "mean_sq", "sign": "abs"}),
    ("constraint", "frozen_encoder", {"train_b_enc": True, "keep_aux": True, "decoder_norm": "free"}),
    ("constraint", "partial_freeze", {"part": "both", "fraction": 0.3}),
    ("constraint", "soft_frozen_decoder", {"tau": 0.97, "init": "cov"}),
    ("constraint", "untrained", {"init": "iso", "calibrate": "l0"}),
    ("metric", "ravel", cities),
]
"""Other settings of plugins that the catalog has, beside their defaults."""


def plugin_of(kind, name):
    return CATALOG.get(kind, name)


@functools.cache
def subject(place):
    kind, name, config = CASES[place]
    return subject_of(plugin_of(kind, name), config, CATALOG)


CASES = [(plugin.kind, plugin.name, (KEYS | SMALLER).get(plugin.name)) for plugin in CATALOG] + FURTHER
PARAMETERS = [
    pytest.param(place, check, id=f"{kind}-{name}-{place}-{check.name}")
    for place, (kind, name, _) in enumerate(CASES)
    for check in checks_of(plugin_of(kind, name))
]
"""No failure is expected of any built-in."""


def test_the_catalog_is_whole():
    assert not CATALOG.failures
    assert {plugin.kind for plugin in CATALOG} == {"backbone", "architecture", "constraint", "metric"}
    assert len(CASES) - len(FURTHER) == sum(1 for _ in CATALOG) >= 25
    wanted = {plugin.name for plugin in CATALOG if set(required_keys(plugin)) - {"d_sae"}}
    assert set(KEYS) == wanted, "give keys for exactly the plugins that need some"


@functools.cache
def finding_of(place, name):
    check = next(check for check in checks_of(subject(place).plugin) if check.name == name)
    return run_check(check, subject(place))


@pytest.mark.parametrize(("place", "check"), PARAMETERS)
def test_conforms(place, check):
    finding = finding_of(place, check.name)
    if finding.status == "skipped":
        pytest.skip(finding.reason)
    assert finding.status == "passed", f"{finding.message}\nto do: {finding.remedy}"


@pytest.mark.parametrize(("kind", "name"), sorted({case[:2] for case in CASES}))
def test_most_checks_have_something_to_look_at(kind, name):
    """A plugin of which nearly everything is skipped, with all the settings here, would pass whatever it did."""
    listed = checks_of(plugin_of(kind, name))
    places = [place for place, case in enumerate(CASES) if case[:2] == (kind, name)]
    passed = {check.name for check in listed for place in places if finding_of(place, check.name).status == "passed"}
    assert len(passed) >= 0.6 * len(listed), passed
