"""The command line: documents for programs, plain errors for people, and nothing written elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
from saebench_plugins.metrics.reconstruction import ReconstructionMetric

from saebench_core import Work
from tests.helpers.distributions import architecture, metric
from tests.helpers.registries import TINY, call, changed, command, environment, listing, process, spawn

CELL_KEYS = {
    "cell_id", "backbone", "site", "architecture", "constraint", "init", "l0_target", "seed", "status", "error",
    "flags", "metrics", "certificate", "artifacts",
}  # fmt: skip
METRIC_KEYS = {
    "status", "reason", "value", "floor", "ceiling", "n", "direction", "unit", "reads", "valid_null", "metric_version",
}  # fmt: skip
CERTIFICATE_KEYS = {
    "base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256", "frozen", "decoder_cosine", "realised_l0",
    "alive_share",
}  # fmt: skip


def strict(text):
    """Parse JSON that holds no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} in JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "registry.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the tiny registry was run."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "registry.yaml").write_text(TINY)
    outcome = call("run", "--no-tracking", cwd=folder)
    assert outcome.code == 0, outcome.err
    return folder, outcome


COMMANDS = [
    [], ["run"], ["plan"], ["validate"], ["status"], ["results"], ["report"], ["init"], ["schema"], ["sync"], ["ui"],
    ["activations"], ["activations", "export"],
    ["ratings"], ["ratings", "sheet"], ["ratings", "read"],
    ["du"], ["gc"], ["presets"], ["presets", "list"], ["presets", "show"], ["plugins"], ["plugins", "list"],
    ["plugins", "check"], ["plugins", "info"], ["plugins", "new"],
]  # fmt: skip


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help(names, tmp_path):
    outcome = call(*names, "--help", cwd=tmp_path)
    assert outcome.code == 0
    assert "Usage: " in outcome.out
    assert " ".join([*names, "[OPTIONS]"]) in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_in_the_list_above(tmp_path):
    from saebench_core.cli import app

    found = {(command.name or command.callback.__name__,) for command in app.registered_commands}
    for group in app.registered_groups:
        found |= {(group.name,)} | {(group.name, command.name) for command in group.typer_instance.registered_commands}
    assert found == {tuple(names) for names in COMMANDS if names}


def test_version(tmp_path):
    from saebench_core import __version__

    assert call("--version", cwd=tmp_path).out == f"saebench {__version__}\n"


def test_validate(folder):
    assert call("validate", cwd=folder).out == "registry.yaml: 8 cells\n"
    assert strict(call("validate", "--json", cwd=folder).out) == {
        "schema": 1, "name": "tiny", "cells": 8, "excluded": 0,
    }  # fmt: skip
    (folder / "registry.yaml").write_text(TINY + "exclude:\n  - {constraint: trained, seed: 1}\n")
    assert call("validate", cwd=folder).out == "registry.yaml: 7 cells, 1 excluded\n"


def test_plan_json(folder):
    document = strict(call("plan", "--json", cwd=folder).out)
    assert set(document) == {"schema", "name", "environment", "cells", "tasks", "to_do"}
    assert len(document["cells"]) == 8
    assert set(document["cells"][0]) == {"cell_id", "label", "excluded", "d_in", "d_sae"}
    assert set(document["tasks"][0]) == {
        "kind",
        "label",
        "cells",
        "left",
        "done",
        "seconds",
        "memory_bytes",
        "disk_bytes",
    }
    assert document["to_do"]["tasks"] == len(document["tasks"]) == 2 + 2 + 16
    assert document["to_do"]["questions"] == 0
    assert document["environment"] == {"device": "cpu", "backbone_dtype": "fp32"}
    assert "questions" not in call("plan", cwd=folder).out


def test_the_plan_says_how_many_questions_are_asked(folder, monkeypatch):
    monkeypatch.setattr(ReconstructionMetric, "work", lambda self, description: Work(asked=300))
    assert "up to 2,400 questions to language models" in " ".join(call("plan", cwd=folder).out.split())


def test_what_may_be_a_key_is_not_repeated(folder):
    judge = "judge: {type: llm, api_key_env: sk-THEKEY, base_url: 'http://me:THEWORD@host/v1'}"
    (folder / "registry.yaml").write_text(TINY.replace("metrics:", f"metrics:\n  - {{type: autointerp, {judge}}}"))
    outcome = call("validate", cwd=folder)
    assert outcome.code == 2
    assert "api_key_env: must be the name of an environment variable" in outcome.err
    assert "base_url: must have no user" in outcome.err
    assert "THEKEY" not in outcome.err and "THEWORD" not in outcome.err


def test_run_prints_the_twins_and_writes_below_the_workdir_only(ran):
    folder, outcome = ran
    assert "frozen_decoder" in outcome.out
    assert "8 cells, 20 tasks, 20 of them to do" in outcome.err
    assert {path.name for path in folder.iterdir()} == {"registry.yaml", ".saebench"}
    assert {path.name for path in (folder / ".saebench").iterdir()} <= {"store", "sweeps", "failures", "reports"}


def test_results_json(ran):
    folder, _ = ran
    text = call("results", "--json", cwd=folder).out
    document = strict(text)
    assert set(document) == {"schema", "cells"}
    assert document["schema"] == 1
    assert len(document["cells"]) == 8
    for cell in document["cells"]:
        assert set(cell) == CELL_KEYS
        assert (cell["status"], cell["error"]) == ("done", None)
        for entry in (cell["backbone"], cell["architecture"], cell["constraint"]):
            assert set(entry) == {"name", "type", "config"}
        assert set(cell["metrics"]) >= {
            "reconstruction/explained_variance", "reconstruction/mse", "reconstruction/cosine", "reconstruction/l0",
            "reconstruction/alive", "feature_recovery/fraction_0.8", "feature_recovery/mean",
        }  # fmt: skip
        assert all(set(value) == METRIC_KEYS for value in cell["metrics"].values())
        assert set(cell["certificate"]) >= CERTIFICATE_KEYS
        for artifact in cell["artifacts"].values():
            assert (folder / ".saebench" / artifact).exists()
            assert not Path(artifact).is_absolute()
    assert text == call("results", "--json", cwd=folder).out


def test_status(ran, folder):
    done, _ = ran
    document = strict(call("status", "--json", cwd=done).out)
    assert set(document) == {"schema", "name", "cells"}
    assert all(set(cell) == {"cell_id", "status", "error"} for cell in document["cells"])
    assert {cell["status"] for cell in document["cells"]} == {"done"}
    assert call("status", cwd=done).out.startswith("tiny: 8 done")
    fresh = call("status", cwd=folder)
    assert fresh.out.startswith("tiny: 8 pending")
    assert [path.name for path in folder.iterdir()] == ["registry.yaml"], "reading writes nothing"


def test_a_second_run_does_nothing(ran):
    folder, _ = ran
    before = listing(folder / ".saebench" / "store")
    outcome = call("run", "--no-tracking", cwd=folder)
    assert outcome.code == 0
    assert "0 of them to do" in outcome.err
    assert listing(folder / ".saebench" / "store") == before


def test_report_is_written_below_the_workdir(ran):
    folder, _ = ran
    outcome = call("report", "--output", "here.html", cwd=folder)
    assert outcome.out.strip() == str(folder / ".saebench" / "here.html")
    assert "tiny" in (folder / ".saebench" / "here.html").read_text()
    before = listing(folder)
    for output in ("../out.html", str(folder / "out.html")):
        refused = call("report", "--output", output, cwd=folder)
        assert refused.code == 2
        assert "lies outside the workdir" in refused.err
    assert listing(folder) == before


def test_only_and_set_choose_cells(folder):
    outcome = call(
        "run", "--no-tracking", "--only", "constraint=trained|untrained,seed=1", "--set", "training.steps=3", cwd=folder
    )
    assert outcome.code == 0, outcome.err
    document = strict(call("results", "--json", "--set", "training.steps=3", cwd=folder).out)
    done = {(cell["constraint"]["name"], cell["seed"]) for cell in document["cells"] if cell["status"] == "done"}
    assert done == {("trained", 1), ("untrained", 1)}
    assert {cell["status"] for cell in document["cells"]} == {"done", "pending"}
    pending = next(cell for cell in document["cells"] if cell["status"] == "pending")
    assert (pending["metrics"], pending["certificate"], pending["artifacts"]) == ({}, None, {})


def test_only_takes_default_names_with_commas(folder):
    text = changed(("tau: 0.8}\n", "tau: 0.8}\n  - {type: soft_frozen_decoder, tau: 0.9, init: cov}\n"))
    (folder / "registry.yaml").write_text(text)
    name = "soft_frozen_decoder[init=cov,tau=0.9]"
    document = strict(call("plan", "--json", "--only", f"constraint={name},seed=0", cwd=folder).out)
    assert [cell["label"] for cell in document["cells"]] == [f"toy | activations | topk | {name} | L0=3 | s0"]


def test_excluded_cells_are_listed(folder):
    (folder / "registry.yaml").write_text(TINY + "exclude:\n  - {constraint: trained, seed: 1}\n")
    document = strict(call("results", "--json", cwd=folder).out)
    assert [cell["status"] for cell in document["cells"]].count("excluded") == 1


BAD = {
    "unknown key": (["run", "--no-tracking"], TINY.replace("d_sae", "d_sea"), "registry.yaml:5:18"),
    "syntax": (["run"], TINY.replace("l0: [3]", "l0: [3"), "not valid YAML"),
    "missing file": (["run", "nothere.yaml"], TINY, "nothere.yaml: no such file"),
    "folder": (["plan", "."], TINY, "cannot be read as text"),
    "unknown preset": (["run", "preset:smok"], TINY, "no preset is called 'smok'; did you mean 'smoke'?"),
    "unknown option": (["run", "--bogus"], TINY, "No such option: --bogus"),
    "unknown command": (["rnu"], TINY, "No such command 'rnu'"),
    "unknown executor": (["run", "--executor", "inlin"], TINY, "did you mean 'inline'?"),
    "unknown device": (["run", "--device", "gpu"], TINY, "runtime.device: input should be 'auto', 'cpu'"),
    "absent device": (["run", "--device", "cuda"], TINY, "cuda is not available on this machine"),
    "bad only": (["run", "--only", "seed=7"], TINY, "no cell matches"),
    "bad set": (["validate", "--set", "l0=[99]"], TINY, "--set l0=[99] l0 99 is more than"),
    "infinite": (["validate"], TINY.replace("steps: 20", "steps: 20, lr: .inf"), "expected a finite number"),
    "workdir is a file": (["run", "--workdir", "registry.yaml"], TINY, "is no folder"),
    "workdir below a file": (["status", "--workdir", "registry.yaml/x"], TINY, "is no folder"),
    "init over a file": (["init"], TINY, "is there already"),
    "unknown preset to show": (["presets", "show", "strat"], TINY, "did you mean 'start'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_plain_lines_and_touches_nothing(ran, tmp_path, case):
    args, text, words = BAD[case]
    if case == "absent device":
        import torch

        assert not torch.cuda.is_available(), "this test needs a machine without cuda"
    (tmp_path / "registry.yaml").write_text(text)
    before = listing(tmp_path)
    outcome = call(*args, cwd=tmp_path)
    assert outcome.code == 2, outcome
    assert words in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.out == ""
    assert listing(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"registry.yaml"}


def test_init_then_validate(tmp_path):
    outcome = call("init", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"registry.yaml", "registry.schema.json"}
    assert call("validate", cwd=tmp_path).code == 0
    assert call("plan", cwd=tmp_path).code == 0
    text = (tmp_path / "registry.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./registry.schema.json")
    (tmp_path / "registry.yaml").write_text("mine")
    assert call("init", cwd=tmp_path).code == 2
    assert (tmp_path / "registry.yaml").read_text() == "mine"
    assert call("init", "--force", cwd=tmp_path).code == 0
    assert (tmp_path / "registry.yaml").read_text() == text
    assert call("init", "sub/other.yaml", cwd=tmp_path).code == 0
    assert (tmp_path / "sub" / "registry.schema.json").is_file()


def test_presets(tmp_path):
    document = strict(call("presets", "list", "--json", cwd=tmp_path).out)
    assert set(document) == {"schema", "presets"}
    names = [row["name"] for row in document["presets"]]
    assert {"smoke", "start"} <= set(names)
    assert all(set(row) == {"name", "summary"} and row["summary"] for row in document["presets"])
    lines = call("presets", "list", cwd=tmp_path).out.splitlines()
    assert [line.split()[0] for line in lines] == [f"preset:{name}" for name in names]
    shown = call("presets", "show", "preset:smoke", cwd=tmp_path).out
    assert shown == call("presets", "show", "smoke", cwd=tmp_path).out
    assert "name: smoke" in shown


def test_schema_is_for_the_installed_plugins(tmp_path, site, monkeypatch):
    from ruamel.yaml import YAML

    plain = YAML(typ="safe").load(TINY)
    schema = strict(call("schema", cwd=tmp_path).out)
    jsonschema.Draft202012Validator(schema).validate(plain)
    plain["architectures"][0]["type"] = "mine"
    assert not jsonschema.Draft202012Validator(schema).is_valid(plain)
    site.add("mine", {"schema_mine": architecture("mine")})
    jsonschema.Draft202012Validator(strict(call("schema", cwd=tmp_path).out)).validate(plain)


def test_plugins_list_names_the_broken_one_and_runs_go_on(folder, site):
    site.add("broken-dist", {"cli_broken": "import no_such_module_anywhere\n"}, version="3.1")
    site.add("good-dist", {"cli_good": metric("good")})
    document = strict(call("plugins", "list", "--json", cwd=folder).out)
    assert set(document) == {"schema", "plugins", "failures", "notices"}
    assert document["notices"] == []
    assert all(
        set(row) == {"kind", "name", "summary", "distribution", "version"} and row["version"]
        for row in document["plugins"]
    )
    (failure,) = document["failures"]
    assert (failure["plugin"], failure["distribution"], failure["version"]) == (
        "broken-dist:plugin", "broken-dist", "3.1",
    )  # fmt: skip
    assert "no_such_module_anywhere" in failure["error"]
    listed = call("plugins", "list", cwd=folder)
    assert "broken-dist:plugin" in listed.err
    assert "good-dist 1.0" in listed.out
    assert "broken-dist" not in call("--no-plugin", "broken-dist", "plugins", "list", cwd=folder).err
    assert "SAEBENCH_BLOCK_PLUGINS" not in os.environ
    outcome = call("run", "--no-tracking", "--set", "training.steps=2", cwd=folder)
    assert outcome.code == 0, outcome.err
    asked = call("validate", "--set", "metrics.0={type: broken}", cwd=folder)
    assert asked.code == 2
    assert "no metric is called 'broken'" in asked.err
    assert "broken-dist:plugin: ModuleNotFoundError" in asked.err


def test_plugins_list_shows_notices(folder, site):
    site.add("old-dist", {"cli_old": metric("mine")}, version="0.3", requires=["saebench-core<0.1"])
    (notice,) = strict(call("plugins", "list", "--json", cwd=folder).out)["notices"]
    text = notice.pop("notice")
    assert notice == {"plugin": "old-dist:plugin", "distribution": "old-dist", "version": "0.3"}
    assert text.startswith("was made for saebench-core<0.1, installed is ")
    listed = call("plugins", "list", cwd=folder)
    assert f"NOTICE        old-dist:plugin: {text}\n" == listed.err
    assert "[old-dist 0.3]" in listed.out


def test_a_closed_pipe_is_no_error(ran):
    folder, _ = ran
    line = " ".join(command("results", "--json")) + " | head -1"
    for text in (line, " ".join(command("schema")) + " | head -1"):
        ended = subprocess.run(
            ["/bin/bash", "-o", "pipefail", "-c", text], cwd=folder, env=environment(), capture_output=True, text=True
        )
        assert ended.stderr == ""
        assert len(ended.stdout.splitlines()) == 1
        assert ended.returncode in {0, 1}


def test_interrupted_gives_130_and_the_next_run_goes_on(folder):
    (folder / "registry.yaml").write_text(changed(("steps: 20", "steps: 100000")))
    child = spawn("run", "--no-tracking", cwd=folder)
    line = child.stderr.readline()
    while "train |" not in line:
        assert line, "the run ended before it was interrupted"
        line = child.stderr.readline()
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert list(folder.rglob("*.tmp")) == []
    assert call("status", cwd=folder).out.startswith("tiny: 8 pending")
    (folder / "registry.yaml").write_text(TINY)
    assert call("run", "--no-tracking", cwd=folder).code == 0


def test_the_installed_command_works(tmp_path):
    began = time.perf_counter()
    outcome = process("--help", cwd=tmp_path)
    taken = time.perf_counter() - began
    assert outcome.code == 0
    assert "Usage: saebench" in outcome.out
    assert taken < 3, f"{taken:.2f} s"
    assert process("validate", "nothere.yaml", cwd=tmp_path).code == 2
