"""Cells of a language model: what one SAE has read is there for the next."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from saebench_plugins.backbones import hf_lm

from tests.helpers.contexts import FakeContext
from tests.helpers.planted_cities import write_what_it_answers
from tests.helpers.runs import cells, run
from tests.helpers.tiny_lm import WORDS, save_tiny_llama, write_corpus

REGISTRY = """\
name: language
backbones:
  - name: llama
    type: hf_lm
    model: {model}
    sites: [layers.1]
    corpus: {{type: text_files, paths: [{corpus}], document: line}}
    context: 16
    max_tokens: 1200
    holdout: 0.3
architectures:
  - {{type: topk, expansion: 2}}
constraints:
  - {{type: trained}}
  - {{type: frozen_decoder}}
  - {{type: untrained}}
l0: [4]
seeds: [0]
training: {{steps: 10, batch_size: 32, calibration_rows: 64, evaluation_rows: 64}}
runtime: {{device: cpu, backbone_dtype: fp32, threads: 1}}
metrics:
  - {{type: reconstruction, rows: 64}}
  - {{type: loss_recovered, sequences: 6, tokens: 12}}
  - type: sparse_probing
    tasks: [{{type: csv, path: {table}, text: text, label: label}}]
    train_size: 20
    test_size: 10
  - {{type: ravel, entities: [{cities}], pairs: 40, words: 2, rotation_epochs: 1, gate: 0}}
  - type: autointerp
    judge: {{type: tokens}}
    tokens: 400
    protocol: {{type: paper, latents: 4, width: 8, fewest: 4}}
"""


@pytest.fixture
def passes(monkeypatch):
    """Count forward passes up to a site, and through a whole model."""
    counted = Counter()
    for name in ("rows_after", "states_after", "patched"):
        made = getattr(hf_lm, name)

        def counting(*args, name=name, made=made):
            counted[name] += 1
            return made(*args)

        monkeypatch.setattr(hf_lm, name, counting)
    return counted


def answering(folder, names):
    corpus = {"type": "text_files", "paths": [str(names["corpus"])], "document": "line"}
    model = hf_lm.HfLm(hf_lm.HfLmConfig(model=str(names["model"]), corpus=corpus, context=16, max_tokens=400))
    model.prepare(FakeContext(folder / "asked"))
    return model


def test_a_second_sae_makes_no_activation_of_the_backbone_be_computed_again(tmp_path, passes):
    table = tmp_path / "table.csv"
    rows = (f"{WORDS[place % 7]} {WORDS[20 + place % 2]} {WORDS[place % 11]},{'ab'[place % 2]}" for place in range(90))
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    names = {"model": save_tiny_llama(tmp_path / "llama"), "corpus": write_corpus(tmp_path / "c.txt"), "table": table}
    names["cities"] = json.dumps(write_what_it_answers(answering(tmp_path, names), tmp_path / "cities"))
    (tmp_path / "registry.yaml").write_text(REGISTRY.format(**names))
    first = run(tmp_path, "--only", "constraint=trained")
    assert first.code == 0, first.err
    assert passes["rows_after"] > 0 and passes["states_after"] > 0
    passes.clear()
    second = run(tmp_path)
    assert second.code == 0, second.err
    assert passes == {}
    done = cells(tmp_path)
    assert [cell["status"] for cell in done] == ["done"] * 3
    assert len({cell["metrics"]["loss_recovered/ce_sae"]["value"] for cell in done}) == 3
    assert all(0 < cell["metrics"]["ravel/isolation"]["value"] <= 1 for cell in done)
