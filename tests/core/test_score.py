"""Scores of an SAE that somebody has: those of its cell, with floors, ceilings and reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import saebench_core as sb
from saebench_core.errors import SaebenchError
from saebench_core.rules import Export, TopK
from tests.helpers.notebooks import EV, data_of, planted_rows, planted_twins
from tests.helpers.registries import listing

PEERS = Path(__file__).parents[1] / "data" / "peers"
KINDS = """\
name: kinds
backbones:
  - {name: toy, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}}
architectures:
  - {type: topk, d_sae: 16}
  - {type: batch_topk, d_sae: 16}
  - {type: jumprelu, d_sae: 16, threshold: 0.05}
  - {type: relu, d_sae: 16}
  - {type: gated, d_sae: 16}
constraints:
  - {type: trained}
  - {type: frozen_encoder}
l0: [3]
seeds: [0]
training: {steps: 10, batch_size: 32, calibration_rows: 64, evaluation_rows: 64}
runtime: {device: cpu, threads: 1}
metrics:
  - {type: reconstruction, rows: 64}
  - {type: feature_recovery}
"""


@pytest.fixture(scope="module")
def planted():
    return planted_rows()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workdir that tests share."""
    return tmp_path_factory.mktemp("work") / "work"


@pytest.fixture(scope="module")
def twins(work):
    return planted_twins(work)


@pytest.fixture(scope="module")
def kinds(work):
    return sb.run(sb.Registry.from_dict(data_of(KINDS)), workdir=work, progress=False)


@pytest.mark.parametrize("form", ["cell", "folder", "object"])
@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "jumprelu", "relu", "gated"])
def test_a_score_is_the_cells_own(kinds, work, architecture, form):
    for cell in kinds.select(architecture=architecture):
        given = {"cell": cell, "folder": cell.path("sae"), "object": cell.sae}[form]
        metrics = [{"type": "reconstruction", "rows": 64}, "feature_recovery"]
        found = sb.score(given, metrics, backbone=kinds.registry.backbone("toy"), workdir=work)
        own = {name: value for name, value in cell.scores.items() if not name.endswith("_at_start")}
        assert len(own) > 5
        for name, metric in own.items():
            assert found[name].model_copy(update={"valid_null": metric.valid_null}) == metric


def test_what_was_scored_is_not_scored_again(kinds, work):
    def call_it():
        return sb.score(kinds.cells[0].sae, ["feature_recovery"], backbone=kinds.registry.backbone(), workdir=work)

    first, before = call_it(), listing(work / "store")
    assert dict(call_it()) == dict(first)
    assert listing(work / "store") == before
    prepared = len(list((work / "store" / "metric").glob("*/*/")))
    sb.score(kinds.cells[2], ["feature_recovery"], backbone=kinds.registry.backbone(), workdir=work)
    assert len(list((work / "store" / "metric").glob("*/*/"))) == prepared, "the same inputs, floor and ceiling"


def test_a_tensor_is_evaluated_on_as_a_whole(planted, twins, work):
    sae = twins["trained", 0].sae
    found = sb.score(sae, activations=planted.numpy(), workdir=work)
    wide = planted.double()
    left = (wide - sae.reconstruct(planted).double()).square().sum()
    assert found[EV].value == pytest.approx(float(1 - left / (wide - wide.mean(0)).square().sum()), abs=1e-9)
    assert (found[EV].floor, found[EV].ceiling, found[EV].n) == (0.0, 1.0, 1000)
    assert found.realised_l0 == found["reconstruction/l0"].value == pytest.approx(3.0, abs=0.1)
    assert found.alive_share == found["reconstruction/alive"].value
    held = sb.score(sae, backbone=twins.registry.backbone(), workdir=work)
    assert held[EV].value == twins["trained", 0][EV].value


def test_what_does_not_apply_is_a_result_with_a_reason(planted, twins, work):
    metrics = ["reconstruction", "feature_recovery", {"type": "loss_recovered"}]
    found = sb.score(twins["trained", 0], metrics, activations=planted, workdir=work)
    recovery = found["feature_recovery/mean"]
    assert (recovery.status, recovery.value) == ("not_applicable", None)
    assert recovery.reason == "the backbone's true features are not known"
    assert found["loss_recovered/ce"].status == "not_applicable" and found[EV].status == "ok"
    frame = found.to_frame().set_index("score")
    assert list(frame.index) == list(found) and len(found) == len(frame)
    assert frame.loc[EV, "value"] == found[EV].value and frame.loc[EV, "floor"] == 0.0
    assert not frame.loc["feature_recovery/mean", "applies"]
    assert frame.loc["feature_recovery/mean", "reason"] == recovery.reason
    lines = {line.split()[0]: line.split()[1:] for line in repr(found).splitlines()[1:]}
    assert lines[EV] == [f"{found[EV].value:.3f}", "0.000", "1.000"]
    assert " ".join(lines["feature_recovery"]) == f"- - - {recovery.reason}"  # all its scores in one line
    with pytest.raises(KeyError, match="did you mean"):
        found["reconstruction/explained_varianc"]


@pytest.mark.parametrize("name", ["dictionary_learning_topk", "saelens_training_batchtopk"])
def test_an_sae_of_another_library_is_scored(planted, tmp_path, name):
    found = sb.score(PEERS / name, activations=planted, workdir=tmp_path)
    sae = sb.read_checkpoint(PEERS / name).sae
    codes = sae.encode(planted)
    assert found.realised_l0 == pytest.approx(float((codes.values != 0).sum()) / 1000, abs=1e-6)
    assert found.cell.certificate["loaded"]["format"] == name.partition("_t")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "synthetic"}, "score: give exactly one of `backbone` and `activations`"),
        ({"activations": None}, "score: give exactly one of `backbone` and `activations`"),
        ({"sae": torch.nn.Linear(2, 2)}, "expected a SparseAutoencoder, a cell of results, or a path, got torch.nn"),
        ({"sae": "nowhere"}, "score: architectures.*no file '.*/nowhere'"),
        ({"metrics": ["recon"]}, "score: no metric is called 'recon'"),
        ({"metrics": "reconstruction"}, "score: metrics: expected a list of entries"),
        ({"metrics": []}, "score: metrics: "),
        ({"format": "sparsfy"}, "score: architectures"),
        ({"runtime": {"device": "gpu"}}, "score: runtime.device: "),
        ({"activations": torch.full((9, 8), float("inf"))}, "score: activations of the split train: 9 of 9 rows"),
        ({"activations": torch.ones(9, 7)}, "reads 8 numbers, but activations of rows has 7"),
        ({"activations": torch.ones(9)}, r"score: activations: expected the shape \(rows, d_in\)"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused(planted, twins, tmp_path, change, message):
    given = {"sae": twins["trained", 0].sae, "activations": planted, "workdir": tmp_path / "work"}
    with pytest.raises(sb.InputError, match=message):
        sb.score(**given | change)


def test_a_site_is_chosen(kinds, work):
    backbone, sae = kinds.registry.backbone(), kinds.cells[0]
    assert sb.score(sae, backbone=backbone, site="activations", workdir=work).cell.result.site == "activations"
    with pytest.raises(sb.InputError, match=r"no site 'layers.3'; sites: activations"):
        sb.score(sae, backbone=backbone, site="layers.3", workdir=work)
    with pytest.raises(sb.InputError, match="the backbone has several sites; give `site`: a, b"):
        sb.score(sae, backbone=backbone | {"sites": ["a", "b"]}, workdir=work)


def test_a_metric_that_fails_is_an_error(twins, planted, tmp_path, monkeypatch):
    from saebench_plugins.metrics.reconstruction import ReconstructionMetric

    def fail(self, *args):
        raise ValueError("a bad day")

    monkeypatch.setattr(ReconstructionMetric, "score", fail)
    with pytest.raises(SaebenchError, match=r"^score: reconstruction: ValueError: a bad day$"):
        sb.score(twins["trained", 0], activations=planted, workdir=tmp_path)


def test_an_object_whose_rule_only_a_plugin_knows_is_refused(twins, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(TopK, "export", lambda self, tensors: Export("mine", {}, {}))
    with pytest.raises(
        sb.InputError, match=r"score: architecture 'mine' needs a plugin's rule.*give the cell of results"
    ):
        sb.score(twins["trained", 0].sae, activations=planted, workdir=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": 3}, "backbones"),
        ({"backbone": 3, "site": "x"}, "backbones"),
        ({"backbone": {"type": "synthetic", "d_in": 8, "sites": "activations"}}, "sites"),
        ({"backbone": {"type": "synthetic", "d_in": 8}, "runtime": 3}, "runtime"),
    ],
)
def test_what_is_no_mapping_is_told_by_its_key(given, message, tmp_path):
    with pytest.raises(sb.InputError, match=message):
        sb.score(tmp_path, **given, workdir=tmp_path / "work")


def test_a_training_that_is_no_mapping_is_told(planted, tmp_path):
    with pytest.raises(sb.InputError, match="training"):
        sb.train_twins(planted, {"type": "topk", "expansion": 2}, ["trained"], training=5, workdir=tmp_path / "work")
