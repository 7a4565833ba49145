"""Registries: names, cells and their ids, overrides, and what the schema for editors accepts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML
from saebench_plugins.backbones._hf_loading import Sizes
from saebench_plugins.backbones._hf_source import ModelSource

from saebench_core.catalog import Catalog
from saebench_core.errors import InputError
from saebench_core.presets import preset_names, preset_summary, preset_text
from saebench_core.registry import Document, load_registry, registry_schema
from tests.helpers.registries import TINY, built_in, changed, load

ROOT = Path(__file__).parents[2]
HUB_MODELS = {  # sizes that their configurations on the hub state
    "paper-gemma": Sizes(26, 2304, 256_000, 2_614_341_888),
    "paper-llama": Sizes(32, 4096, 128_256, 8_030_261_248),
}
TWO_BACKBONES = (
    "architectures:",
    "  - {name: wide, type: synthetic, d_in: 12, n_features: 16, l0: [2, 4], training: {steps: 7, batch_size: 16}}\n"
    "architectures:",
)
SMOKE_IDS = {
    "toy | activations | batch_topk | trained | L0=3 | s0": "f15a351ebb0ce1de",
    "toy | activations | batch_topk | frozen_decoder | L0=3 | s0": "2294f5e2ca24427a",
    "toy | activations | batch_topk | soft_frozen_decoder | L0=3 | s0": "2466f21a0d322654",
    "toy | activations | batch_topk | frozen_encoder | L0=3 | s0": "e9b600c8f555c52c",
    "toy | activations | batch_topk | untrained | L0=3 | s0": "5e9da5e5876322a2",
    "toy | activations | topk | trained | L0=3 | s0": "65d4ef4ba50b726a",
    "toy | activations | topk | frozen_decoder | L0=3 | s0": "82579515e3cfc620",
    "toy | activations | topk | soft_frozen_decoder | L0=3 | s0": "15905220548b6376",
    "toy | activations | topk | frozen_encoder | L0=3 | s0": "87fa3668fe8d548e",
    "toy | activations | topk | untrained | L0=3 | s0": "3a4576b7208a0302",
    "toy | activations | jumprelu | trained | L0=3 | s0": "752c2752040a1f5f",
    "toy | activations | jumprelu | frozen_decoder | L0=3 | s0": "d6deb5fba81e2033",
    "toy | activations | jumprelu | soft_frozen_decoder | L0=3 | s0": "7638175f7096d9d9",
    "toy | activations | jumprelu | frozen_encoder | L0=3 | s0": "27b2171f4a27142f",
    "toy | activations | jumprelu | untrained | L0=3 | s0": "c1133b382f1fae9d",
    "toy | activations | relu | trained | L0=3 | s0": "e920eb97d9710304",
    "toy | activations | relu | frozen_decoder | L0=3 | s0": "b60e336630917292",
    "toy | activations | relu | soft_frozen_decoder | L0=3 | s0": "eb1914e371eb97e2",
    "toy | activations | relu | frozen_encoder | L0=3 | s0": "88ad9ad1e1372b6c",
    "toy | activations | relu | untrained | L0=3 | s0": "49002e507cd990de",
}


def names(registry, axis):
    return list(dict.fromkeys(getattr(cell, axis).name for cell in registry.cells))


def problems(text, overrides=()):
    with pytest.raises(InputError) as caught:
        load(text, overrides)
    return list(caught.value.problems)


def test_default_names_show_the_keys_that_differ():
    text = changed(
        (
            "  - {type: soft_frozen_decoder, tau: 0.8}\n",
            "  - {type: soft_frozen_decoder, tau: 0.8}\n"
            "  - {type: soft_frozen_decoder, tau: 0.9}\n"
            "  - {type: soft_frozen_decoder, tau: 0.9, init: cov}\n"
            "  - {name: mine, type: soft_frozen_decoder, tau: 0.5}\n",
        )
    )
    assert names(load(text), "constraint") == [
        "trained",
        "frozen_decoder",
        "soft_frozen_decoder[init=iso,tau=0.8]",
        "soft_frozen_decoder[init=iso,tau=0.9]",
        "soft_frozen_decoder[init=cov,tau=0.9]",
        "mine",
        "untrained",
    ]


def test_default_name_with_one_key():
    text = changed(("tau: 0.8}\n", "tau: 0.8}\n  - {type: soft_frozen_decoder, tau: 0.9}\n"))
    assert "soft_frozen_decoder[tau=0.9]" in names(load(text), "constraint")
    text = changed(("d_sae: 16}\n", "d_sae: 16}\n  - {type: topk, expansion: 4}\n"))
    assert names(load(text), "architecture") == ["topk[d_sae=16,expansion=null]", "topk[d_sae=null,expansion=4]"]


def test_the_cross_product_and_its_order():
    registry = load(changed(("l0: [3]", "l0: [2, 3]")))
    assert len(registry.cells) == 4 * 2 * 2
    assert [(cell.l0, cell.constraint.name, cell.seed) for cell in registry.cells[:3]] == [
        (2.0, "trained", 0),
        (2.0, "trained", 1),
        (2.0, "frozen_decoder", 0),
    ]
    assert {(cell.d_in, cell.d_sae) for cell in registry.cells} == {(8, 16)}


def test_a_backbones_own_l0_and_training_replace_the_registrys():
    registry = load(changed(TWO_BACKBONES, ("d_sae: 16", "expansion: 2")))
    toy = [cell for cell in registry.cells if cell.backbone.name == "toy"]
    wide = [cell for cell in registry.cells if cell.backbone.name == "wide"]
    assert {cell.l0 for cell in toy} == {3.0}
    assert {cell.l0 for cell in wide} == {2.0, 4.0}
    assert {cell.training.total_steps for cell in toy} == {20}
    assert {cell.training.total_steps for cell in wide} == {7}
    assert {cell.training.calibration_rows for cell in wide} == {131072}, "replaced as a whole, not merged"
    assert {cell.d_sae for cell in toy} == {16}
    assert {cell.d_sae for cell in wide} == {24}


@pytest.mark.parametrize(("only", "backbones"), [("toy", {"toy"}), ("synthetic", {"toy", "wide"})])
def test_only_goes_by_name_or_type(only, backbones):
    registry = load(changed(TWO_BACKBONES, ("tau: 0.8", f"tau: 0.8, only: [{only}]")))
    soft = [cell for cell in registry.cells if cell.constraint.name == "soft_frozen_decoder"]
    assert {cell.backbone.name for cell in soft} == backbones
    registry = load(changed(TWO_BACKBONES, ("{type: feature_recovery}", f"{{type: feature_recovery, only: [{only}]}}")))
    scored = {cell.backbone.name for cell in registry.cells if len(registry.metrics_of(cell)) == 2}
    assert scored == backbones


@pytest.mark.parametrize(
    ("rule", "excluded"),
    [
        ("{l0: 3, constraint: untrained}", {("untrained", 0), ("untrained", 1)}),
        ("{l0: 3, constraint: soft}", {("soft", 0), ("soft", 1)}),
        ("{l0: 3, constraint: soft_frozen_decoder, seed: 1}", {("soft", 1)}),
        ("{l0: 3, constraint: [trained, soft_frozen_decoder], seed: [0, 7]}", {("trained", 0), ("soft", 0)}),
        (
            "{l0: 3, backbone: synthetic, architecture: topk, site: activations, constraint: trained, seed: 0}",
            {("trained", 0)},
        ),
    ],
)
def test_exclude_goes_by_name_or_type_and_needs_every_key(rule, excluded):
    soft = ("{type: soft_frozen_decoder", "{name: soft, type: soft_frozen_decoder")
    registry = load(changed(soft, ("l0: [3]", "l0: [2, 3]")) + f"exclude:\n  - {rule}\n")
    found = {(cell.constraint.name, cell.seed) for cell in registry.cells if cell.excluded}
    assert found == excluded
    assert {cell.l0 for cell in registry.cells if cell.excluded} == {3.0}
    assert len(registry.active) == len(registry.cells) - len(excluded)


def test_select():
    registry = load()
    assert len(registry.select([])) == 8
    assert {cell.constraint.name for cell in registry.select(["constraint=trained|untrained"])} == {
        "trained",
        "untrained",
    }
    assert [cell.seed for cell in registry.select(["constraint=trained", "seed=1"])] == [1]
    assert len(registry.select(["l0=3"])) == len(registry.select(["l0=3.0"])) == 8
    for option, words in {
        "constrant=trained": "did you mean 'constraint'?",
        "constraint=traned": "did you mean 'trained'?",
        "constraint": "expected AXIS=NAME",
        "l0=4": "no cell matches; there are: 3.0",
    }.items():
        with pytest.raises(InputError) as caught:
            registry.select([option])
        assert words in str(caught.value)


def test_golden_cell_ids_of_the_smoke_preset():
    registry = load(preset_text("smoke"))
    assert {cell.label: cell.cell_id for cell in registry.cells} == SMOKE_IDS


def ids(text=TINY, overrides=(), catalog=None):
    return [cell.cell_id for cell in load(text, overrides, catalog).cells]


@pytest.mark.parametrize(
    "change",
    [
        ("name: tiny", "name: huge\nnotice: hello"),
        ("{name: toy, ", "{name: other, "),
        ("{type: topk, ", "{name: my-sae, type: topk, "),
        ("{type: trained}", "{name: real, type: trained}"),
        ("  - {type: feature_recovery}\n", ""),
        ("{type: reconstruction, rows: 64}", "{type: reconstruction, rows: 128}"),
        ("device: cpu", "device: auto"),
        ("threads: 1", "threads: 2"),
        ("{type: trained}", "{type: trained, only: [toy]}"),
        ("d_in: 8,", "d_in: 8, sites: [activations], l0: [3],"),
        ("d_in: 8,", "d_in: 8, seed: 0, lognormal_sigma: 0.25,"),
        ("seeds: [0, 1]", "seeds: [0, 1] # a comment"),
    ],
)
def test_what_shapes_no_result_changes_no_id(change):
    assert ids(changed(change)) == ids()


def test_versions_and_sources_of_plugins_change_no_id():
    newer = Catalog([replace(plugin, version="99", source_digest="0" * 64) for plugin in built_in()], ())
    assert ids(catalog=newer) == ids()


@pytest.mark.parametrize(
    "change",
    [
        ("d_in: 8", "d_in: 9"),
        ("n_features: 16", "n_features: 17"),
        ("p: 0.1", "p: 0.2"),
        ("d_in: 8", "d_in: 8, seed: 1"),
        ("{type: topk, d_sae: 16}", "{type: topk, d_sae: 17}"),
        ("{type: topk, d_sae: 16}", "{type: batch_topk, d_sae: 16}"),
        ("d_sae: 16", "d_sae: 16, aux_coefficient: 0"),
        ("l0: [3]", "l0: [4]"),
        ("seeds: [0, 1]", "seeds: [2, 3]"),
        ("steps: 20", "steps: 21"),
        ("batch_size: 32", "batch_size: 64"),
        ("batch_size: 32", "batch_size: 32, lr: 1e-3"),
        ("calibration_rows: 64", "calibration_rows: 65"),
    ],
)
def test_every_identity_key_changes_every_id(change):
    assert not set(ids(changed(change))) & set(ids())


def test_a_constraints_key_changes_its_cells_only():
    before, after = ids(), ids(changed(("tau: 0.8", "tau: 0.7")))
    assert [first == second for first, second in zip(before, after, strict=True)] == [True] * 4 + [False] * 2 + [
        True
    ] * 2
    assert len(set(before)) == 8


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("training.steps=7", lambda r: r.cells[0].training.steps, 7),
        ("training.lr=1e-3", lambda r: r.cells[0].training.lr, 0.001),
        ("name=other", lambda r: r.name, "other"),
        ("backbones.toy.d_in=12", lambda r: r.cells[0].d_in, 12),
        ("backbones.synthetic.d_in=12", lambda r: r.cells[0].d_in, 12),
        ("backbones.0.d_in=12", lambda r: r.cells[0].d_in, 12),
        ("constraints.soft_frozen_decoder.tau=0.5", lambda r: r.cells[4].constraint.config.tau, 0.5),
        ("constraints.2.tau=0.5", lambda r: r.cells[4].constraint.config.tau, 0.5),
        ("backbones.toy.probability.p=0.5", lambda r: r.cells[0].backbone.config.probability.p, 0.5),
        ("seeds=[5]", lambda r: [cell.seed for cell in r.cells], [5] * 4),
        ("l0.0=2", lambda r: r.cells[0].l0, 2.0),
        ("runtime.threads=3", lambda r: r.runtime.threads, 3),
        ("notice=", lambda r: r.notice, None),
        ("exclude=[{constraint: trained, seed: 0}]", lambda r: len(r.active), 7),
        ("backbones.toy.training={steps: 3, batch_size: 8}", lambda r: r.cells[0].training.steps, 3),
    ],
)
def test_set(override, get, value):
    registry = load(overrides=(override,))
    assert get(registry) == value
    assert registry.overrides == (override,)
    assert registry.text == TINY, "the text stays as written; what was set is kept beside it"


def test_the_last_set_wins():
    assert load(overrides=("training.steps=7", "training.steps=9")).cells[0].training.steps == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stps=3", "--set training.stps=3 training.stps: unknown key 'stps'; did you mean 'steps'?"),
        ("training.steps=0", "--set training.steps=0 training.steps: input should be greater than 0 (given: 0)"),
        ("constraints.soft_frozen_decoder.tau=2", "--set constraints.soft_frozen_decoder.tau=2 constraints[2].tau:"),
        ("constraints.soft.tau=1", "--set constraints.soft.tau=1: 'soft' is no entry"),
        ("constraints.traned.init=cov", "'traned' is no entry; did you mean 'trained'?"),
        ("constraints.7.tau=1", "--set constraints.7.tau=1: '7' is no entry"),
        ("name.x=3", "--set name.x=3: 'x' stands below a single value"),
        ("x.y.z=3", "--set x.y.z=3 x: unknown key 'x'"),
        ("training", "--set training: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("seeds=[0", "--set seeds=[0: the value is no YAML: expected ',' or ']'"),
        ("seeds=!!python/object:x y", "--set seeds=!!python/object:x y: the tag tag:yaml.org,2002:python/object:x is"),
        ("seeds=&a [*a]", "--set seeds=&a [*a]: values are nested too deeply"),
        ("training.lr=.inf", "--set training.lr=.inf: expected a finite number, got inf"),
        ("l0=[3, 99]", "--set l0=[3, 99] l0 99 is more than the 16 latents of topk on toy"),
    ],
)
def test_errors_of_set_name_the_option(override, message):
    found = problems(TINY, (override,))
    assert len(found) == 1
    assert message in found[0]
    assert "\n" not in found[0]


def test_an_ambiguous_entry_needs_its_number():
    text = changed(("tau: 0.8}\n", "tau: 0.8}\n  - {type: soft_frozen_decoder, tau: 0.9}\n"))
    assert "is ambiguous: use its number" in problems(text, ("constraints.soft_frozen_decoder.tau=0.1",))[0]


def plain(text):
    return Document("x", text).data


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(registry_schema(built_in())))


def test_the_schema_is_a_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_schema_accepts_what_is_shipped(schema):
    texts = {name: preset_text(name) for name in preset_names()} | {"tiny": TINY}
    if (ROOT / "registry.yaml").is_file():
        texts["registry.yaml"] = (ROOT / "registry.yaml").read_text(encoding="utf-8")
    assert {"smoke", "start"} <= set(texts)
    for name, text in texts.items():
        errors = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(plain(text))]
        assert errors == [], name


@pytest.mark.parametrize(
    "change",
    [
        ("name: tiny", "nam: tiny"),
        ("d_sae: 16", "d_sea: 16"),
        ("d_in: 8", "d_in: eight"),
        ("type: topk", "type: topkk"),
        ("tau: 0.8", "tau: 1.8"),
        ("l0: [3]", "l0: []"),
        ("steps: 20", "stps: 20"),
        ("d_in: 8", "d_in: 8, training: {stps: 3}"),
        ("seeds: [0, 1]\n", ""),
    ],
)
def test_the_schema_refuses_what_the_core_refuses(schema, change):
    text = changed(change)
    assert problems(text)
    assert not jsonschema.Draft202012Validator(schema).is_valid(plain(text))


@pytest.mark.skipif(not (ROOT / "registry.schema.json").is_file(), reason="registry.schema.json is not committed yet")
def test_the_committed_schema_is_that_of_the_core_alone(schema):
    committed = json.loads((ROOT / "registry.schema.json").read_text(encoding="utf-8"))
    assert committed == schema, "write it anew: SAEBENCH_LOAD_PLUGINS= saebench schema > registry.schema.json"


def test_presets_load_and_say_what_they_are(monkeypatch):
    for name in preset_names():
        if name in HUB_MODELS:
            monkeypatch.setattr(ModelSource, "sizes", HUB_MODELS[name])
        registry = load_registry(Document(f"preset:{name}", preset_text(name)), built_in())
        assert registry.active
        assert YAML(typ="safe").load(preset_text(name))["name"]
        assert preset_summary(name)[-1] in ".?" and "#" not in preset_summary(name)
