"""What the store holds, and what of it no registry needs: told, deleted, and never what a running process holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

from saebench_core.api import open_registry, reopen
from saebench_core.results import Journal
from saebench_core.store import Store
from saebench_core.upkeep import needs_of, places, remove, unneeded
from tests.helpers.registries import built_in, call, changed, listing

SMALL = changed(("  - {type: soft_frozen_decoder, tau: 0.8}\n", ""), ("[0, 1]", "[0]"))
LONGER = changed(("steps: 20", "steps: 30"), text=SMALL)
UNIT = 1000


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which a registry was run, and then with more steps."""
    folder = tmp_path_factory.mktemp("ran")
    for name, text in (("registry.yaml", SMALL), ("longer.yaml", LONGER)):
        (folder / name).write_text(text)
        outcome = call("run", name, "--no-tracking", cwd=folder)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def folder(ran, tmp_path):
    shutil.copytree(ran, tmp_path / "copy")
    return tmp_path / "copy"


def store_of(folder):
    return Store(folder / ".saebench" / "store")


def products(folder):
    return {(place.kind, place.key) for place in places(store_of(folder)) if place.state == "complete"}


def wanted(folder, name):
    opened = open_registry(str(folder / name), folder / ".saebench")
    return {(product.kind, product.key) for task in opened.plan.tasks for product in task.products}


def gc(folder, *args):
    outcome = call("gc", *args, "--json", cwd=folder)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def leave(store, name, size=UNIT):
    """Leave what an interrupted process leaves: a folder below a kind."""
    path = store.root / "sae" / name[1:3] / name if name.startswith(".") else store.root / "sae" / name[:2] / name
    path.mkdir(parents=True)
    (path / "file.bin").write_bytes(bytes(size))
    return path


def test_du_counts_every_file_by_kind(folder):
    store = store_of(folder)
    leave(store, ".abcd.0123.tmp")
    leave(store, "ef01", 500)
    document = json.loads(call("du", "--json", cwd=folder).out)
    assert set(document) == {"schema", "kinds", "unfinished", "total_bytes", "free_bytes"}
    counted = {row["kind"]: row["products"] for row in document["kinds"]}
    assert counted == {"metric": 2, "sae": 6, "score": 12, "statistics": 2}
    files = {path: path.stat().st_size for path in store.root.rglob("*") if path.is_file()}
    for row in document["kinds"]:
        inside = [size for path, size in files.items() if path.parts[len(store.root.parts)] == row["kind"]]
        assert row["bytes"] == sum(inside) - (1500 if row["kind"] == "sae" else 0)
    assert document["unfinished"] == {"count": 2, "bytes": 1500}
    assert document["total_bytes"] == sum(files.values())
    text = call("du", cwd=folder).out
    assert "score             12" in text
    assert "unfinished         2     1.5 kB" in text


def test_nothing_is_unneeded_while_every_registry_counts(folder):
    assert gc(folder) == {
        "schema": 1, "deleted": False, "registries": ["tiny"], "products": [], "held": [], "bytes": 0,
    }  # fmt: skip


def test_what_a_named_registry_does_not_need_is_told_and_nothing_changed(folder):
    before = listing(folder)
    document = gc(folder, "longer.yaml")
    told = {(row["kind"], row["key"]) for row in document["products"]}
    assert told == wanted(folder, "registry.yaml") - wanted(folder, "longer.yaml")
    assert {kind for kind, _ in told} == {"sae", "score"}, "metric inputs and statistics are shared"
    assert document["bytes"] == sum(row["bytes"] for row in document["products"]) > 0
    assert listing(folder) == before
    assert "nothing was changed, --delete deletes it" in call("gc", "longer.yaml", cwd=folder).out


def test_deleting_leaves_what_is_needed_whole(folder):
    kept = wanted(folder, "longer.yaml")
    told = {(row["kind"], row["key"]) for row in gc(folder, "longer.yaml", "--delete")["products"]}
    assert products(folder) & told == set()
    assert kept <= products(folder)
    store = store_of(folder)
    assert all(store.verify(*product) == [] for product in products(folder))
    again = call("run", "longer.yaml", "--no-tracking", cwd=folder)
    assert "0 of them to do" in again.err
    assert gc(folder, "longer.yaml", "--delete")["products"] == []


def test_what_came_from_outside_is_counted_and_left_alone(folder):
    """It was paid for, and nothing else can make it again."""
    store = store_of(folder)
    store.make("record", "ab" * 32, {"asked": {}}, lambda place: (place / "reply.json").write_text("{}"))
    told = gc(folder, "longer.yaml", "--delete")["products"]
    assert "record" not in {row["kind"] for row in told}
    assert ("record", "ab" * 32) in products(folder)
    assert "record" in call("du", cwd=folder).out


def test_overrides_are_part_of_a_named_registry(folder):
    told = {(row["kind"], row["key"]) for row in gc(folder, "registry.yaml", "--set", "training.steps=30")["products"]}
    assert told & wanted(folder, "longer.yaml") == set()
    assert told & wanted(folder, "registry.yaml")


def test_a_sweep_is_planned_again_with_its_overrides(folder):
    (folder / "bare.yaml").write_text(SMALL.rstrip("\n"))
    options = ["--set", "training.steps=5", "--set", "seeds=[7]", "--only", "constraint=trained", "--device", "cpu"]
    assert call("run", "bare.yaml", "--no-tracking", *options, cwd=folder).code == 0
    sweeps = Journal(folder / ".saebench").sweeps()
    assert len(sweeps) == 3
    for sweep in sweeps:
        opened = reopen(sweep, folder / ".saebench", built_in())
        assert (opened.registry.sweep_id, opened.registry.name) == (sweep.sweep_id, "tiny")
    assert gc(folder)["products"] == []


def test_drafts_and_remains_are_removed_and_drafts_at_work_are_not(folder):
    store = store_of(folder)
    dead, remains = leave(store, ".abcd.0123.tmp"), leave(store, "ef01")
    alive = leave(store, ".beef.4567.tmp")
    stranger = store.root / "plans" / "ab" / "abcd"
    stranger.mkdir(parents=True)
    (stranger / "DONE").write_text("{}")
    with store.locked("sae", "beef") as free:
        assert free
        document = gc(folder, "--delete")
    assert [(row["key"], row["state"], row["bytes"]) for row in document["products"]] == [
        ("abcd", "draft", UNIT),
        ("ef01", "remains", UNIT),
    ]
    assert [row["key"] for row in document["held"]] == ["beef"]
    assert (dead.exists(), remains.exists(), alive.exists(), stranger.exists()) == (False, False, True, True)
    assert [row["key"] for row in gc(folder, "--delete")["products"]] == ["beef"]


def test_checkpoints_are_kept_while_their_sae_is_wanted_and_not_there(folder):
    store = store_of(folder)
    saes = {name: sorted(key for kind, key in wanted(folder, name) if kind == "sae")
            for name in ("longer.yaml", "registry.yaml")}  # fmt: skip
    published, missing, gone = *saes["longer.yaml"][:2], saes["registry.yaml"][0]
    store.remove("sae", missing)
    places_of = {key: folder / ".saebench" / "checkpoints" / key for key in (published, gone, missing, "stranger")}
    for path in places_of.values():
        (path / "step-000000003").mkdir(parents=True)
        (path / "step-000000003" / "state.safetensors").write_bytes(bytes(UNIT))
    assert json.loads(call("du", "--json", cwd=folder).out)["unfinished"] == {"count": 4, "bytes": 4 * UNIT}
    document = gc(folder, "longer.yaml", "--delete")
    told = {row["key"] for row in document["products"] if row["state"] == "checkpoint"}
    assert told == {published, gone, "stranger"}
    assert {key for key, path in places_of.items() if path.exists()} == {missing}
    assert store.has("sae", published)


def test_a_product_that_is_being_built_is_left(folder):
    store = store_of(folder)
    needs = needs_of([open_registry(str(folder / "longer.yaml"), folder / ".saebench")])
    first, *others = [place for place in unneeded(store, needs) if place.kind == "sae"]
    with store.locked(first.kind, first.key) as free, store.locked(first.kind, first.key) as again:
        assert (free, again) == (True, False)
        outcome = remove(store, [first, *others])
    assert (outcome.held, outcome.removed) == ((first,), tuple(others))
    assert store.has(first.kind, first.key)
    assert not any(store.has(place.kind, place.key) for place in others)


HOLD = """
    import sys
    from pathlib import Path
    from saebench_core.store import Store
    with Store(Path(sys.argv[1])).hold(sys.argv[2]):
        print("holding", flush=True)
        sys.stdin.read()
"""


def test_what_a_running_process_works_on_is_kept_whichever_registry_is_named(folder):
    opened = open_registry(str(folder / "registry.yaml"), folder / ".saebench")
    store = opened.store
    assert store.held() == set()
    script = [sys.executable, "-c", textwrap.dedent(HOLD), str(store.root), opened.registry.sweep_id]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "holding\n"
        assert store.held() == {opened.registry.sweep_id}
        assert gc(folder, "longer.yaml")["products"] == []
        child.kill()
    assert store.held() == set()
    assert gc(folder, "longer.yaml")["products"]


def test_a_run_holds_its_sweep(folder, monkeypatch):
    from saebench_core.api import running

    seen = []
    real = running.run_inline
    monkeypatch.setattr(
        running, "run_inline", lambda *args: (seen.append(store_of(folder).held()), real(*args))[1], raising=True
    )
    assert call("run", "--no-tracking", cwd=folder).code == 0
    assert [len(held) for held in seen] == [1]
    assert store_of(folder).held() == set()


def test_what_plugins_made_for_themselves_is_kept_while_they_are_used(folder):
    opened = open_registry(str(folder / "longer.yaml"), folder / ".saebench")
    store = opened.store
    plugin = opened.registry.cells[0].backbone.plugin
    from saebench_core.plan import core_digest

    common = {"config": {}, "device": "cpu", "torch": opened.environment.torch, "core": core_digest("activations")}
    for key, name in (("ab01", plugin.name), ("ab02", "hf_lm")):
        identity = {**common, "name": name, "plugin": plugin.identity()}
        store.make("derived", key, identity, lambda path: (path / "file.bin").write_bytes(bytes(UNIT)))
    told = {(row["kind"], row["key"]) for row in gc(folder)["products"]}
    assert told == {("derived", "ab02")}


def test_a_registry_that_cannot_be_planned_stops_the_search(folder):
    path = next((folder / ".saebench" / "sweeps").glob("*/sweep.json"))
    path.write_text(path.read_text().replace("type: topk", "type: gone"))
    before = listing(folder)
    outcome = call("gc", "--delete", cwd=folder)
    assert outcome.code == 2
    assert "no architecture is called 'gone'" in outcome.err
    assert "name the registry that counts" in outcome.err
    assert listing(folder) == before
    assert gc(folder, "longer.yaml")["products"]


def test_without_a_registry_there_is_nothing_to_go_by(tmp_path):
    assert call("du", cwd=tmp_path).code == 2
    (tmp_path / ".saebench").mkdir()
    outcome = call("gc", cwd=tmp_path)
    assert (outcome.code, "no registry was run here" in outcome.err) == (2, True)
    refused = call("gc", "--set", "l0=[3]", cwd=tmp_path)
    assert (refused.code, "name it" in refused.err) == (2, True)
    assert list((tmp_path / ".saebench").iterdir()) == []
    assert "0 B in " in call("du", cwd=tmp_path).out
