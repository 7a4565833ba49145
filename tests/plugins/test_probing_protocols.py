"""How sparse probing follows sae_probes, and what it reads: suites of tasks, and tables."""

from __future__ import annotations

import importlib.util
import random
import sys
import types

import pytest
import torch
import zstandard
from saebench_plugins.metrics import _probing_suites
from saebench_plugins.metrics._pooled import pool_codes
from saebench_plugins.metrics._probe_fits import protocol_of
from saebench_plugins.metrics._probes import Probe, Sizes
from saebench_plugins.metrics._probing_suites import suite_tables
from saebench_plugins.metrics.sparse_probing import SparseProbing, SparseProbingConfig

from saebench_core import BackboneDescription, InputError, MissingPackageError, named_generator
from tests.helpers.probing import (
    D_IN,
    NOISE,
    WordModel,
    fitted,
    identity_sae,
    metric_with,
    planted,
    random_sae,
    scored,
    write_table,
)


def test_positive_labels_and_rare_classes(tmp_path):
    table = planted(tmp_path)
    result, _ = scored(metric_with({**table, "positive": "b"}), WordModel(), identity_sae(), tmp_path)
    assert set(result.items["label"]) == {"b"}
    draw = random.Random(0)
    rows = [(f"{draw.choice(NOISE)} {draw.choice(NOISE)} {number % 8 + 4} {number}", "rare") for number in range(4, 9)]
    rows += [(f"1 {a} {b}", "x") for a in NOISE for b in NOISE] + [(f"2 {a} {b}", "y") for a in NOISE for b in NOISE]
    path = write_table(tmp_path / "rare.csv", rows)
    result, _ = scored(metric_with({"type": "csv", "path": path}), WordModel(), identity_sae(), tmp_path)
    assert set(result.items["label"]) == {"x", "y"}
    path = write_table(tmp_path / "tiny.csv", [("1 4", "x"), ("2 4", "y")])
    with pytest.raises(InputError, match="no class has 10 items"):
        scored(metric_with({"type": "csv", "path": path}), WordModel(), identity_sae(), tmp_path)


def ends_with_its_class(tmp_path, each=80):
    draw = random.Random(3)
    rows = []
    for number, label in enumerate(("x", "y")):
        for _ in range(each):
            words = [draw.choice([1, 2]), *(draw.choice(NOISE) for _ in range(8)), number + 1]
            rows.append((" ".join(map(str, words)), label))
    return {"type": "csv", "path": write_table(tmp_path / "end.csv", rows)}


def test_sae_probes_reads_the_last_token_and_keeps_the_end_of_long_texts(tmp_path):
    table = ends_with_its_class(tmp_path)
    metric = SparseProbing(SparseProbingConfig(tasks=(table,), protocol="sae_probes", max_tokens=4, k=(1,)))
    result, prepared = scored(metric, WordModel(), identity_sae(), tmp_path)
    assert prepared.tensors["offsets"].diff().unique().tolist() == [1]
    assert result.scores["top1"].value == result.scores["top1_auc"].value == result.scores["top1_f1"].value == 1.0
    assert result.items["latent"] == [1]  # both words tell, the first of them is taken
    cut = SparseProbing(SparseProbingConfig(tasks=(table,), max_tokens=4, k=(1,)))
    assert scored(cut, WordModel(), identity_sae(), tmp_path)[0].scores["top1"].value < 0.8


def test_sae_probes_trains_on_as_many_as_it_wants_and_tests_on_the_rest():
    sizes = Sizes(1024, 5000)
    tested = protocol_of("sae_probes").tested
    assert [tested(count, sizes) for count in (2500, 512, 545, 90, 30, 0)] == [1988, 50, 50, 45, 15, 0]
    assert tested(2500, Sizes(1024, 5000, 0.1)) == 2500 - 922  # of negatives nine tenths are needed
    assert [protocol_of("paper").tested(count, Sizes(4000, 1000)) for count in (2500, 7)] == [500, 1]


def test_sae_probes_ranks_in_units_of_a_latents_mean_activity():
    """Latent 0 differs by 2 and is 4 where it fires, latent 1 by 0.5 and is 0.5, so that latent 1 tells more."""
    rows = torch.tensor([[4.0, 0.5], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
    pooled = pool_codes(identity_sae(2), rows, torch.arange(5))
    labels = torch.tensor([True, True, False, False])
    for features in (pooled, rows.double().numpy()):
        assert protocol_of("sae_probes").scale(features).tolist() == pytest.approx([4.0, 0.5], abs=1e-5)
        assert protocol_of("sae_probes").ranked(features, labels, 2) == [1, 0]
        assert protocol_of("paper").ranked(features, labels, 2) == [0, 1]


@pytest.mark.parametrize("count", [3, 10, 60, 400])
def test_sae_probes_chooses_the_strength_that_validates_best(count):
    """Labels follow one feature of ten with much noise; the strength is that of a search written down here."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    draw = torch.Generator().manual_seed(count)
    features = torch.randn(count + 200, 10, generator=draw, dtype=torch.float64)
    labels = features[:, 0] + 2 * torch.randn(len(features), generator=draw, dtype=torch.float64) > 0
    labels[:2] = torch.tensor([True, False])
    train, test = torch.arange(count), torch.arange(count, count + 200)
    probe = Probe("t", "a", train, labels[train], labels[train][None], test, labels[test])
    fit = fitted("sae_probes", features, probe, probe.train_labels, 7)

    order = torch.randperm(count, generator=named_generator(7, "sparse_probing validation", "t", "a")).numpy()
    x, y = features[train].numpy()[order], labels[train].numpy()[order]
    if count >= 128:
        splits = [(list(range(count - 80)), list(range(count - 80, count)))]
    elif count > 12:
        splits = list(StratifiedKFold(6, shuffle=True, random_state=0).split(x, y))
    else:
        splits = [split for split in LeavePOut(2).split(x) if len(set(y[split[1]])) == 2]
    means = {}
    for strength in [10 ** (5 - 10 * step / 9) for step in range(10)]:
        areas = []
        for learn, check in splits:
            if len(set(y[learn])) < 2:
                areas.append(0.5)
                continue
            model = LogisticRegression(C=strength, max_iter=1000).fit(x[learn], y[learn])
            areas.append(roc_auc_score(y[check], model.predict_proba(x[check])[:, 1]))
        means[strength] = sum(areas)
    best = max(means, key=means.get) if count > 3 else 1.0
    model = LogisticRegression(C=best, max_iter=1000).fit(x, y)
    truth = labels[test].numpy()
    assert fit.accuracy == pytest.approx((model.predict(features[test].numpy()) == truth).mean(), abs=1e-9)
    assert fit.auc == pytest.approx(roc_auc_score(truth, model.predict_proba(features[test].numpy())[:, 1]), abs=1e-9)


@pytest.mark.parametrize("protocol", ["paper", "sae_probes", "sae_probes_l1"])
def test_every_protocol_scores_from_end_to_end(tmp_path, protocol):
    metric = metric_with(ends_with_its_class(tmp_path), protocol=protocol, k=(1, 2), permutations=1)
    result, _ = scored(metric, WordModel(), random_sae(), tmp_path)
    assert 0.5 < result.scores["all_latents"].value <= 1
    assert set(result.scores) == set(metric.scores())
    assert metric.large_inputs


def test_a_task_may_not_be_called_as_one_of_the_suite(wheel, tmp_path):
    table = {**planted(tmp_path), "name": "first"}
    metric = SparseProbing(SparseProbingConfig(suite="sae_probes", tasks=(table,)))
    with pytest.raises(InputError, match="are called 'first'"):
        metric.fingerprint()


def test_tables_may_set_rows_apart_for_tests(tmp_path):
    draw = random.Random(5)

    def rows(count):
        return [
            (f"{number % 2 + 1} {' '.join(str(draw.choice(NOISE)) for _ in range(6))}", "ab"[number % 2])
            for number in range(count)
        ]

    train, test = rows(200), rows(60)
    train += test[:20]  # what is tested is not learned from
    table = {
        "type": "csv",
        "path": write_table(tmp_path / "train.csv", train),
        "test_path": write_table(tmp_path / "test.csv", test),
    }
    backbone = WordModel()
    metric = metric_with(table, train_size=400, test_size=400)
    _, prepared = scored(metric, backbone, identity_sae(), tmp_path)
    assert len(metric.fingerprint()["train"]) == 2
    read = {
        part: {backbone.texts_read[item] for item in prepared.tensors[f"0.{part}"].tolist()}
        for part in ("train", "test")
    }
    tested = {text for text, _ in test}
    assert read["test"] <= tested
    assert not read["train"] & tested
    assert len(read["test"]) > 40


def test_the_default_is_the_benchmark_of_sae_probes(tmp_path, monkeypatch):
    bare = SparseProbing(SparseProbingConfig())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    reason = bare.applicable(WordModel()).reason
    assert "give `tasks` or a `suite`" in reason
    assert "--no-deps sae-probes" in reason
    assert bare.fingerprint() == {}
    assert bare.stored_bytes(BackboneDescription("language", {"s": D_IN}), "s") == 0
    with pytest.raises(MissingPackageError, match="sae-probes"):
        SparseProbing(SparseProbingConfig(suite="safety")).fingerprint()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package like sae-probes, with two binary sets and one that is not."""
    data = tmp_path / "site" / "sae_probes" / "data"
    (data / "cleaned_data").mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")

    def pack(name, header, rows):
        text = "\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n"
        (data / name).write_bytes(zstandard.compress(text.encode()))

    listed = [("cleaned_data/1_first.csv", "Binary Classification"), ("cleaned_data/2_year.csv", "Continuous Data")]
    listed.append(("cleaned_data/30_third set.csv", "Binary Classification"))
    pack("probing_datasets_MASTER.csv.zst", ("Dataset save name", "Data type"), listed)
    for name in ("1_first", "30_third set"):
        rows = [
            (f"{number % 2 + 1} {number % 7 + 4} {number % 5 + 4} {number % 3 + 4}", number % 2) for number in range(90)
        ]
        pack(f"cleaned_data/{name}.csv.zst", ("prompt", "target"), rows)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "sae_probes", raising=False)


def test_a_suite_names_every_binary_set_of_the_wheel(tmp_path, wheel):
    metric = SparseProbing(SparseProbingConfig(protocol="sae_probes", k=(1,)))
    assert metric.applicable(WordModel()) is None
    assert list(metric.fingerprint()) == ["first", "third set"]
    result, _ = scored(metric, WordModel(), identity_sae(), tmp_path)
    assert result.items["task"] == ["first", "third set"]
    both = SparseProbing(SparseProbingConfig(suite="sae_probes", tasks=(planted(tmp_path),)))
    assert list(both.fingerprint()) == ["first", "third set", "t"]


def test_the_papers_suite_has_36_classes(monkeypatch):
    calls = []

    def load_dataset(name, config, **options):
        calls.append((name, config, options))
        long = "x" * 600
        if name == "LabHC/bias_in_bios":
            return ({"hard_text": f"{i}", "profession": i % 28, "gender": i // 28 % 2} for i in range(2800))
        if name == "canrager/amazon_reviews_mcauley_1and5":
            return ({"text": f"{i}", "category": i % 8, "rating": 1.0 + 4 * (i // 8 % 2)} for i in range(800))
        if name == "parquet":
            return (
                {"code": f"{i}{long}", "language": ["C", "HTML", "Java", "PHP", "Python", "Go"][i % 6]}
                for i in range(600)
            )
        if name == "fancyzhx/ag_news":
            return ({"text": f"{i}", "label": i % 4} for i in range(400))
        assert name == "Helsinki-NLP/europarl"
        return ({"translation": {language: f"{language} {i}" for language in config.split("-")}} for i in range(100))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    tables = suite_tables("paper")
    classes = 0
    for table in tables:
        rows = table.rows()
        positive = table.positive or sorted(set(rows.labels))
        classes += len(positive)
        kept = table.test_rows()
        if kept is not None:
            assert set(kept.labels) == set(rows.labels)
    assert len(tables) == 8
    assert classes == 36
    assert {options["split"] for name, _, options in calls if "bios" in name} == {"train", "test"}
    assert [options["data_files"] for name, _, options in calls if name == "parquet"] == [
        ["hf://datasets/codeparrot/github-code/data/*.parquet"]
    ]
    code = tables[5].rows()
    assert {len(text) for text in code.texts} <= {451, 452, 453}  # a number and 600 characters less 150


def test_languages_are_told_apart_in_sayings(monkeypatch, tmp_path):
    files = [
        "people",
        "science",
        "politics",
        "work",
        "men-women",
        "literature",
        "de/zitate",
        "pl/dowcipy",
        "pl/argante",
    ]
    files += ["pl/pratchett", "pl/chuck-norris", "it/italia", "it/zuse", "it/leggi", "it/luttazzi"]
    files += [f"es/{name}.fortunes" for name in ("sabiduria", "sentimientos", "arte", "vida")]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        sayings = [
            f"{file} says {number}: {'a saying that is long enough' if number else 'short'}" for number in range(3)
        ]
        (tmp_path / file).write_text("\n%\n".join(sayings))
    monkeypatch.setattr(_probing_suites, "_FORTUNES", str(tmp_path))
    (table,) = suite_tables("languages")
    rows = table.rows()
    counts = {label: rows.labels.count(label) for label in set(rows.labels)}
    assert counts == {"english": 12, "german": 2, "polish": 8, "italian": 8, "spanish": 8}
    assert all(("de/" in text) == (label == "german") for text, label in zip(rows.texts, rows.labels, strict=True))
    (tmp_path / "it" / "zuse").unlink()
    (tmp_path / "work").unlink()
    with pytest.raises(MissingPackageError, match="where work is missing; apt-get install fortunes fortunes-it"):
        suite_tables("languages")
