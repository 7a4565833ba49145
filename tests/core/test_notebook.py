"""The notebook's door: registries, runs and results in Python are those of the command line."""

from __future__ import annotations

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch

import saebench_core as sb
from saebench_core.api import running
from saebench_core.errors import SaebenchError
from saebench_core.report.frames import long_frame
from saebench_core.rules import TopK
from tests.helpers.notebooks import EV, data_of
from tests.helpers.records import records
from tests.helpers.registries import TINY, call, changed, listing


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the command line ran the tiny registry, and the results of the same from Python elsewhere."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "registry.yaml").write_text(TINY)
    assert call("run", "--no-tracking", cwd=folder).code == 0
    registry = sb.Registry.from_file(folder / "registry.yaml")
    return folder, sb.run(registry, workdir=folder / "elsewhere", progress=False)


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


def test_axes_take_what_a_data_frame_gives(ran):
    results = ran[1]
    seeds = results.to_frame()["seed"].unique()
    assert type(seeds[0]).__module__ == "numpy"
    assert len(results.select(seed=seeds[0])) == len(results.select(seed=int(seeds[0])))
    with pytest.raises(sb.InputError, match="l0=None: no cell matches"):
        results.select(l0=None)
    with pytest.raises(sb.InputError, match="only: expected texts such as 'seed=0', got 5"):
        sb.run(results.registry, only=5)


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
            assert row["valid_null"] == metric["valid_null"]
            assert row["applies"] == (metric["status"] == "ok")
            assert row["flags"] == " ".join(cell["flags"])
            assert row["realised_l0"] == cell["certificate"]["realised_l0"]


def test_the_wide_frame_has_a_row_a_cell(ran):
    results = ran[1]
    frame = results.to_frame(wide=True).set_index(["constraint", "seed"])
    assert len(frame) == 8
    for cell in results:
        key = (cell.result.constraint.name, cell.result.seed)
        for name, metric in cell.scores.items():
            found = frame.loc[key, name]
            assert (None if pd.isna(found) else found) == metric.value


def test_cells_without_scores_are_in_the_frames_too():
    cells = records()
    (failed,) = [record.result for record in cells if record.result.status == "failed"]
    (row,) = long_frame(cells).query("status == 'failed'").to_dict("records")
    assert (row["cell_id"], row["error"], pd.isna(row["score"])) == (failed.cell_id, failed.error, True)
