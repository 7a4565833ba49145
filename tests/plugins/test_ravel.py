"""Causal editing on a model whose answers hang on planted coordinates of the entity's activation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from saebench_plugins.metrics._entities import EntitySource
from saebench_plugins.metrics._entity_answers import decided, gives
from saebench_plugins.metrics._known_prompts import Asked, Prompt, draw_pairs, known_prompts
from saebench_plugins.metrics._ravel_pairs import RavelConfig
from saebench_plugins.metrics._swap_masks import Latents, Neurons, Rotation
from saebench_plugins.metrics.ravel import Ravel

from saebench_core import (
    EditableModel,
    InputError,
    NotApplicable,
    SparseAutoencoder,
    TopK,
)
from tests.helpers.contexts import FakeContext, at_home
from tests.helpers.planted_cities import (
    CITIES,
    COUNTRIES,
    D_IN,
    LANGUAGES,
    WORDS,
    PlantedModel,
    identity_sae,
    metric_of,
    mixing_sae,
    run,
    write_ravel,
    write_what_it_answers,
)
from tests.helpers.tiny_lm import save_tiny_llama, write_corpus

ENTITIES = TypeAdapter(EntitySource).validate_python


def test_planted_coordinates_are_found_and_swapped(tmp_path):
    assert isinstance(PlantedModel(), EditableModel)
    result, prepared = run(metric_of(tmp_path), PlantedModel(), identity_sae(), tmp_path)
    scores = {name: score.value for name, score in result.scores.items()}
    assert scores["cause"] == scores["isolation"] == scores["disentangled"] == 1.0
    assert scores["swapped"] >= 3
    assert scores["none_swapped"] == scores["all_swapped"] == 0.5
    assert scores["random_swapped"] < 0.9
    assert (scores["full_swap_cause"], scores["full_swap_isolation"]) == (1.0, 0.0)
    assert prepared.floors == {"disentangled": 0.5, "cause": 0.0, "isolation": 0.0}
    assert prepared.ceilings["cause"] == prepared.ceilings["isolation"] == 1.0
    assert prepared.ceilings["disentangled"] > 0.9
    assert scores["neurons_cause"] == scores["neurons_isolation"] == 1.0
    assert result.items["attribute"] == ["Country", "Language"]
    assert result.scores["cause"].n == sum(result.items["pairs"])
    assert set(result.scores) == set(metric_of(tmp_path).scores())


def test_latents_that_mix_attributes_edit_worse(tmp_path):
    mixed, _ = run(metric_of(tmp_path), PlantedModel(), mixing_sae(), tmp_path)
    assert mixed.scores["disentangled"].value < 0.95
    assert mixed.scores["full_swap_cause"].value == 1.0


def test_a_site_that_answers_do_not_hang_on_says_nothing(tmp_path):
    result, prepared = run(metric_of(tmp_path), PlantedModel(inert=True), identity_sae(), tmp_path)
    assert all(isinstance(score, NotApplicable) for score in result.scores.values())
    assert "below 0.5): Country 0.00, Language 0.00" in result.scores["cause"].reason
    assert prepared.floors == prepared.ceilings == {}


def test_a_model_that_knows_nothing(tmp_path):
    values = {city: {"Country": "Nowhere", "Language": "none"} for city in CITIES}
    metric = Ravel(RavelConfig(entities=(write_ravel(tmp_path / "wrong", values),), pairs=50))
    result, _ = run(metric, PlantedModel(), identity_sae(), tmp_path)
    assert "too few answers" in result.scores["cause"].reason
    assert "of Country 0 (0 of cause), Language 0 (0 of cause)" in result.scores["cause"].reason


def test_what_was_measured_is_kept_by_attribute(tmp_path):
    model, metric = PlantedModel(), metric_of(tmp_path)
    context = FakeContext(tmp_path / "store", model, "s")
    first, _ = run(metric, model, identity_sae(), tmp_path, context)
    built, asked = len(context.built), model.generated
    assert built == 6  # what the model knows, references, and what the mask does, of two attributes
    again, _ = run(metric, model, identity_sae(), tmp_path, context)
    assert first == again
    assert len(context.built) == built
    assert model.generated == asked  # not one answer again
    run(metric, model, mixing_sae(), tmp_path, context)
    assert len(context.built) == built + 2


def test_what_a_model_knows_is_asked_once_for_all_its_sites(tmp_path):
    model, metric = PlantedModel(), metric_of(tmp_path)
    contexts = [FakeContext(tmp_path / "store", model, site) for site in ("s", "t")]
    for context in contexts:
        metric.prepare(context)
    kinds = [[next(iter(config)) for config in context.built] for context in contexts]
    assert kinds == [["known prompts"] * 2 + ["references"] * 2, ["references"] * 2]


def prompts_of(*rows):
    return [
        Prompt(f"p{number}", f"e{number}", attribute, value, 0, 1, 0) for number, (attribute, value) in enumerate(rows)
    ]


def test_pairs_differ_in_what_they_ask_and_are_of_both_kinds():
    prompts = prompts_of(
        *[("A", "ab"[number % 2]) for number in range(20)],
        *[("B", "xyz"[number % 3]) for number in range(20)],
        *[("C", "q")] * 5,
    )
    pairs = draw_pairs(prompts, "A", 30, 0)
    kinds = [pair.kind for pair in pairs]
    assert kinds.count("cause") == 30
    assert kinds.count("isolation") == 15  # of C, all alike, there is no pair
    for pair in pairs:
        base, source = prompts[pair.base], prompts[pair.source]
        assert base.value != source.value
        assert base.attribute == source.attribute == ("A" if pair.kind == "cause" else "B")
    assert len({(pair.kind, pair.base, pair.source) for pair in pairs}) == len(pairs)
    assert pairs == draw_pairs(prompts, "A", 30, 0)
    assert pairs != draw_pairs(prompts, "A", 30, 1)
    assert kinds != sorted(kinds)
    assert len(draw_pairs(prompts_of(("A", "a"), ("A", "b"), ("B", "x"), ("B", "y")), "A", 30, 0)) == 4


def test_entities_and_templates_are_drawn_and_the_best_known_kept(tmp_path):
    entities = ENTITIES(write_ravel(tmp_path / "ravel")).read()
    context = FakeContext(tmp_path / "store", PlantedModel(), "s")
    every = known_prompts(context, context.backbone, Asked(None, None, 1000, 2, 0), entities)
    assert len(every) == len(CITIES) * 4
    assert {prompt.text.split()[prompt.place - 1] for prompt in every} == set(CITIES)
    assert {WORDS[prompt.first] for prompt in every} == {*COUNTRIES, *LANGUAGES}
    some = known_prompts(context, context.backbone, Asked(10, 1, 1000, 2, 0), entities)
    assert len(some) == 20
    assert len({prompt.entity for prompt in some}) == 10
    assert (
        len({prompt.entity for prompt in known_prompts(context, context.backbone, Asked(10, 1, 4, 2, 0), entities)})
        == 4
    )


@pytest.mark.parametrize(
    ("text", "value", "attribute", "right"),
    [
        (" France, a country", "France", "Country", True),
        (" Fr", "France", "Country", True),
        ("", "France", "Country", False),
        (' "France', "France", "Country", False),
        ('France", "x', "France", "Country", True),
        (" the United States of", "United States", "Country", True),
        (" USA", "United States", "Country", True),
        (" England", "United Kingdom", "Country", True),
        (" United Arab", "United States", "Country", False),
        (" Korea", "South Korea", "Country", True),
        (" America", "North America", "Continent", True),
        (" South America", "North America", "Continent", False),
        (" Chinese", "Mandarin", "Language", True),
        (" French", "Dutch, French", "Language", True),
        (" French", "Dutch, French", "Country", False),
        (" 48.8", "50", "Latitude", True),
        (" 47.8", "50", "Latitude", False),
        (" x", "50", "Latitude", False),
        (" Europe/Paris", "Europe/Paris", "Timezone", True),
        (" UTC+2", "Europe/Paris", "Timezone", True),
        (" GMT +5:30", "Asia/Kolkata", "Timezone", True),
        (" UTC-5", "Europe/Paris", "Timezone", False),
        (" Ukraine", "United Kingdom", "Country", False),
        (" UK, and", "United Kingdom", "Country", True),
        (" used to", "United States", "Country", False),
        (" the U.S.", "United States", "Country", True),
        (" Namibia", "North America", "Continent", False),
        (" NA", "North America", "Continent", True),
        (" 48", "48N", "Latitude", True),
        (" 48", "north", "Latitude", False),
    ],
)
def test_answers(text, value, attribute, right):
    assert gives(text, value, attribute) is right


def test_two_words_decide_where_they_say_enough():
    assert decided(" Germany and", "France", "Country")
    assert decided(" France and", "France", "Country")
    assert not decided(" United", "United States", "Country")
    assert not decided(" the", "France", "Country")
    assert not decided("", "France", "Country")
    assert not decided(" 48", "50", "Latitude")
    assert not decided(" Uk", "United Kingdom", "Country")
    assert decided('48"', "50", "Latitude")


def test_bases_mix_base_and_source():
    base, source = torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(0))
    gate = torch.tensor([1.0, 0, 0, 0.25, 0, 1, 1, 0])
    expected = (1 - gate) * base + gate * source
    for basis in (Neurons(D_IN, torch.device("cpu")), Rotation(D_IN, torch.device("cpu")), Latents(dense_identity())):
        assert basis.size in (D_IN, 2 * D_IN)
        own = gate if basis.size == D_IN else torch.cat([gate, gate])
        torch.testing.assert_close(basis.mixed(base, source, own).detach(), expected, rtol=1e-5, atol=1e-5)


def dense_identity():
    """Positive and negative parts of every coordinate, so that nothing is lost."""
    both = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    return SparseAutoencoder.start(both.T.clone(), both, torch.zeros(D_IN), TopK(2 * D_IN), "none")


def test_files_and_attributes(tmp_path):
    source = write_ravel(tmp_path / "ravel")
    assert list(ENTITIES(source).read().values) == ["Country", "Language"]
    assert list(ENTITIES({**source, "attributes": ["Language", "Country"]}).read().values) == ["Language", "Country"]
    with pytest.raises(ValidationError, match="at least 2"):
        ENTITIES({**source, "attributes": ["Language"]})  # nothing could stay
    assert len(ENTITIES(source).fingerprint()["sha256"]) == 2
    assert ENTITIES({**source, "path": "hf://datasets/a/b"}).fingerprint() == {}
    wrong = {**source, "attributes": ["Country", "Langage"]}
    with pytest.raises(InputError, match="no attribute 'Langage'; did you mean"):
        Ravel(RavelConfig(entities=(wrong,))).fingerprint()  # when a registry is read
    (tmp_path / "ravel" / "ravel_city_attribute_to_prompts.json").write_text('{"Country": ["no place"]}')
    with pytest.raises(InputError, match="'no place' must have one %s"):
        ENTITIES(source).read()
    (tmp_path / "ravel" / "ravel_city_attribute_to_prompts.json").write_text("{")
    with pytest.raises(InputError, match=r"ravel_city_attribute_to_prompts\.json: Invalid JSON"):
        ENTITIES(source).read()
    (tmp_path / "ravel" / "ravel_city_attribute_to_prompts.json").write_text('{"Country": [3]}')
    with pytest.raises(InputError, match=r"prompts\.json: at Country\.0: Input should be a valid string"):
        ENTITIES(source).read()
    (tmp_path / "ravel" / "ravel_city_entity_attributes.json").write_text('{"Paris": "France"}')
    with pytest.raises(InputError, match=r"attributes\.json: at Paris: Input should be an object"):
        ENTITIES(source).read()
    with pytest.raises(ValidationError, match="gate"):
        RavelConfig(gate=2)
    with pytest.raises(ValidationError, match="leave 6 test pairs of each kind; 10 are the least: give 34 pairs"):
        RavelConfig(pairs=20)


def test_the_published_files_are_read():
    folder = Path(__file__).parents[3] / "shared" / "data" / "ravel"
    if not folder.is_dir():
        pytest.skip("RAVEL's files are not there")
    cities = ENTITIES({"type": "ravel", "path": str(folder)}).read()
    assert {name: len(templates) for name, templates in cities.templates.items()} == {
        "Country": 46,
        "Continent": 43,
        "Language": 44,
    }
    assert len(cities.values["Country"]) > 3000
    winners = ENTITIES({"type": "ravel", "path": str(folder), "kind": "nobel_prize_winner"}).read()
    assert list(winners.values) == ["Country of Birth", "Field", "Gender"]
    assert all(template.count("%s") == 1 for templates in winners.templates.values() for template in templates)


def test_the_largest_cities_of_geonames(tmp_path):
    (tmp_path / "countries.json").write_text(
        json.dumps(
            {
                "FR": {"name": "France", "continentcode": "EU", "languages": "fr-FR,frp"},
                "US": {"name": "United States", "continentcode": "NA", "languages": "en-US,es-US"},
                "AQ": {"name": "Antarctica", "continentcode": "AN", "languages": ""},
            }
        )
    )
    rows = [
        ("Paris", "FR", 2_000_000),
        ("Paris", "US", 25_000),
        ("Houston", "US", 2_300_000),
        ("Base", "AQ", 1_000),
        ("Lyon", "FR", 500),
    ]
    cities = {
        str(number): {
            "geonameid": number,
            "name": name,
            "countrycode": code,
            "population": people,
            "timezone": "Europe/Paris",
        }
        for number, (name, code, people) in enumerate(rows)
    }
    (tmp_path / "cities15000.json").write_text(json.dumps(cities))
    source = {"type": "geonames", "path": str(tmp_path), "cities": 3}
    found = ENTITIES(source).read()
    assert found.values["Country"] == {"Houston": "United States", "Paris": "France", "Base": "Antarctica"}
    assert found.values["Language"] == {"Houston": "English", "Paris": "French"}
    assert found.values["Continent"] == {"Houston": "North America", "Paris": "Europe"}
    assert "Timezone" in ENTITIES({**source, "attributes": ["Timezone", "Country"]}).read().values
    assert all(template.count("%s") == 1 for templates in found.templates.values() for template in templates)


@pytest.mark.parametrize("bos", [True, False])
def test_padding_sides_give_equal_scores(tmp_path, bos):
    from saebench_plugins.backbones.hf_lm import HfLm, HfLmConfig

    corpus = {"type": "text_files", "paths": [str(write_corpus(tmp_path / "corpus.txt"))], "document": "line"}
    found = []
    for side in ("left", "right"):
        save_tiny_llama(tmp_path / side, bos=bos, padding_side=side)
        model = HfLm(HfLmConfig(model=str(tmp_path / side), corpus=corpus, context=16, max_tokens=400))
        model.prepare(FakeContext(tmp_path / "store"))
        source = write_what_it_answers(model, tmp_path / "data")
        metric = Ravel(RavelConfig(entities=(source,), pairs=40, words=2, rotation_epochs=1, gate=0))
        sae = SparseAutoencoder.start(torch.eye(16), torch.eye(16), torch.zeros(16), TopK(8), "none")
        context = FakeContext(tmp_path / f"store {side}", model, "layers.0")
        found.append(run(metric, model, sae, tmp_path, context)[0])
    assert found[0] == found[1]
    assert found[0].scores["isolation"].value > 0


def test_no_tensor_is_made_on_an_implicit_device(tmp_path):
    sae, names = identity_sae(), ("tokenise", "locate", "states", "resume", "generate")
    metric = metric_of(tmp_path)
    wanted, _ = run(metric, PlantedModel(), sae, tmp_path / "one")
    model = at_home(PlantedModel(), *names)
    with torch.device("meta"):
        found, _ = run(metric, model, sae, tmp_path / "two")
    assert found == wanted
