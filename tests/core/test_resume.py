"""A run that is killed, or of which a part fails, goes on where it was and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest

from saebench_core.store import DONE
from tests.helpers.distributions import metric
from tests.helpers.registries import TINY, call, changed, listing, spawn
from tests.helpers.runs import cells, results, run

LONGER = changed(("steps: 20, batch_size: 32", "steps: 60, batch_size: 32"))

CONSTRAINT = """
from typing import Literal

from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, hookimpl


class Config(ConstraintConfig):
    type: Literal["fragile"] = "fragile"


class Mine(Constraint):
    def __init__(self, config):
        self.config = config

    def frozen(self, roles, recipe):
        return frozenset()

    def project(self, sae, start):
        pass


@hookimpl
def register_constraints():
    return [ConstraintSpec(config=Config, build=Mine, summary="a test's own")]
"""


def products(folder):
    # os.walk, not a glob: folders of drafts vanish while they are looked at
    walked = os.walk(folder / ".saebench" / "store")
    return {Path(place) for place, _, files in walked if DONE in files and Path(place).name[0] != "."}


def weights(folder):
    """The bytes of every SAE, by key."""
    found = (folder / ".saebench" / "store" / "sae").rglob("*.safetensors")
    return {path.parts[-3]: path.read_bytes() for path in found if ".tmp" not in str(path)}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A folder with an undisturbed run of the longer registry."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "registry.yaml").write_text(LONGER)
    assert run(folder).code == 0
    return folder


def start(folder):
    child = spawn("run", "--no-tracking", cwd=folder)
    line = child.stderr.readline()
    assert "of them to do" in line, line + child.stderr.read()
    return child, int(line.split(" of them")[0].split()[-1])


def test_killed_again_and_again_it_ends_as_if_undisturbed(folder, calm):
    draw, killed = random.Random(0), folder
    (killed / "registry.yaml").write_text(LONGER)
    whole = len(products(calm))
    left = []
    for target in (0, 2, draw.randint(3, 10), draw.randint(11, whole - 2)):
        child, to_do = start(killed)
        left.append(to_do)
        until = time.monotonic() + 60
        while len(products(killed)) < target and child.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        if target == 0:
            time.sleep(draw.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        status = json.loads(call("status", "--json", cwd=killed).out)
        assert {cell["status"] for cell in status["cells"]} <= {"done", "pending"}
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] == 20, "a killed run goes on where it was"
    assert run(killed).code == 0
    assert results(killed) == results(calm)
    assert weights(killed) == weights(calm)
    assert len(products(killed)) == whole
    assert {cell["status"] for cell in cells(killed)} == {"done"}


def test_killed_within_a_training_it_goes_on_from_the_checkpoint(folder, tmp_path):
    text = changed(("steps: 20, batch_size: 32", "steps: 200, batch_size: 32"), ("seeds: [0, 1]", "seeds: [0]"))
    calm = tmp_path / "calm"
    calm.mkdir()
    (calm / "registry.yaml").write_text(text)
    assert run(calm).code == 0
    (folder / "registry.yaml").write_text(text.replace("runtime: {", "runtime: {checkpoint_seconds: 0, "))
    kept = folder / ".saebench" / "checkpoints"
    child, _ = start(folder)
    until = time.monotonic() + 60
    while not list(kept.glob("*/step-00000005*")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert {cell["status"] for cell in cells(folder)} == {"pending"}, "killed within the training"
    assert len(list(kept.glob("*/step-*/state.json"))) >= 3
    assert run(folder).code == 0
    assert not list(kept.iterdir()), "what is finished keeps no checkpoint"
    assert results(folder) == results(calm)
    assert weights(folder) == weights(calm)


def test_two_runs_at_once_agree(folder, calm):
    shared = folder
    (shared / "registry.yaml").write_text(LONGER)
    children = [spawn("run", "--no-tracking", cwd=shared) for _ in range(2)]
    for child in children:
        _, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
    assert results(shared) == results(calm)
    assert weights(shared) == weights(calm)


def test_sigterm_gives_143_and_leaves_no_half_product(folder):
    (folder / "registry.yaml").write_text(changed(("steps: 20", "steps: 100000")))
    child, _ = start(folder)
    assert any("train |" in line for line in iter(child.stderr.readline, ""))
    time.sleep(0.3)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Traceback" not in err
    assert list(folder.rglob("*.tmp")) == []


def fragile(broken):
    return CONSTRAINT.replace("        pass\n", f"        {broken}\n")


WITH_FRAGILE = changed(("  - {type: untrained}", "  - {type: untrained}\n  - {type: fragile}"))


def test_a_cell_that_fails_takes_no_other_along_and_runs_alone_once_mended(folder, site):
    site.add("fragile-dist", {"resume_fragile": fragile("raise ValueError('the cap is gone\\nand more')")})
    (folder / "registry.yaml").write_text(WITH_FRAGILE)
    outcome = run(folder)
    assert outcome.code == 1
    assert "FAILED train | toy" in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    for cell in cells(folder):
        failed = cell["constraint"]["type"] == "fragile"
        assert cell["status"] == ("failed" if failed else "done")
        assert cell["error"] == ("ValueError: the cap is gone" if failed else None)
        assert bool(cell["metrics"]) is not failed
    status = call("status", cwd=folder).out
    assert "2 failed" in status
    assert "8 done" in status
    assert status.count("ValueError: the cap is gone") == 2
    assert run(folder).code == 1, "it fails again, as nothing was mended"

    before = listing(folder / ".saebench" / "store")
    site.forget()
    (site.root / "resume_fragile.py").write_text(fragile("pass"))
    outcome = run(folder)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("5 SAEs, 1 of them to do") == 2
    assert "24 tasks, 6 of them to do" in outcome.err, (
        "two groups, of which one SAE each is missing, and its two scores"
    )
    after = listing(folder / ".saebench" / "store")
    assert {name: after[name] for name in before} == before
    assert {cell["status"] for cell in cells(folder)} == {"done"}
    assert "failed" not in call("status", cwd=folder).out


def test_an_sae_trained_after_its_group_is_the_one_trained_with_it(folder, site, tmp_path):
    site.add("fragile-dist", {"resume_late": fragile("raise ValueError('no')")})
    (folder / "registry.yaml").write_text(WITH_FRAGILE)
    assert run(folder).code == 1
    site.forget()
    (site.root / "resume_late.py").write_text(fragile("pass"))
    assert run(folder).code == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "registry.yaml").write_text(WITH_FRAGILE)
    assert run(other).code == 0
    assert weights(other).items() <= weights(folder).items()
    assert results(other) == results(folder)


def test_a_metric_that_fails_leaves_saes_and_other_scores(folder, site):
    good = metric("flaky")
    broken = good.replace("        return Scored", "        raise RuntimeError('boom')\n        return Scored")
    site.add("flaky-dist", {"resume_flaky": broken})
    (folder / "registry.yaml").write_text(TINY + "  - {type: flaky}\n")
    assert run(folder).code == 1
    for cell in cells(folder):
        assert (cell["status"], cell["error"]) == ("failed", "flaky: RuntimeError: boom")
        assert "reconstruction/mse" in cell["metrics"]
        assert "flaky/value" not in cell["metrics"]
        assert cell["certificate"] is not None
    before = listing(folder / ".saebench" / "store")
    site.forget()
    (site.root / "resume_flaky.py").write_text(good)
    outcome = run(folder)
    assert outcome.code == 0
    assert "9 of them to do" in outcome.err, "one preparation and eight scores"
    after = listing(folder / ".saebench" / "store")
    assert {name: after[name] for name in before} == before
    assert {cell["metrics"]["flaky/value"]["value"] for cell in cells(folder)} == {0.5}


def test_a_preparation_that_fails_names_its_metric_in_every_cell(folder, site):
    source = metric("flaky").replace("        return Prepared()", "        raise RuntimeError('no data')")
    site.add("flaky-dist", {"resume_prepare": source})
    (folder / "registry.yaml").write_text(TINY + "  - {type: flaky, only: [toy]}\n")
    assert run(folder).code == 1
    for cell in cells(folder):
        assert cell["status"] == "failed"
        assert cell["error"] == "flaky: RuntimeError: no data"


@pytest.mark.parametrize("value", ["1.5", "float('nan')"])
def test_a_score_that_cannot_be_is_a_failure(folder, site, value):
    site.add("flaky-dist", {"resume_range": metric("flaky").replace("Score(0.5", f"Score({value}")})
    (folder / "registry.yaml").write_text(TINY + "  - {type: flaky}\n")
    assert run(folder, "--only", "seed=0").code == 1
    errors = {cell["error"] for cell in cells(folder) if cell["seed"] == 0}
    words = "is outside its range [0.0, 1.0]" if value == "1.5" else "a score must be finite"
    assert all(words in error for error in errors)


@pytest.mark.parametrize("kind", ["sae", "score", "metric"])
@pytest.mark.parametrize("content", [None, b"", b'{"files'], ids=["missing", "empty", "cut"])
def test_a_product_whose_done_is_gone_or_damaged_is_made_anew(folder, kind, content):
    assert run(folder, "--only", "seed=0").code == 0
    before = json.loads(call("results", "--json", "--only", "seed=0", cwd=folder).out)
    victim = sorted((folder / ".saebench" / "store" / kind).rglob(DONE))[0]
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    rest = {name: at for name, at in listing(folder / ".saebench" / "store").items() if victim.parent.name not in name}
    outcome = run(folder, "--only", "seed=0")
    assert outcome.code == 0, outcome.err
    assert "1 of them to do" in outcome.err
    after = listing(folder / ".saebench" / "store")
    assert {name: after[name] for name in rest} == rest
    assert json.loads(victim.read_text())["files"]
    assert json.loads(call("results", "--json", "--only", "seed=0", cwd=folder).out) == before


def test_a_run_that_the_disk_cannot_hold_does_not_start(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = json.loads(call("plan", "--json", cwd=folder).out)["to_do"]["disk_bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 0, needed))
    outcome = run(folder)
    assert outcome.code == 2
    assert "the plan needs" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["registry.yaml"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 0, 2 * needed))
    assert run(folder).code == 0


def test_a_new_seed_runs_alone(folder):
    assert run(folder).code == 0
    before = listing(folder / ".saebench" / "store")
    (folder / "registry.yaml").write_text(changed(("seeds: [0, 1]", "seeds: [0, 1, 2]")))
    outcome = run(folder)
    assert outcome.code == 0
    assert "9 of them to do" in outcome.err, "one group and eight scores"
    after = listing(folder / ".saebench" / "store")
    assert {name: after[name] for name in before} == before
