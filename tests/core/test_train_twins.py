"""Twins on a tensor: a registry like any other, whatever the rows come in, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import saebench_core as sb
from saebench_core.activations import StoredReader
from saebench_core.api import tensors
from saebench_core.errors import SaebenchError
from saebench_core.store import Store
from tests.helpers.notebooks import EV, SETTINGS, SHORT, TOPK, TWINS, planted_rows, planted_twins
from tests.helpers.registries import TINY, call, environment, listing


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


def mean(results, constraint, score=EV):
    return float(np.mean([cell[score].value for cell in results.select(constraint=constraint)]))


def test_what_is_trained_explains_more_than_what_is_held_random(twins):
    assert {cell.result.status for cell in twins} == {"done"} and len(twins) == 6
    trained, frozen, untrained = (mean(twins, name) for name in ("trained", "frozen_decoder", "untrained"))
    assert trained > frozen + 0.03 > untrained + 0.06 > 0.06
    assert {cell[EV].floor for cell in twins} == {0.0} and {cell[EV].ceiling for cell in twins} == {1.0}


def test_certificates_prove_that_they_are_twins(twins):
    for seed in (0, 1):
        certificates = [cell.certificate for cell in twins.select(seed=seed)]
        for key in ("base_draw_sha256", "batch_order_sha256"):
            assert len({certificate[key] for certificate in certificates}) == 1
    draws = {cell.certificate["base_draw_sha256"] for cell in twins}
    assert len(draws) == 2, "seeds differ"
    frozen = twins["frozen_decoder", 0].certificate["frozen"]
    assert frozen["W_dec"]["before"] == frozen["W_dec"]["after"]
    assert "W_dec" not in twins["trained", 0].certificate["frozen"]


def test_the_rows_are_cut_by_the_stated_rule(planted, twins, work):
    (folder,) = (work / "store" / "rows").glob("*/*/")
    parts = {
        split: StoredReader(folder / split, torch.device("cpu")) for split in ("train", "calibration", "evaluation")
    }
    assert {split: reader.rows for split, reader in parts.items()} == {
        "train": 800, "calibration": 100, "evaluation": 100,
    }  # fmt: skip
    whole = torch.cat([torch.cat(list(reader.batches(64))) for reader in parts.values()])
    assert torch.equal(whole, planted), "in their order, value for value"
    assert twins["trained", 0][EV].n == 100
    for count, sizes in {20: (16, 2, 2), 29: (25, 2, 2), 1009: (809, 100, 100)}.items():
        made = tensors.cut(torch.zeros(count, 2))
        assert tuple(len(made[split]) for split in ("train", "calibration", "evaluation")) == sizes


def test_the_score_is_that_of_the_held_out_rows(planted, twins):
    cell, held = twins["trained", 1], planted[900:].double()
    left = (held - cell.sae.reconstruct(planted[900:]).double()).square().sum()
    assert cell[EV].value == pytest.approx(float(1 - left / (held - held.mean(0)).square().sum()), abs=1e-9)


def test_the_same_call_computes_nothing_whatever_the_numbers_lie_in(planted, twins, work):
    options = SHORT | {"training": SETTINGS, "seeds": [0, 1]}
    before = listing(work / "store")
    forms = [
        planted.numpy(),
        planted.numpy().astype(np.float64),
        planted.clone().requires_grad_(),
        planted.T.contiguous().T,
        np.asfortranarray(planted.numpy()),
    ]
    for rows in forms:
        again = sb.train_twins(rows, TOPK, TWINS, workdir=work, **options)
        assert again.worked == 0
        assert again.to_json() == twins.to_json()
    assert listing(work / "store") == before


def test_half_precision_and_read_only_rows_are_taken_as_their_fp32_values(planted, tmp_path):
    rough = planted.bfloat16()
    np.save(tmp_path / "rows.npy", rough.float().numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    store, kept = Store(tmp_path / "store"), set()
    for rows in (rough, rough.float(), rough.double(), mapped, mapped.astype(np.float64)):
        kept.add(tensors.keep("test", tensors.cut(rows), store))
    assert len(kept) == 1
    other = tensors.keep("test", tensors.cut(planted.half()), store)
    assert other not in kept
    reader = StoredReader(other / "train", torch.device("cpu"))
    assert torch.equal(torch.cat(list(reader.batches(800))), planted.half().float()[:800])


def test_only_what_is_new_is_trained(planted, tmp_path):
    first = sb.train_twins(planted, TOPK, TWINS, workdir=tmp_path / "work", **SHORT)
    assert first.worked == 1 + 1 + 3
    kept = first["trained", 0].path("sae").stat().st_mtime_ns
    more = sb.train_twins(
        planted, TOPK, [*TWINS, "frozen_encoder"], workdir=tmp_path / "work", **SHORT | {"seeds": [0, 1]}
    )
    assert more.worked == 2 + 5
    assert more["trained", 0].path("sae").stat().st_mtime_ns == kept
    assert len(list((tmp_path / "work" / "store" / "rows").glob("*/*/"))) == 1
    sb.train_twins(planted + 1, TOPK, TWINS, workdir=tmp_path / "work", **SHORT)
    assert len(list((tmp_path / "work" / "store" / "rows").glob("*/*/"))) == 2, "other rows are other products"


def test_results_do_not_depend_on_where_they_lie(planted, tmp_path):
    one = sb.train_twins(planted, TOPK, TWINS, workdir=tmp_path / "one", **SHORT)
    two = sb.train_twins(planted, TOPK, TWINS, workdir=tmp_path / "two", **SHORT)
    assert one.to_json() == two.to_json()
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = sb.train_twins(planted, TOPK, TWINS, workdir=tmp_path / "moved", **SHORT)
    assert moved.worked == 0


def test_splits_can_be_given(planted, tmp_path):
    given = {"evaluation": planted[:50], "train": planted[50:].numpy(), "calibration": planted[:40]}
    found = sb.train_twins(given, TOPK, ["trained"], workdir=tmp_path, **SHORT)
    assert found["trained"][EV].n == 50
    for change, message in [
        ({"test": planted}, "no split is called 'test'; give one tensor, or a mapping with train, calibration, eval"),
        ({"train": planted[:, :5]}, "the splits of the activations differ in d_in"),
        ({"train": planted[0]}, r"activations\['train'\]: expected the shape \(rows, d_in\), got \(8,\)"),
    ]:
        with pytest.raises(sb.InputError, match=message):
            sb.train_twins(given | change, TOPK, ["trained"], workdir=tmp_path, **SHORT)
    del given["evaluation"]
    with pytest.raises(sb.InputError, match="activations of the split 'evaluation' are missing"):
        sb.train_twins(given, TOPK, ["trained"], workdir=tmp_path, **SHORT)


def test_three_arguments_are_enough(planted, tmp_path, monkeypatch):
    from saebench_core.api import twins as module

    monkeypatch.setattr(module, "_STEPS", 3)
    monkeypatch.chdir(tmp_path)
    found = sb.train_twins(planted, {"type": "topk", "expansion": 4}, ["trained", "untrained"])
    assert [cell.result.status for cell in found] == ["done", "done"]
    (settings,) = {cell.training for cell in found.registry.cells}
    assert (settings.batch_size, settings.steps, settings.lr) == (800, 3, 1e-3)
    assert found["trained"].result.l0_target == 32
    assert found.workdir == tmp_path / ".saebench"


def broken(planted, *numbers):
    rows = planted.clone()
    for row in numbers:
        rows[row, 1] = float("nan")
    return rows


REFUSED = {
    "a list": (lambda x: x.tolist(), {}, r"expected a torch.Tensor or a numpy.ndarray \(rows, d_in\), got list"),
    "three axes": (lambda x: x.reshape(10, 100, 8), {}, r"got \(10, 100, 8\); reshape\(-1, d_in\) makes rows"),
    "one axis": (lambda x: x[0], {}, r"expected the shape \(rows, d_in\), got \(8,\)"),
    "no rows": (lambda x: x[:0], {}, r"at least one row and one column, got the shape \(0, 8\)"),
    "few rows": (lambda x: x[:19], {}, "19 rows are too few: of 20, two are evaluated on"),
    "integers": (lambda x: x.long(), {}, r"expected floating-point numbers, got torch.int64"),
    "integers of numpy": (lambda x: x.numpy().astype(int), {}, "expected floating-point numbers, got int64"),
    "nan": (lambda x: broken(x, 3, 77), {}, "split train: 2 of 800 rows hold numbers that are not finite.* row 3;"),
    "nan at the end": (lambda x: broken(x, 999), {}, "split evaluation: 1 of 100 rows hold .* the first is row 99;"),
    "too large": (lambda x: x.double().numpy() * 1e300, {}, "not finite in float32"),
    "too few": (lambda x: x[:39], {}, r"33 rows to train on are less than one batch of 64 \(33 train, 3 calibration"),
    "architecture": (lambda x: x, {"architecture": "topkk"}, "no architecture is called 'topkk'; did you mean 'topk'"),
    "key": (lambda x: x, {"architecture": TOPK | {"k": 3}}, r"train_twins: architectures\[0\].k: unknown key 'k'"),
    "no size": (lambda x: x, {"architecture": "topk"}, "give exactly one of `d_sae` and `expansion`"),
    "constraint": (
        lambda x: x,
        {"constraints": ["traned"]},
        "no constraint is called 'traned'; did you mean 'trained'",
    ),
    "no constraint": (lambda x: x, {"constraints": []}, "train_twins: constraints: "),
    "one constraint": (lambda x: x, {"constraints": "trained"}, "constraints: expected a list of entries such as"),
    "metric": (lambda x: x, {"metrics": ["recon"]}, "no metric is called 'recon'"),
    "training": (lambda x: x, {"training": {"step": 3}}, "training.step: unknown key 'step'; did you mean 'steps'"),
    "seed": (lambda x: x, {"seeds": "a"}, r"train_twins: seeds"),
}


@pytest.mark.parametrize(("rows", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(planted, tmp_path, rows, change, message):
    given = {"architecture": TOPK, "constraints": ["trained"], **SHORT, "training": {"steps": 3, "batch_size": 64}}
    with pytest.raises(sb.InputError, match=message):
        sb.train_twins(rows(planted), **given | change, workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_an_l0_that_no_sae_can_have_is_refused(planted, tmp_path):
    with pytest.raises(sb.InputError, match="train_twins: l0 17 is more than the 16 latents of topk on rows"):
        sb.train_twins(planted, TOPK, ["trained"], workdir=tmp_path, **SHORT | {"l0": [3, 17]})


def test_a_cell_that_fails_is_a_result(tmp_path):
    found = sb.train_twins(torch.zeros(400, 8), TOPK, ["trained", "frozen_decoder"], workdir=tmp_path, **SHORT)
    assert len(found.failed) == 2
    with pytest.raises(SaebenchError, match=r"has no 'sae'; there are: none \(all activations are zero"):
        _ = found["trained"].sae
    with pytest.raises(SaebenchError, match=r"has no 'certificate'.*all activations are zero"):
        _ = found["trained"].certificate
    with pytest.raises(sb.InputError, match=r"no score.*there are: none.*all activations are zero"):
        found["trained"][EV]
    assert list(found.to_frame()["status"]) == ["failed", "failed"]
    assert "failed: rows | topk | trained (seed 0), frozen_decoder (seed 0)" in str(found)


SCRIPT = """
import sys
import torch
import saebench_core as sb

rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
found = sb.train_twins(
    rows, {"type": "topk", "d_sae": 8}, ["trained"], l0=2, training={"steps": 2, "batch_size": 8}, workdir=sys.argv[1]
)
scores = sb.score(found["trained"].sae, activations=rows, workdir=sys.argv[1])
print(scores["reconstruction/l0"].value)
"""


def test_a_working_directory_that_cannot_be_written_is_left_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "work")],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert 0 < float(child.stdout) <= 2
    assert list(home.iterdir()) == []


def test_gc_keeps_rows_and_saes_that_a_registry_names(planted, tmp_path):
    found = sb.train_twins(planted, TOPK, ["trained"], workdir=tmp_path / "work", **SHORT)
    sb.score(found["trained"].sae, activations=planted, workdir=tmp_path / "work")
    told = json.loads(call("gc", "--workdir", "work", "--json", cwd=tmp_path).out)
    assert told["products"] == []
    (tmp_path / "registry.yaml").write_text(TINY)
    told = json.loads(call("gc", "registry.yaml", "--workdir", "work", "--json", cwd=tmp_path).out)
    assert [row["kind"] for row in told["products"]].count("rows") == 2
    assert [row["kind"] for row in told["products"]].count("given") == 1
