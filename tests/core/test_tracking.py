"""MLflow as a view: replayable, reconciled, and never in the way."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saebench_core.errors import InputError
from saebench_core.tracking import SafeTracker, Tracker, check_metric_name, default_uri, metric_key, sync, ui_command
from saebench_core.tracking.view import COMMON_PARAMS, cell_params, curve_metrics, group_label, thin
from tests.helpers.records import STARTED_MS, record, records, sweep, with_artifacts, write_journal


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    """A workdir, its sweep and records, synced once."""
    workdir = tmp_path_factory.mktemp("synced")
    journal, kept, cells = write_journal(workdir)
    count = sync(journal, None, workdir)
    return workdir, journal, kept, cells, count


def client(workdir):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(workdir))


def runs(workdir, text=""):
    mlflow = client(workdir)
    experiments = [found.experiment_id for found in mlflow.search_experiments()]
    return list(mlflow.search_runs(experiments, text))


def everything(workdir):
    """All that a user can see of a tracker, metric histories included."""
    mlflow, seen = client(workdir), {}
    for run in runs(workdir):
        history = {
            key: [
                (point.timestamp, point.step, point.value) for point in mlflow.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }
        info = (run.info.status, run.info.start_time, run.info.end_time, run.info.run_name)
        seen[run.info.run_id] = (info, dict(run.data.params), dict(run.data.tags), history)
    return seen


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code, *map(str, arguments)], text=True, **options)


def test_import_leaves_heavy_packages_alone():
    code = "import sys, saebench_core.tracking, saebench_core.report as r; print([m for m in %r if m in sys.modules])"
    heavy = ["mlflow", "matplotlib", "jinja2", "pandas", "torch", "rich"]
    done = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_second_sync_changes_nothing(synced):
    workdir, journal, _, _, count = synced
    assert count == (1, 16, 16)
    before = everything(workdir)
    steps = []
    assert sync(journal, None, workdir, lambda done, total: steps.append((done, total))) == (1, 16, 0)
    assert everything(workdir) == before
    assert steps[-1] == (16, 16)


def test_forced_replay_changes_nothing_either(synced):
    workdir, journal, _, _, _ = synced
    before = everything(workdir)
    mlflow = client(workdir)
    for run_id in before:  # as if each process had died before its last line
        mlflow.set_tag(run_id, "saebench.record", "forgotten")
        mlflow.set_tag(run_id, "saebench.uploaded", "forgotten")
    assert sync(journal, None, workdir).written == 16
    after = everything(workdir)
    assert {run_id: (info, history) for run_id, (info, _, _, history) in after.items()} == {
        run_id: (info, history) for run_id, (info, _, _, history) in before.items()
    }
    for run_id in before:  # the sweep's own run has no such tags
        if "saebench.cell_id" not in before[run_id][2]:
            mlflow.delete_tag(run_id, "saebench.record")
            mlflow.delete_tag(run_id, "saebench.uploaded")
    assert everything(workdir) == before


def test_parent_and_children(synced):
    workdir, _, kept, cells, _ = synced
    (parent,) = runs(workdir, "tags.`saebench.kind` = 'sweep'")
    children = runs(workdir, f"tags.`saebench.sweep.{kept.sweep_id}` = '1'")
    assert parent.data.tags["saebench.sweep_id"] == kept.sweep_id
    assert parent.info.status == "FAILED"  # one cell failed
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["saebench.cell_id"] for run in children} == {cell.result.cell_id for cell in cells}
    assert parent.data.metrics == {"cells/total": 16, "cells/done": 15, "cells/failed": 1}
    assert sorted(entry.path for entry in client(workdir).list_artifacts(parent.info.run_id)) == [
        "environment.json",
        "registry.yaml",
    ]


def test_a_cell_as_a_run(synced):
    workdir, _, _, cells, _ = synced
    cell = cells[0]
    (run,) = runs(workdir, f"tags.`saebench.cell_id` = '{cell.result.cell_id}'")
    assert run.info.run_name == "trained s0 | toy/activations | batch_topk | L0=20"
    assert (run.info.status, run.info.end_time) == ("FINISHED", cell.finished_ms)
    assert run.data.params["l0_target"] == "20" and run.data.params["lr"] == "0.0002"
    assert run.data.params["tokens"] == "none"
    assert run.data.tags["saebench.is_random"] == "false" and run.data.tags["saebench.modality"] == "synthetic"
    assert run.data.tags["saebench.plugin.architecture"] == "saebench-core 0.1.0"
    assert run.data.metrics["reconstruction/explained_variance"] == 0.80
    assert run.data.metrics["reconstruction/explained_variance.floor"] == 0.0
    assert "reconstruction/l0.floor" not in run.data.metrics
    assert "reconstruction/explained_variance | 0.8 | 0 | 1" in run.data.tags["mlflow.note.content"]
    mlflow = client(workdir)
    curve = mlflow.get_metric_history(run.info.run_id, "train/loss")
    assert len(curve) == 300 and (curve[0].step, curve[-1].step) == (64, 64_000)
    sae = {entry.path for entry in mlflow.list_artifacts(run.info.run_id, "sae")}
    assert sae == {"sae/cfg.json", "sae/sae_weights.safetensors"}
    items = {entry.path for entry in mlflow.list_artifacts(run.info.run_id, "items/reconstruction")}
    assert items == {"items/reconstruction/items.parquet"}
    top = {entry.path for entry in mlflow.list_artifacts(run.info.run_id)}
    assert top == {"sae", "items", "cell.json", "certificate.json", "curves.jsonl"}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(workdir / "mlflow" / "artifacts")


def test_params_have_the_same_keys_everywhere(synced):
    workdir, _, _, _, _ = synced
    keys = {frozenset(run.data.params) for run in runs(workdir, "tags.`saebench.kind` = 'cell'")}
    assert len(keys) == 1
    assert set(COMMON_PARAMS) < set(next(iter(keys)))


def test_failed_cell_and_scores_that_do_not_apply(synced):
    workdir, _, _, _, _ = synced
    (failed,) = runs(workdir, "tags.`saebench.status` = 'failed'")
    assert failed.info.status == "FAILED"
    assert "loss is nan" in failed.data.tags["saebench.error"]
    smol = runs(workdir, "params.backbone = 'smol'")
    assert not any("feature_recovery/mean" in run.data.metrics for run in smol)
    assert any("smol has no known features" in run.data.tags["mlflow.note.content"] for run in smol)


def test_group_leaves_out_the_seed(synced):
    groups = {}
    for cell in synced[3]:
        groups.setdefault(group_label(cell), []).append(cell.result.seed)
    assert sorted(map(sorted, groups.values())) == [[0, 1]] * 8


def test_a_cell_shared_by_two_sweeps_is_one_run(tmp_path):
    journal, first, cells = write_journal(tmp_path, [record("toy", "trained", 0)])
    second = journal.write_sweep(sweep(cells, sweep_id="beef" * 4))
    journal.write_cell(second.sweep_id, cells[0])
    sync(journal, None, tmp_path)
    (run,) = runs(tmp_path, "tags.`saebench.kind` = 'cell'")
    assert (
        run.data.tags[f"saebench.sweep.{first.sweep_id}"] == run.data.tags[f"saebench.sweep.{second.sweep_id}"] == "1"
    )
    parents = runs(tmp_path, "tags.`saebench.kind` = 'sweep'")
    assert len(parents) == 2 and {parent.info.status for parent in parents} == {"FINISHED"}


def test_changed_record_is_written_and_changed_params_make_a_new_run(tmp_path):
    journal, kept, _ = write_journal(tmp_path, [record("toy", "trained", 0, status="failed", error="no disk")])
    sync(journal, None, tmp_path)
    better = with_artifacts(record("toy", "trained", 0), tmp_path)
    journal.write_cell(kept.sweep_id, better)
    assert sync(journal, None, tmp_path).written == 1
    (run,) = runs(tmp_path, "tags.`saebench.kind` = 'cell'")
    assert run.info.status == "FINISHED"
    journal.write_cell(kept.sweep_id, better.model_copy(update={"params": {**better.params, "tokens": 5e6}}))
    sync(journal, None, tmp_path)
    (again,) = runs(tmp_path, "tags.`saebench.kind` = 'cell'")
    assert again.info.run_id != run.info.run_id and again.data.params["tokens"] == "5000000"


def test_artifact_outside_the_workdir_is_not_uploaded(tmp_path, caplog):
    (tmp_path / "secret").write_text("secret")
    workdir = tmp_path / "work"
    cell = record("toy", "trained", 0, artifacts={"items/x": "../secret", "certificate": "gone.json"})
    journal, _, _ = write_journal(workdir, [cell.model_copy(update={"result": cell.result.model_copy()})])
    # what write_journal adds is replaced by the paths above
    journal.write_cell(sweep([cell]).sweep_id, cell)
    sync(journal, None, workdir)
    (run,) = runs(workdir, "tags.`saebench.kind` = 'cell'")
    assert [entry.path for entry in client(workdir).list_artifacts(run.info.run_id)] == ["cell.json"]
    assert "../secret" in caplog.text and "gone.json" in caplog.text


def test_live_run_ends_and_report_is_attached(tmp_path):
    kept, cell = sweep([record("toy", "trained", 0)]), record("toy", "trained", 0)
    tracker = SafeTracker(None, tmp_path)
    assert tracker.begin(kept) is not None
    assert runs(tmp_path)[0].info.status == "RUNNING"
    tracker.cell(kept, cell)
    report = tmp_path / "report.html"
    report.write_text("<!doctype html>")
    tracker.attach(kept, report)
    tracker.end(kept, "done")
    tracker.close()
    assert tracker.problem is None
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}
    parent = runs(tmp_path, "tags.`saebench.kind` = 'sweep'")[0].info.run_id
    assert "report.html" in {entry.path for entry in client(tmp_path).list_artifacts(parent)}


def test_what_a_failing_tracker_left_running_is_ended_by_a_sync(tmp_path, monkeypatch):
    journal, kept, cells = write_journal(tmp_path, records()[:2])
    tracker = SafeTracker(None, tmp_path)
    tracker.begin(kept)
    monkeypatch.setattr(
        Tracker, "_write", lambda *_: (_ for _ in ()).throw(RuntimeError("the disk of the server is full"))
    )
    tracker.cell(kept, cells[0])
    tracker.end(kept, "done")
    tracker.close()
    assert tracker.problem is not None and "the disk of the server is full" in tracker.problem
    assert len(runs(tmp_path, "attributes.status = 'RUNNING'")) == 2
    monkeypatch.undo()
    assert sync(journal, None, tmp_path).written == 2
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"] * 3


KILLED = """
import sys, time
from pathlib import Path
from tests.helpers.records import record, sweep
from saebench_core.tracking import Tracker
tracker = Tracker(None, Path(sys.argv[1]))
cell = record("toy", "trained", 0)
tracker.begin(sweep([cell]))
tracker._find_or_create(sweep([cell]), cell)  # dies between making a run and filling it
print("ready", flush=True)
time.sleep(60)
"""


def test_runs_of_a_killed_process_are_reconciled(tmp_path):
    process = python(KILLED, tmp_path, stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    cell = record("toy", "trained", 0)
    kept = sweep([cell])
    other = sweep([cell], sweep_id="0dd" * 4)
    watcher = Tracker(None, tmp_path)
    assert watcher.is_live(kept)
    watcher.begin(other)
    assert len(runs(tmp_path, "attributes.status = 'RUNNING'")) == 3  # a live process is left alone
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not watcher.is_live(kept)
    watcher.begin(other)
    assert len(runs(tmp_path, "attributes.status = 'KILLED'")) == 2
    watcher.begin(kept)
    watcher.cell(kept, cell)
    watcher.end(kept, "done")
    watcher.end(other, "interrupted")
    watcher.close()
    assert sorted(run.info.status for run in runs(tmp_path)) == ["FINISHED", "FINISHED", "KILLED"]


COLD = """
import sys
from pathlib import Path
from tests.helpers.records import record, sweep
from saebench_core.tracking import Tracker
tracker = Tracker(None, Path(sys.argv[1]))
cells = [record("toy", "trained", 0), record("toy", "trained", 1)]
tracker.begin(sweep(cells))
for cell in cells:
    tracker.cell(sweep(cells), cell)
tracker.end(sweep(cells), "done")
tracker.close()
"""


def test_cold_start_race(tmp_path):
    racers = [python(COLD, tmp_path, stderr=subprocess.PIPE, cwd=tmp_path) for _ in range(4)]
    errors = [racer.communicate()[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, "\n".join(errors)
    assert len(runs(tmp_path, "tags.`saebench.kind` = 'cell'")) == 2
    assert len(runs(tmp_path, "tags.`saebench.kind` = 'sweep'")) == 1
    assert not list(tmp_path.glob("mlruns*"))


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_dead_server_costs_little_and_raises_nothing(tmp_path, caplog):
    kept, began = sweep(records()), time.monotonic()
    tracker = SafeTracker(f"http://127.0.0.1:{closed_port()}", tmp_path)
    assert tracker.begin(kept) is None
    for cell in records():
        tracker.cell(kept, cell)
    tracker.end(kept, "failed")
    tracker.close()
    assert time.monotonic() - began < 10
    assert tracker.problem is not None and "saebench sync" in tracker.problem
    assert len([message for message in caplog.messages if "saebench sync" in message]) == 1


def test_server_that_never_answers_costs_little(tmp_path):
    with socket.socket() as listener:  # takes connections and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        began = time.monotonic()
        tracker = SafeTracker(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
        tracker.begin(sweep(records()))
        tracker.end(sweep(records()), "done")
    assert time.monotonic() - began < 10 and tracker.problem is not None


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "postgresql://user:word@127.0.0.1:1/mlflow"])
def test_unusable_database_costs_little_and_tells_no_password(tmp_path, uri):
    began = time.monotonic()
    tracker = SafeTracker(uri, tmp_path)
    tracker.begin(sweep(records()))
    assert time.monotonic() - began < 10
    assert tracker.problem is not None and "word" not in tracker.problem
    with pytest.raises(OSError):
        sync(write_journal(tmp_path)[0], uri, tmp_path)


def test_damaged_database_stops_nothing(tmp_path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database, and long enough to be read as one" * 50)
    tracker = SafeTracker(None, tmp_path)
    tracker.begin(sweep(records()))
    assert tracker.problem is not None and "not a database" in tracker.problem


def test_sync_to_a_server(tmp_path):
    port = closed_port()
    command = ui_command(None, tmp_path / "server", port=port)
    (tmp_path / "server" / "mlflow").mkdir(parents=True)
    argv = [*command.argv, "--artifacts-destination", str(tmp_path / "server" / "artifacts")]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        argv, env={**os.environ, **command.env}, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(port)
        journal, kept, _ = write_journal(tmp_path / "work", records()[:2])
        assert sync(journal, uri, tmp_path / "work").written == 2
        assert sync(journal, uri, tmp_path / "work").written == 0
        shown = ui_command(uri, tmp_path / "work", sweep=kept)
        assert shown.argv == () and shown.deep_link.startswith(f"{uri}/#/experiments/1/runs?searchFilter=tags.%60")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
        log.close()


def wait_for(port):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("name", ["a/b", "sparse_probing/top1", "x.y", "x y:z-1", "é/ü"])
def test_good_metric_names(name):
    check_metric_name(name)
    assert metric_key(name) == name


@pytest.mark.parametrize("name", ["", ".", "/a", "a/", "a//b", "../x", "a/../b", "a=b", "a@b", "a(b)", "a%", "x" * 251])
def test_bad_metric_names(name):
    with pytest.raises(InputError, match=r"allowed|rename"):
        check_metric_name(name)


def test_names_of_entries_become_keys():
    assert metric_key("sparse_probing[k=5]/top1") == "sparse_probing.k-5/top1"


def test_curves_refuse_what_is_not_finite():
    points = [
        {"step": step, "rows": step, "time_ms": STARTED_MS, "values": {"loss": loss, "l0": 3.0}}
        for step, loss in enumerate([1.0, math.nan, math.inf])
    ]
    found, refused = curve_metrics(points)
    assert refused == ["loss"]
    assert [point.value for point in found if point.key == "train/loss"] == [1.0]
    assert len([point for point in found if point.key == "train/l0"]) == 3


def test_thin_keeps_both_ends():
    kept = thin(list(range(1000)), 300)
    assert len(kept) == len(set(kept)) == 300 and kept[0] == 0 and kept[-1] == 999
    assert thin([1, 2], 300) == [1, 2]


def test_params_write_numbers_as_numbers():
    params = cell_params(record("toy", "trained", 0))
    assert (params["l0_target"], params["seed"], params["d_sae"]) == ("20", "0", "800")


def test_ui_stays_on_this_machine(tmp_path):
    with pytest.raises(InputError, match=r"0\.0\.0\.0"):
        ui_command(None, tmp_path, host="0.0.0.0")
    command = ui_command(None, tmp_path, host="0.0.0.0", port=81, allow_remote=True)
    assert (
        command.argv[1:4] == ("-m", "mlflow", "server") and command.env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    )
    assert "--workers" in command.argv and command.deep_link == "http://0.0.0.0:81"
    assert ui_command(None, tmp_path, host="::1").deep_link == "http://[::1]:5000"


def test_workdir_that_no_database_url_can_name(tmp_path):
    with pytest.raises(InputError, match="without '%'"):
        default_uri(tmp_path / "a%20b")


def test_journal_is_the_only_source(synced):
    workdir, _, kept, cells, _ = synced
    (run,) = runs(workdir, f"tags.`saebench.cell_id` = '{cells[0].result.cell_id}'")
    path = client(workdir).download_artifacts(run.info.run_id, "cell.json")
    assert json.loads(Path(path).read_text())["result"] == cells[0].result.model_dump(mode="json")
    assert kept.cells[0] == cells[0].result.cell_id
