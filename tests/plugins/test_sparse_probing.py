"""Sparse probing on texts whose classes are planted in single words."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import types

import pytest
import torch
import zstandard
from pydantic import TypeAdapter, ValidationError
from saebench_plugins.metrics._pooled import mean_rows, pool_codes, store_rows
from saebench_plugins.metrics._probe_fits import Features, Fit, protocol_of
from saebench_plugins.metrics._probes import Probe, Sizes, draw_probe
from saebench_plugins.metrics._probing_suites import suite_tables
from saebench_plugins.metrics._random_projections import random_projections
from saebench_plugins.metrics.sparse_probing import SparseProbing, SparseProbingConfig

from saebench_core import (
    Backbone,
    BackboneDescription,
    InputError,
    MissingPackageError,
    NotApplicable,
    SparseAutoencoder,
    Subject,
    TokenBatch,
    TopK,
    named_generator,
)
from saebench_core.kernels import Selection
from tests.helpers.contexts import FakeContext, at_home

D_IN = 12
NOISE = range(4, D_IN)


class Plain(Backbone):
    """Nothing but a backbone."""

    def describe(self):
        return BackboneDescription("other", {"s": D_IN})

    def prepare(self, context):
        pass

    def rows_available(self, site, split):
        return 0

    def stream(self, site, split, start, rows):
        return iter(())


class WordModel(Plain):
    """A word is a number, and its activation that unit vector; the first token is not kept."""

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


def test_planted_latents_are_found(tmp_path):
    result, prepared = scored(metric_with(planted(tmp_path)), WordModel(), identity_sae(), tmp_path)
    assert result.scores["top1"].value == 1.0
    assert result.scores["top5"].value == 1.0
    assert result.scores["all_latents"].value == prepared.ceilings["all_latents"]  # the identity adds nothing
    tops = [f"top{k}{suffix}" for k in (1, 5) for suffix in ("", "_auc", "_f1")]
    assert prepared.ceilings == pytest.approx(dict.fromkeys([*tops, "all_latents"], 0.975), abs=0.026)
    assert set(prepared.floors) == set(result.scores)
    assert {value for name, value in prepared.floors.items() if not name.endswith("_f1")} == {0.5}
    assert prepared.floors["top1_f1"] == pytest.approx(1 / 3)  # one class called always: 2/3 for it, weighted by a half
    assert result.items["label"] == ["a", "a", "b", "b", "c", "c"]
    assert result.items["k"] == [1, 5] * 3
    assert result.items["latent"] == [1, 1, 2, 2, 3, 3]
    assert all(result.items["converged"])
    assert len({len(column) for column in result.items.values()}) == 1


def test_permuted_labels_are_near_chance(tmp_path):
    metric = metric_with(planted(tmp_path, each=300), train_size=400, test_size=200)
    result, _ = scored(metric, WordModel(), random_sae(), tmp_path)
    for k in (1, 5):
        assert result.scores[f"top{k}"].value > 0.6
        assert abs(result.scores[f"top{k}_permuted"].value - 0.5) < 0.08
        assert result.scores[f"top{k}"].n == 3 * 200  # a third of 300 texts, and as many of the other classes


def test_equal_runs_are_equal(tmp_path):
    runs = [scored(metric_with(planted(tmp_path)), WordModel(), random_sae(), tmp_path)[0] for _ in range(2)]
    assert runs[0] == runs[1]
    other = scored(metric_with(planted(tmp_path), seed=7), WordModel(), random_sae(), tmp_path)[0]
    assert other.items["accuracy"] != runs[0].items["accuracy"]


def test_means_are_over_classes_then_tasks(tmp_path):
    tasks = planted(tmp_path), planted(tmp_path, classes=("x", "y"), name="two")
    result, _ = scored(metric_with(*tasks, k=(2,)), WordModel(), random_sae(), tmp_path)
    assert result.items["task"] == ["t", "t", "t", "two"]
    assert result.items["label"] == ["a", "b", "c", "y"]
    first, last = result.items["accuracy"][:3], result.items["accuracy"][3]
    assert result.scores["top2"].value == pytest.approx((sum(first) / 3 + last) / 2)
    parts = ("", "_auc", "_f1", "_permuted", "_random", "_channels")
    assert set(result.scores) == {*(f"top2{part}" for part in parts), "all_latents"}


def test_splits_are_balanced_and_share_no_text(tmp_path):
    rows = [(f"1 {number % 8 + 4} {number % 5 + 4} {number % 3 + 4}", "a") for number in range(200)]
    rows += [(f"2 {number % 8 + 4} {number % 7 + 4} {number % 3 + 4}", "b") for number in range(200)]
    rows += rows[:50]
    table = {"type": "csv", "path": write_table(tmp_path / "dup.csv", rows)}
    backbone = WordModel()
    _, prepared = scored(metric_with(table), backbone, identity_sae(), tmp_path)
    assert len(set(backbone.texts_read)) == len(backbone.texts_read)
    tensors = prepared.tensors
    assert not set(tensors["0.train"].tolist()) & set(tensors["0.test"].tolist())
    for part in ("train", "test"):
        labels, items = tensors[f"0.{part}_labels"], tensors[f"0.{part}"].tolist()
        assert labels.float().mean() == 0.5
        assert [backbone.texts_read[item][0] == "2" for item in items] == labels.tolist()
    orders = tensors["0.permuted"].tolist()
    assert len({tuple(order) for order in [*orders, tensors["0.train_labels"].tolist()]}) == 6
    assert all(sum(order) == len(order) / 2 for order in orders)


def test_negatives_come_evenly_from_the_other_classes():
    groups = {"a": list(range(10)), "b": list(range(10, 20)), "c": list(range(20, 22)), "d": list(range(30, 40))}
    probe = draw_probe("t", "a", groups, groups, Sizes(12, 4), 0, 3)
    assert probe.train.tolist() == [0, 1, 2, 3, 4, 5, 10, 20, 30, 11, 21, 31]
    assert probe.test.tolist() == [0, 1, 10, 20]
    assert probe.train_labels.tolist() == [True] * 6 + [False] * 6
    short = draw_probe("t", "c", groups, groups, Sizes(12, 4), 0, 3)
    assert short.train.tolist() == [20, 21, 0, 10]


def fitted(name, features, probe, labels, seed=0):
    return protocol_of(name).fitted(Features.of(features.numpy(), probe), probe, labels, seed)


def test_ranking_by_hand():
    """Four items; latent 2 differs by -0.5, latent 0 by 0.25, latent 1 not at all, latent 3 as latent 0."""
    rows = torch.tensor([[0.5, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    pooled = pool_codes(identity_sae(4), rows, torch.arange(5))
    labels = torch.tensor([True, True, False, False])
    paper = protocol_of("paper")
    assert paper.ranked(pooled, labels, 3) == paper.ranked(rows.double().numpy(), labels, 3) == [2, 0, 3]
    assert paper.ranked(pooled[[0, 2]], torch.tensor([True, False]), 1) == [2]
    assert (pooled.toarray() == rows.numpy()).all()


def test_pooling_equals_the_dense_mean_and_encodes_once(monkeypatch):
    sae = random_sae(d_sae=50)
    counts = [3, 0, 1, 40, 0, 7] * 30
    rows = torch.randn(sum(counts), D_IN, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    dense = sae.encode(rows).to_dense()
    expected = torch.stack(
        [part.mean(0) if len(part) else torch.zeros(50) for part in torch.split(dense, counts)]
    ).double()
    encoded = []
    encode = SparseAutoencoder.encode
    monkeypatch.setattr(SparseAutoencoder, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    monkeypatch.setattr(Selection, "scatter", lambda *args: pytest.fail("rows x d_sae was made dense"))
    pooled = pool_codes(sae, rows, offsets)
    assert sum(encoded) == len(rows)
    torch.testing.assert_close(torch.from_numpy(pooled.toarray()), expected, rtol=1e-5, atol=1e-7)
    assert pooled.indices.dtype == "int32"
    torch.testing.assert_close(mean_rows(rows, offsets)[3], rows[4:44].double().mean(0))


def test_a_probe_that_does_not_converge_says_so():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(60, 40, generator=draw, dtype=torch.float64) * torch.logspace(-4, 6, 40, dtype=torch.float64)
    labels = torch.arange(60) % 2 == 0
    probe = Probe("t", "a", torch.arange(40), labels[:40], labels[None, :40], torch.arange(40, 60), labels[40:])
    fit = fitted("paper", features, probe, probe.train_labels)
    assert isinstance(fit, Fit)
    assert not fit.converged


def test_features_that_never_fire_give_chance():
    labels = torch.arange(20) % 2 == 0
    probe = Probe("t", "a", torch.arange(10), labels[:10], labels[None, :10], torch.arange(10, 20), labels[10:])
    for name in ("paper", "sae_probes", "sae_probes_l1"):
        fit = fitted(name, torch.zeros(20, 1, dtype=torch.float64), probe, labels[:10])
        assert fit == Fit(0.5, 0.5, pytest.approx(1 / 3), True)


def test_rows_are_stored_without_loss_unless_they_are_too_many():
    exact = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    items = list(torch.split(exact, [3, 0, 7]))
    rows, offsets = store_rows([items[:2], items[2:]])
    assert torch.equal(rows, exact)
    assert offsets.tolist() == [0, 3, 3, 10]
    slim, _ = store_rows([[item.bfloat16().float() for item in items]])
    assert slim.dtype == torch.bfloat16
    assert torch.equal(slim, exact.bfloat16())
    small, _ = store_rows([items[:1], items[2:]], limit=100)
    assert small.dtype == torch.bfloat16


def test_images_are_probed_class_by_class(tmp_path):
    metric = SparseProbing(SparseProbingConfig(train_size=40, test_size=20))
    result, prepared = scored(metric, PictureModel(), identity_sae(), tmp_path)
    assert result.items["label"] == ["cat", "cat", "dog", "dog", "emu", "emu"]
    assert result.items["latent"] == [0, 0, 1, 1, 2, 2]
    assert result.scores["top1"].value == 1.0
    assert result.scores["top1"].n == 60
    assert prepared.tensors["offsets"].diff().unique().tolist() == [3]


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


def test_where_it_does_not_apply(tmp_path):
    bare = SparseProbing(SparseProbingConfig())
    assert isinstance(bare.applicable(Plain()), NotApplicable)
    assert bare.applicable(PictureModel()) is None
    metric = metric_with(planted(tmp_path))
    assert metric.applicable(WordModel()) is None
    assert set(metric.fingerprint()) == {"t"}
    assert list(metric.fingerprint()["t"]) == ["t.csv"]


def test_configurations_that_cannot_be_right():
    validate = TypeAdapter(SparseProbingConfig).validate_python
    with pytest.raises(ValidationError, match="two tasks are called 'x'"):
        validate({"tasks": [{"type": "csv", "path": "a/x.csv"}, {"type": "csv", "path": "b/x.csv.zst"}]})
    with pytest.raises(ValidationError, match="a number twice"):
        validate({"k": [1, 1]})


def test_every_score_is_described(tmp_path):
    metric = metric_with(planted(tmp_path), k=(1, 3))
    result, _ = scored(metric, WordModel(), random_sae(), tmp_path)
    infos = metric.scores()
    assert set(infos) == set(result.scores)
    assert [name for name, info in infos.items() if info.headline] == ["top1", "top3"]
    assert all(info.reads == "encoder" for info in infos.values())


def test_importing_the_plugin_is_light():
    code = (
        "import sys, saebench_plugins.metrics.sparse_probing\n"
        "heavy = {'transformers', 'gguf', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_accuracy_equals_plain_scikit_learn_and_the_ranking_saebenchs(tmp_path):
    """Dense mean codes, differences of means sorted by size, scikit-learn's regression: the long way round."""
    from sklearn.linear_model import LogisticRegression

    sae, backbone = random_sae(d_sae=40), WordModel()
    result, prepared = scored(metric_with(planted(tmp_path), k=(1, 2, 5)), backbone, sae, tmp_path)
    rows = [backbone.read(backbone.tokenise([text], 128), "s") for text in tuple(backbone.texts_read)]
    pooled = torch.stack([sae.encode(part).to_dense().mean(0) for part in rows]).double()
    raw = torch.stack([part.double().mean(0) for part in rows])
    for number, label in enumerate(["a", "b", "c"]):
        train, labels, test, truth = (
            prepared.tensors[f"{number}.{name}"].numpy() for name in ("train", "train_labels", "test", "test_labels")
        )
        for features, column in ((pooled, "accuracy"), (raw, "channels")):
            means = [features[train[labels == side]].mean(0) for side in (True, False)]
            order = (means[0] - means[1]).abs().argsort(descending=True, stable=True)
            for k in (1, 2, 5):
                model = LogisticRegression(max_iter=1000).fit(features[train][:, order[:k]].numpy(), labels)
                accuracy = (model.predict(features[test][:, order[:k]].numpy()) == truth).mean()
                row = result.items["label"].index(label) + (1, 2, 5).index(k)
                assert result.items[column][row] == pytest.approx(accuracy, abs=1e-9)
        every = LogisticRegression(max_iter=1000).fit(pooled[train].numpy(), labels)
        accuracy = (every.predict(pooled[test].numpy()) == truth).mean()
        assert result.items["all_latents"][3 * number] == pytest.approx(accuracy, abs=1e-9)


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


def test_a_class_alone_is_no_question():
    groups = {"a": list(range(8)), "b": list(range(10, 110))}
    assert len(draw_probe("t", "a", groups, groups, Sizes(1024, 10, 0.95), 0, 1).train) == 0
    assert len(draw_probe("t", "b", groups, groups, Sizes(1024, 10, 0.05), 0, 1).test) == 0


def test_a_task_may_not_be_called_as_one_of_the_suite(wheel, tmp_path):
    table = {**planted(tmp_path), "name": "first"}
    metric = SparseProbing(SparseProbingConfig(suite="sae_probes", tasks=(table,)))
    with pytest.raises(InputError, match="are called 'first'"):
        metric.fingerprint()


def test_random_projections_are_as_sparse_and_reproducible():
    rows = 3 + torch.randn(4000, D_IN, generator=torch.Generator().manual_seed(1))
    sae = random_sae(d_sae=64, k=5)
    one, two, other = (random_projections(sae, rows, seed) for seed in (1, 1, 2))
    assert torch.equal(one.w_enc, two.w_enc)
    assert not torch.equal(one.w_enc, other.w_enc)
    assert (one.w_enc.norm(dim=0) - 1).abs().max() < 1e-6
    wanted, found = (len(each.encode(rows).values) / len(rows) for each in (sae, one))
    assert found == pytest.approx(wanted, rel=0.01)
    dense = SparseAutoencoder.start(torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(D_IN), "none")
    assert len(random_projections(dense, rows, 0).encode(rows).values) <= rows.numel()


def test_a_share_of_positives_that_is_not_a_half(tmp_path):
    metric = metric_with(planted(tmp_path, classes=("a", "b"), each=300), positive_share=0.1, k=(1,))
    result, prepared = scored(metric, WordModel(), random_sae(), tmp_path)
    for part, size in (("train", 80), ("test", 40)):
        assert prepared.tensors[f"0.{part}_labels"].sum() == 0.1 * size
        assert len(prepared.tensors[f"0.{part}"]) == size
    assert prepared.floors["top1"] == pytest.approx(0.9)
    assert prepared.floors["top1_auc"] == 0.5
    assert prepared.floors["top1_f1"] == pytest.approx(0.9 * 1.8 / 1.9)
    assert result.scores["top1_permuted"].value == pytest.approx(0.9, abs=0.05)


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


def test_no_tensor_is_made_on_an_implicit_device(tmp_path):
    sae, metric = random_sae(), metric_with(planted(tmp_path))
    wanted, _ = scored(metric, WordModel(), sae, tmp_path / "one")
    model = at_home(WordModel(), "tokenise", "read")
    with torch.device("meta"):
        found, _ = scored(metric, model, sae, tmp_path / "two")
    assert found == wanted
