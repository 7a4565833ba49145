"""The notebook's door: registries, runs, twins and scores from Python are those of the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

import saebench_core as sb
from saebench_core.activations import StoredReader
from saebench_core.api import running, tensors
from saebench_core.errors import SaebenchError
from saebench_core.randomness import named_generator
from saebench_core.report.frames import long_frame
from saebench_core.rules import Export, TopK
from saebench_core.store import Store
from tests.helpers.records import records
from tests.helpers.registries import TINY, call, changed, environment, listing

PEERS = Path(__file__).parents[1] / "data" / "peers"
EV = "reconstruction/explained_variance"
TOPK = {"type": "topk", "d_sae": 16}
TWINS = ["trained", {"type": "frozen_decoder", "init": "cov"}, "untrained"]
SETTINGS = {"steps": 40, "batch_size": 32, "lr": 0.01}
SHORT = {"l0": 3, "training": {"steps": 3, "batch_size": 32}, "progress": False, "runtime": {"threads": 1}}


@pytest.fixture(scope="module")
def planted():
    """Sparse mixtures of 16 directions in 8 dimensions: 1,000 rows."""
    features = torch.randn(16, 8, generator=named_generator("notebook", "features"))
    features = torch.nn.functional.normalize(features, dim=1)
    fires = torch.rand(1000, 16, generator=named_generator("notebook", "fires")) < 0.12
    return (fires * torch.rand(1000, 16, generator=named_generator("notebook", "sizes")).add(0.5)) @ features


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workdir that tests share."""
    return tmp_path_factory.mktemp("work") / "work"


@pytest.fixture(scope="module")
def twins(planted, work):
    return sb.train_twins(planted, TOPK, TWINS, workdir=work, **SHORT | {"training": SETTINGS, "seeds": [0, 1]})


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the command line ran the tiny registry, and the results of the same from Python elsewhere."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "registry.yaml").write_text(TINY)
    assert call("run", "--no-tracking", cwd=folder).code == 0
    registry = sb.Registry.from_file(folder / "registry.yaml")
    return folder, sb.run(registry, workdir=folder / "elsewhere", progress=False)


def data_of(text=TINY):
    return YAML(typ="safe").load(text)


def mean(results, constraint, score=EV):
    return float(np.mean([cell[score].value for cell in results.select(constraint=constraint)]))


# registries


def test_a_registry_is_the_same_from_a_file_and_from_python(tmp_path):
    (tmp_path / "registry.yaml").write_text(TINY)
    read = sb.Registry.from_file(str(tmp_path / "registry.yaml"))
    made = sb.Registry.from_dict(data_of())
    assert [cell.cell_id for cell in made.cells] == [cell.cell_id for cell in read.cells]
    assert made.sweep_id == read.sweep_id
    assert repr(read) == "Registry('tiny', 8 cells, metrics: reconstruction, feature_recovery)"


def test_a_preset_and_overrides():
    registry = sb.Registry.from_preset("smoke", overrides=["seeds=[4]", "training.steps=7"])
    assert {cell.seed for cell in registry.cells} == {4}
    assert {cell.training.steps for cell in registry.cells} == {7}
    assert sb.Registry.from_preset("preset:smoke").name == "smoke"
    with pytest.raises(sb.InputError, match="no preset is called 'smok'; did you mean 'smoke'"):
        sb.Registry.from_preset("smok")


def test_errors_have_line_and_column_as_on_the_command_line(tmp_path):
    text = changed(("tau: 0.8", "tau: 1.8"), ("d_in: 8", "d_in: 8, d_out: 3"))
    (tmp_path / "registry.yaml").write_text(text)
    told = call("validate", cwd=tmp_path).err
    with pytest.raises(sb.InputError) as caught:
        sb.Registry.from_file(tmp_path / "registry.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == told.strip()
    assert "registry.yaml:9:" in told


def test_errors_of_python_data_name_the_key_alone():
    with pytest.raises(sb.InputError) as caught:
        sb.Registry.from_dict(data_of(changed(("tau: 0.8", "tau: 1.8"))))
    assert str(caught.value) == ("registry: constraints[2].tau: input should be less than or equal to 1 (given: 1.8)")
    with pytest.raises(sb.InputError, match=r"^--set training.steps=x training.steps: "):
        sb.Registry.from_dict(data_of(), overrides=["training.steps=x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": {0, 1}}, r"registry: seeds: set is no plain value; allowed are numbers, text"),
        ({"backbones": [{"type": "synthetic", "d_in": torch.tensor(8)}]}, r"backbones\[0\].d_in: torch.Tensor is no"),
        ({"training": {3: 4}}, "training.3: the key 3 is no text"),
        ({"seeds": [float("nan")]}, r"registry: seeds\[0\]: expected a finite number, got nan"),
    ],
    ids=["set", "tensor", "key", "nan"],
)
def test_what_is_no_plain_value_is_refused(change, message):
    with pytest.raises(sb.InputError, match=message):
        sb.Registry.from_dict(data_of() | change)
    with pytest.raises(sb.InputError, match=r"expected a mapping.*, got list"):
        sb.Registry.from_dict([1])


def test_numbers_of_numpy_tuples_and_paths_are_plain_enough(tmp_path):
    data = data_of() | {"seeds": (np.int64(0), np.int32(1)), "l0": [np.float64(3.0)]}
    assert sb.Registry.from_dict(data).sweep_id == sb.Registry.from_dict(data_of()).sweep_id
    stored = [{"type": "activations", "path": tmp_path / "rows"}]
    with pytest.raises(sb.InputError, match=f"no file '{tmp_path}/rows'"):
        sb.Registry.from_dict(data | {"backbones": stored})


def test_a_backbone_can_be_taken_out_of_a_registry():
    registry = sb.Registry.from_dict(data_of())
    assert registry.backbone() == registry.backbone("toy") == data_of()["backbones"][0]
    with pytest.raises(sb.InputError, match=r"no backbone 'tou' in tiny; did you mean 'toy'.*there are: toy"):
        registry.backbone("tou")
    two = data_of()
    two["backbones"].append({"type": "synthetic", "d_in": 4})
    with pytest.raises(sb.InputError, match="no backbone None in tiny; there are: toy, synthetic"):
        sb.Registry.from_dict(two).backbone()


# runs


def test_results_are_those_of_the_command_line(ran):
    folder, results = ran
    told = call("results", "--json", cwd=folder).out
    assert results.to_json() == told
    assert {cell["status"] for cell in json.loads(told)["cells"]} == {"done"}
    assert str(results) == call("results", cwd=folder).out
    assert results.table(every=True) == call("results", "--all", cwd=folder).out
    assert repr(results) == "Results('tiny', 8 cells: 8 done)"


def test_what_is_there_is_not_done_again(tmp_path):
    registry = sb.Registry.from_dict(data_of())
    before = sb.Results.read(registry, workdir=tmp_path / "work")
    assert {cell.result.status for cell in before} == {"pending"}
    assert str(before) == "tiny: 0 of 8 cells done"
    assert not (tmp_path / "work").exists(), "reading writes nothing"
    part = sb.run(registry, workdir=tmp_path / "work", only=["seed=0", "constraint=trained|untrained"], progress=False)
    assert len(part) == 2 and part.worked == 1 + 2 + 2 * 2  # the group, two metrics, their scores
    kept = {name: time for name, time in listing(tmp_path / "work" / "store").items() if "/.holds/" not in name}
    rest = sb.run(registry, workdir=str(tmp_path / "work"), progress=False)
    assert rest.worked == 2 + 2 * 6  # two groups, and the scores of the other cells
    assert sb.run(registry, workdir=tmp_path / "work", progress=False).worked == 0
    now = listing(tmp_path / "work" / "store")
    assert {name: now[name] for name in kept} == kept, "what was there is not touched"
    assert len(now) > len(kept)
    assert sb.Results.read(registry, workdir=tmp_path / "work", only="seed=1").to_json().count('"done"') == 4


def test_nothing_is_tracked_unless_asked_for(tmp_path, monkeypatch):
    made = []

    class Recorder:
        def __init__(self, uri, workdir):
            made.append((uri, workdir))

        def __getattr__(self, name):
            return lambda *args: None

    monkeypatch.setattr(running, "SafeTracker", Recorder)
    registry = sb.Registry.from_dict(data_of())
    options = {"workdir": tmp_path / "work", "only": ["constraint=untrained", "seed=0"], "progress": False}
    sb.run(registry, **options)
    assert made == []
    sb.run(registry, track=True, **options)
    sb.run(registry, tracking_uri="file:/nowhere", **options)
    assert made == [(None, tmp_path / "work"), ("file:/nowhere", tmp_path / "work")]


def test_progress_is_told_on_standard_error_or_not_at_all(tmp_path, capsys):
    registry = sb.Registry.from_dict(data_of())
    options = {"workdir": tmp_path / "work", "only": ["constraint=untrained", "seed=0"]}
    sb.run(registry, progress=False, **options)
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == ("", "")
    sb.run(registry, **options)
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("1 cells, 5 tasks, 0 of them to do")


def test_the_process_is_left_as_it_was(ran, tmp_path):
    before = (torch.get_num_threads(), signal.getsignal(signal.SIGTERM))
    sb.run(ran[1].registry, workdir=tmp_path, only=["constraint=untrained", "seed=0"], progress=False)
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGTERM)) == before


def test_what_run_cannot_use_is_refused(tmp_path):
    registry = sb.Registry.from_dict(data_of())
    with pytest.raises(sb.InputError, match=r"run takes a Registry, got str; Registry.from_file"):
        sb.run("registry.yaml")
    with pytest.raises(sb.InputError, match="no cell matches; did you mean 'trained'"):
        sb.run(registry, workdir=tmp_path, only=["constraint=traned"])
    (tmp_path / "file").write_text("")
    with pytest.raises(sb.InputError, match="is no folder"):
        sb.run(registry, workdir=tmp_path / "file" / "work")


# results


def test_cells_are_found_by_their_axes(ran):
    results = ran[1]
    assert results["trained", 1].result.seed == 1
    assert [cell.result.constraint.type for cell in results.select(seed=0)] == [
        "trained", "frozen_decoder", "soft_frozen_decoder", "untrained",
    ]  # fmt: skip
    assert len(results.select(constraint=["trained", "untrained"], l0=3)) == 4
    assert results.select(seed=1)["untrained"] is not None
    assert len(list(results)) == len(results.cells) == 8
    for key, message in [
        (("traned", 0), "constraint='traned': no cell matches; did you mean 'trained'"),
        (("trained", 2), "seed=2: no cell matches; there are: 0, 1"),
        ("trained", "constraint='trained': 2 cells match; give more axes"),
        (0, r"expected results\[CONSTRAINT\] or results\[CONSTRAINT, SEED\], got results\[0\]"),
    ]:
        with pytest.raises(sb.InputError, match=message):
            results[key]
    with pytest.raises(sb.InputError, match="no axis 'sede'; did you mean 'seed'"):
        results.select(sede=1)


def test_a_cell_has_all_that_the_workdir_has_of_it(ran):
    folder, results = ran
    cell = results["soft_frozen_decoder", 0]
    assert repr(cell) == "<toy | activations | topk | soft_frozen_decoder | L0=3 | s0: done>"
    assert (cell.sae.d_in, cell.sae.d_sae, cell.sae.rule) == (8, 16, TopK(3))
    assert cell.path("sae") == folder / "elsewhere" / cell.result.artifacts["sae"]
    assert cell.certificate["decoder_cosine"]["min"] >= 0.8 - 1e-5
    assert [point["step"] for point in cell.curve()][-1] == 20
    assert list(cell.items("reconstruction")["latent"]) == list(range(16))
    assert cell[EV].value == cell.scores[EV].value
    with pytest.raises(sb.InputError, match=f"no score 'explained_variance'.*there are: .*{EV}"):
        cell["explained_variance"]
    with pytest.raises(SaebenchError, match="has no 'items/nothing'; there are: sae, certificate"):
        cell.items("nothing")


def test_the_long_frame_has_every_number_of_the_json(ran):
    results = ran[1]
    frame = results.to_frame()
    cells = json.loads(results.to_json())["cells"]
    assert len(frame) == sum(len(cell["metrics"]) for cell in cells)
    assert list(frame.columns[:11]) == [
        "cell_id", "backbone", "site", "architecture", "l0_target", "constraint", "init", "seed", "status", "flags",
        "score",
    ]  # fmt: skip
    rows = frame.set_index(["cell_id", "score"])
    for cell in cells:
        for name, metric in cell["metrics"].items():
            row = rows.loc[(cell["cell_id"], name)]
            for key in ("value", "floor", "ceiling", "n", "reason"):
                assert (None if pd.isna(row[key]) else row[key]) == metric[key], (name, key)
            assert (row["constraint"], row["seed"], row["l0_target"]) == (cell["constraint"]["name"], cell["seed"], 3)
            assert row["valid_null"] == metric["valid_null"] and row["applies"]
            assert row["flags"] == " ".join(cell["flags"])
            assert row["realised_l0"] == cell["certificate"]["realised_l0"]


def test_the_wide_frame_has_a_row_a_cell(ran):
    results = ran[1]
    frame = results.to_frame(wide=True).set_index(["constraint", "seed"])
    assert len(frame) == 8
    for cell in results:
        key = (cell.result.constraint.name, cell.result.seed)
        for name, metric in cell.scores.items():
            assert frame.loc[key, name] == metric.value


def test_cells_without_scores_are_in_the_frames_too():
    cells = records()
    (failed,) = [record.result for record in cells if record.result.status == "failed"]
    (row,) = long_frame(cells).query("status == 'failed'").to_dict("records")
    assert (row["cell_id"], row["error"], pd.isna(row["score"])) == (failed.cell_id, failed.error, True)


# twins


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
    for count, sizes in {3: (1, 1, 1), 19: (17, 1, 1), 20: (16, 2, 2), 1009: (809, 100, 100)}.items():
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
    "two rows": (lambda x: x[:2], {}, "2 rows cannot be cut into three splits"),
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
    with pytest.raises(SaebenchError, match=r"has no 'sae'; there are: none \(the loss became nan"):
        _ = found["trained"].sae
    with pytest.raises(SaebenchError, match=r"has no 'certificate'.*the loss became nan"):
        _ = found["trained"].certificate
    with pytest.raises(sb.InputError, match=r"no score.*there are: none.*the loss became nan"):
        found["trained"][EV]
    assert list(found.to_frame()["status"]) == ["failed", "failed"]
    assert "failed: rows | trained | seed 0" in str(found)


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


# scores

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
    assert " ".join(lines["feature_recovery/mean"]) == f"- - - {recovery.reason}"
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
    with pytest.raises(SaebenchError, match=r"^score: ValueError: a bad day$"):
        sb.score(twins["trained", 0], activations=planted, workdir=tmp_path)


def test_an_object_whose_rule_only_a_plugin_knows_is_refused(twins, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(TopK, "export", lambda self, tensors: Export("mine", {}, {}))
    with pytest.raises(
        sb.InputError, match=r"score: architecture 'mine' needs a plugin's rule.*give the cell of results"
    ):
        sb.score(twins["trained", 0].sae, activations=planted, workdir=tmp_path)
