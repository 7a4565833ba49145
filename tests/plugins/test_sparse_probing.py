"""Sparse probing on texts whose classes are planted in single words."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from saebench_plugins.metrics._pooled import mean_rows, pool_codes, store_rows
from saebench_plugins.metrics._probe_fits import Fit, protocol_of
from saebench_plugins.metrics._probes import Probe, Sizes, draw_probe
from saebench_plugins.metrics._random_projections import random_projections
from saebench_plugins.metrics.sparse_probing import SparseProbing, SparseProbingConfig

from saebench_core import NotApplicable, SparseAutoencoder, TopK
from saebench_core.kernels import Selection
from tests.helpers.contexts import at_home
from tests.helpers.probing import (
    D_IN,
    PictureModel,
    Plain,
    WordModel,
    fitted,
    identity_sae,
    metric_with,
    planted,
    random_sae,
    scored,
    write_table,
)


def test_planted_latents_are_found(tmp_path):
    result, prepared = scored(metric_with(planted(tmp_path)), WordModel(), identity_sae(), tmp_path)
    assert result.scores["top1"].value == 1.0
    assert result.scores["top5"].value == 1.0
    assert result.scores["all_latents"].value == prepared.ceilings["all_latents"]  # the identity adds nothing
    tops = [f"top{k}{suffix}" for k in (1, 2, 5) for suffix in ("", "_auc", "_f1")]
    assert prepared.ceilings == pytest.approx(dict.fromkeys([*tops, "all_latents"], 0.975), abs=0.026)
    assert set(prepared.floors) == set(result.scores)
    assert {value for name, value in prepared.floors.items() if not name.endswith("_f1")} == {0.5}
    assert prepared.floors["top1_f1"] == pytest.approx(1 / 3)  # one class called always: 2/3 for it, weighted by a half
    assert result.items["label"] == [label for label in "abc" for _ in range(3)]
    assert result.items["k"] == [1, 2, 5] * 3
    assert result.items["latent"] == [latent for latent in (1, 2, 3) for _ in range(3)]
    assert all(result.items["converged"])
    assert len({len(column) for column in result.items.values()}) == 1


def test_permuted_labels_are_near_chance(tmp_path):
    metric = metric_with(planted(tmp_path, each=300), train_size=400, test_size=200)
    result, _ = scored(metric, WordModel(), random_sae(), tmp_path)
    for k in (1, 2, 5):
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
    metric = SparseProbing(SparseProbingConfig(train_size=40, test_size=20, k=(1, 5)))
    result, prepared = scored(metric, PictureModel(), identity_sae(), tmp_path)
    assert result.items["label"] == ["cat", "cat", "dog", "dog", "emu", "emu"]
    assert result.items["latent"] == [0, 0, 1, 1, 2, 2]
    assert result.scores["top1"].value == 1.0
    assert result.scores["top1"].n == 60
    assert prepared.tensors["offsets"].diff().unique().tolist() == [3]


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


def test_a_class_alone_is_no_question():
    groups = {"a": list(range(8)), "b": list(range(10, 110))}
    assert len(draw_probe("t", "a", groups, groups, Sizes(1024, 10, 0.95), 0, 1).train) == 0
    assert len(draw_probe("t", "b", groups, groups, Sizes(1024, 10, 0.05), 0, 1).test) == 0


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


def test_no_tensor_is_made_on_an_implicit_device(tmp_path):
    sae, metric = random_sae(), metric_with(planted(tmp_path))
    wanted, _ = scored(metric, WordModel(), sae, tmp_path / "one")
    model = at_home(WordModel(), "tokenise", "read")
    with torch.device("meta"):
        found, _ = scored(metric, model, sae, tmp_path / "two")
    assert found == wanted
