"""The plan: what is shared is one task, and an edit re-runs what it changes and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import pytest
from saebench_plugins.metrics.reconstruction import ReconstructionMetric

from saebench_core import (
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Work,
)
from saebench_core.catalog import Catalog, Plugin, make_catalog
from saebench_core.errors import PluginError
from saebench_core.plan import Environment, keys
from saebench_core.store import Store
from tests.helpers.distributions import Site, architecture
from tests.helpers.registries import TWO_BACKBONES, built_in, changed, kinds, plan_of

TWO_ARCHITECTURES = ("{type: topk, d_sae: 16}", "{type: topk, d_sae: 16}\n  - {type: batch_topk, d_sae: 16}")


class StoredConfig(BackboneConfig):
    type: Literal["stored"] = "stored"


class Stored(Backbone):
    """A backbone whose activations are stored; it is planned only."""

    def __init__(self, config):
        self.config = config

    def describe(self):
        return BackboneDescription("other", {"a": 8, "b": 6}, seconds_per_row=0.5)

    def prepare(self, context):
        raise NotImplementedError

    def rows_available(self, site, split):
        return None

    def stream(self, site, split, start, rows):
        raise NotImplementedError


class LaterConfig(ConstraintConfig):
    type: Literal["later"] = "later"


class Later(Constraint):
    """A constraint that starts from a trained twin."""

    needs = "trained"

    def __init__(self, config):
        self.config = config

    def frozen(self, roles, recipe):
        return frozenset()


class LatestConfig(ConstraintConfig):
    type: Literal["latest"] = "latest"
    after: str = "later"


class Latest(Later):
    """A constraint that starts from a twin that starts from a twin."""

    def __init__(self, config):
        self.needs = config.after


def with_own(catalog=None):
    specs = {
        "stored": ("backbone", BackboneSpec(StoredConfig, Stored, "stored")),
        "later": ("constraint", ConstraintSpec(LaterConfig, Later, "later")),
        "latest": ("constraint", ConstraintSpec(LatestConfig, Latest, "latest")),
    }
    own = [Plugin(kind, name, spec, "own", "1", "0") for name, (kind, spec) in specs.items()]
    return Catalog([*(catalog or built_in()), *own], ())


STORED = changed(
    ("name: toy, type: synthetic, d_in: 8, n_features: 16, ", "type: stored, sites: [a]"),
    ("probability: {type: constant, p: 0.1}", ""),
    ("  - {type: feature_recovery}\n", ""),
)


def edited(kind, name):
    """The built-in catalog after an edit of one plugin's file."""
    plugins = [replace(p, source_digest="0" * 64) if (p.kind, p.name) == (kind, name) else p for p in built_in()]
    assert plugins != list(built_in())
    return Catalog(plugins, ())


def products(plan):
    return {(product.kind, product.key) for task in plan.tasks for product in task.products}


def new(before, after):
    """How many products of each kind an edit adds."""
    return dict(Counter(kind for kind, _ in products(after) - products(before)))


def test_what_is_shared_is_planned_once():
    plan = plan_of()
    assert kinds(plan) == {"train": 2, "metric": 2, "score": 16}, "two seeds, two metrics, eight cells"
    plan = plan_of(changed(TWO_BACKBONES))
    assert kinds(plan) == {"train": 4, "metric": 4, "score": 32}


def test_metrics_are_prepared_before_anything_is_trained():
    order = [task.kind for task in plan_of(changed(TWO_BACKBONES)).tasks]
    assert order == ["metric"] * 4 + ["train"] * 4 + ["score"] * 32


def test_questions_of_all_scores_are_added_up(monkeypatch):
    monkeypatch.setattr(ReconstructionMetric, "work", lambda self, description: Work(asked=7))
    plan = plan_of()
    assert plan.total(plan.tasks).questions == 7 * 8


def test_activations_of_a_stored_backbone_are_computed_once_for_all_cells():
    plan = plan_of(STORED, with_own())
    assert kinds(plan) == {"activations": 3, "train": 2, "metric": 1, "score": 8}
    for task in plan.tasks:
        if task.kind == "train":
            assert [needed.split for needed in task.needs] == ["train", "calibration", "evaluation"]
            assert [needed.rows for needed in task.needs] == [640, 64, 64]
    metric = next(task for task in plan.tasks if task.kind == "metric")
    assert [needed.split for needed in metric.needs] == ["evaluation"]
    two_sites = plan_of(STORED.replace("sites: [a]", "sites: [a, b]"), with_own())
    assert kinds(two_sites) == {"activations": 6, "train": 4, "metric": 2, "score": 16}
    assert products(plan) < products(two_sites)


def test_a_group_is_all_cells_of_one_stream():
    plan = plan_of(changed(TWO_BACKBONES, TWO_ARCHITECTURES, ("l0: [3]", "l0: [2, 3]")))
    groups = [task for task in plan.tasks if task.kind == "train"]
    assert len(groups) == 4
    for task in groups:
        assert len(task.cells) == len(task.products) == 2 * 4 * 2
        assert len({(cell.backbone.name, cell.site, cell.seed) for cell in task.cells}) == 1
        assert {product.kind for product in task.products} == {"sae"}
    for cell in plan.cells:
        task, product = plan.train[cell.cell_id]
        assert task.products[task.cells.index(cell)] is product


def test_no_sae_is_in_the_key_of_a_preparation():
    base = {task.products[0].key for task in plan_of().tasks if task.kind == "metric"}
    for change in [
        ("d_sae: 16", "d_sae: 24"),
        ("l0: [3]", "l0: [2]"),
        ("seeds: [0, 1]", "seeds: [5]"),
        ("steps: 20", "steps: 30"),
    ]:
        assert {task.products[0].key for task in plan_of(changed(change)).tasks if task.kind == "metric"} == base


def test_needs_come_before_what_needs_them():
    for plan in (plan_of(changed(TWO_BACKBONES)), plan_of(later_text(), with_own())):
        place = {task: index for index, task in enumerate(plan.tasks)}
        assert all(place[needed] < place[task] for task in plan.tasks for needed in task.needs)
        assert len({task.label for task in plan.tasks}) == len(plan.tasks), "labels are unique"
        for task in plan.tasks:
            if task.kind == "score":
                assert [needed.kind for needed in task.needs] == ["train", "metric"]
                assert task.cells[0] in task.needs[0].cells


def later_text(trained=True):
    text = changed(("  - {type: untrained}", "  - {type: later}"))
    return text if trained else text.replace("  - {type: trained}\n", "")


@pytest.mark.parametrize("trained", [True, False])
def test_a_twin_that_a_constraint_starts_from_is_trained_before_it(trained):
    plan = plan_of(later_text(trained), with_own())
    later = [cell for cell in plan.cells if cell.constraint.type == "later"]
    assert len(later) == 2
    for cell in later:
        task, product = plan.train[cell.cell_id]
        twin = plan.twins[cell.cell_id]
        (before,) = [needed for needed in task.needs if twin in needed.products]
        assert plan.tasks.index(before) < plan.tasks.index(task)
        assert product.identity["twin"] == twin.key
        start = before.cells[before.products.index(twin)]
        assert (start.constraint.type, start.seed, start.l0) == ("trained", cell.seed, cell.l0)
    assert kinds(plan)["score"] == 2 * len(plan.cells), "a twin that is no cell has no scores"
    assert ("trained" in {cell.constraint.type for cell in plan.cells}) is trained


def test_a_twin_of_a_twin_is_trained_before_both():
    plan = plan_of(later_text(trained=False).replace("{type: later}", "{type: latest}"), with_own())
    for cell in (cell for cell in plan.cells if cell.constraint.type == "latest"):
        chain = [plan.train[cell.cell_id][0]]
        for constraint in ("later", "trained"):
            (before,) = [needed for needed in chain[-1].needs if needed.kind == "train"]
            assert constraint in {one.constraint.type for one in before.cells}
            assert plan.tasks.index(before) < plan.tasks.index(chain[-1])
            chain.append(before)


def test_constraints_that_need_one_another_in_a_circle_are_refused():
    text = later_text(trained=False).replace("{type: later}", "{type: latest, after: latest}")
    with pytest.raises(PluginError, match=r"circle: latest -> latest"):
        plan_of(text, with_own())


def test_the_disk_that_a_preparation_takes_is_counted_once(monkeypatch):
    small = sum(task.estimate.disk_bytes for task in plan_of(STORED, with_own()).tasks)
    sized = BackboneDescription("other", {"a": 8, "b": 6}, seconds_per_row=0.5, disk_bytes=12_345)
    monkeypatch.setattr(Stored, "describe", lambda self: sized)
    assert sum(task.estimate.disk_bytes for task in plan_of(STORED, with_own()).tasks) == small + 12_345


def test_the_same_twin_is_the_same_product_whether_it_is_a_cell_or_not():
    with_cell, without = plan_of(later_text(), with_own()), plan_of(later_text(trained=False), with_own())
    assert with_cell.twins == without.twins
    assert len(with_cell.twins) == 2
    assert products(without) < products(with_cell)


def test_a_part_of_the_cells_makes_the_same_products():
    whole, part = plan_of(), plan_of(only=["constraint=trained", "seed=1"])
    assert len(part.cells) == 1
    assert kinds(part) == {"train": 1, "metric": 2, "score": 2}
    assert products(part) < products(whole)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: tiny", "name: other"), {}),
        (("threads: 1", "threads: 2"), {}),
        (("{type: trained}", "{name: real, type: trained}"), {}),
        (("{name: toy,", "{name: box,"), {}),
        (("{type: reconstruction, rows: 64}", "{type: reconstruction, rows: 32}"), {"metric": 1, "score": 8}),
        (("{type: feature_recovery}", "{type: feature_recovery, threshold: 0.9}"), {"metric": 1, "score": 8}),
        (("  - {type: feature_recovery}\n", ""), {}),
        (("seeds: [0, 1]", "seeds: [0, 1, 2]"), {"sae": 4, "score": 8}),
        (("  - {type: untrained}", "  - {type: untrained}\n  - {type: frozen_encoder}"), {"sae": 2, "score": 4}),
        (("  - {type: untrained}\n", ""), {}),
        (("tau: 0.8", "tau: 0.7"), {"sae": 2, "score": 4}),
        (("l0: [3]", "l0: [3, 4]"), {"sae": 8, "score": 16}),
        (TWO_ARCHITECTURES, {"sae": 8, "score": 16}),
        (TWO_BACKBONES, {"sae": 8, "metric": 2, "score": 16}),
        (("d_sae: 16", "d_sae: 17"), {"sae": 8, "score": 16}),
        (("steps: 20", "steps: 21"), {"sae": 8, "score": 16}),
        (("p: 0.1", "p: 0.2"), {"sae": 8, "metric": 2, "score": 16}),
        (("seeds: [0, 1]", "seeds: [0, 1]\nexclude:\n  - {constraint: trained, seed: 1}"), {}),
    ],
)  # fmt: skip
def test_an_edit_of_one_line_adds_only_what_it_changes(change, expected):
    assert new(plan_of(), plan_of(changed(change))) == expected


def test_training_of_one_backbone_concerns_that_backbone_only():
    base = changed(TWO_BACKBONES)
    own = base.replace("d_in: 12", "d_in: 12, training: {steps: 9, batch_size: 32}")
    assert new(plan_of(base), plan_of(own)) == {"sae": 8, "score": 16}


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("architecture", "topk", {"sae": 8, "score": 16}),
        ("architecture", "relu", {}),
        ("constraint", "trained", {"sae": 2, "score": 4}),
        ("constraint", "untrained", {"sae": 2, "score": 4}),
        ("constraint", "frozen_encoder", {}),
        ("metric", "reconstruction", {"metric": 1, "score": 8}),
        ("metric", "sparse_probing", {}),
        ("backbone", "synthetic", {"sae": 8, "metric": 2, "score": 16}),
        ("backbone", "hf_lm", {}),
    ],
)
def test_an_edit_of_one_plugin_makes_anew_what_uses_it(kind, name, expected):
    text = changed(TWO_ARCHITECTURES)
    if kind == "architecture":
        assert new(plan_of(text), plan_of(text, edited(kind, name))) == expected
    assert new(plan_of(), plan_of(catalog=edited(kind, name))) == expected


def test_an_edit_of_a_trained_twin_makes_what_starts_from_it_anew():
    before, after = plan_of(later_text(), with_own()), plan_of(later_text(), with_own(edited("constraint", "trained")))
    changed_labels = {
        cell.constraint.type
        for cell in after.cells
        if after.train[cell.cell_id][1].key != before.train[cell.cell_id][1].key
    }
    assert changed_labels == {"trained", "later"}


def test_an_edit_of_a_third_partys_file_makes_anew_what_uses_it(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    site.add("mine", {"plan_mine": architecture("mine")})
    text = changed(("{type: topk, d_sae: 16}", "{type: topk, d_sae: 16}\n  - {type: mine, d_sae: 16}"))
    try:
        before = plan_of(text, make_catalog())
        path = site.root / "plan_mine.py"
        path.write_text(path.read_text() + "# edited\n")
        after = plan_of(text, make_catalog())
    finally:
        site.forget()
    assert new(before, after) == {"sae": 8, "score": 16}
    kept = {cell.cell_id: cell.architecture.type for cell in after.cells}
    moved = {cell_id for cell_id in kept if before.train[cell_id][1].key != after.train[cell_id][1].key}
    assert {kept[cell_id] for cell_id in moved} == {"mine"}
    assert len(moved) == 8


@pytest.mark.parametrize(
    ("environment", "same"),
    [
        (Environment("cuda", "fp32", "0"), False),
        (Environment("cpu", "fp32", "1"), False),
        (Environment("cpu", "bf16", "0"), True),
    ],
)
def test_device_and_torch_enter_the_keys_and_the_format_only_where_a_model_runs(environment, same):
    assert (products(plan_of()) == products(plan_of(environment=environment))) is same
    stored = plan_of(STORED, with_own())
    assert not products(stored) & products(plan_of(STORED, with_own(), environment=environment))


def test_done_and_waiting_follow_the_store(tmp_path):
    plan, store = plan_of(), Store(tmp_path)
    assert plan.waiting(store) == list(plan.tasks)
    train = plan.tasks[0]
    for product in train.products[:-1]:
        store.make(product.kind, product.key, product.identity, lambda folder: None)
    assert not train.done(store)
    last = train.products[-1]
    store.make(last.kind, last.key, last.identity, lambda folder: None)
    assert train.done(store)
    assert plan.waiting(store) == [task for task in plan.tasks if task is not train]


def test_estimates_add_up():
    plan = plan_of(STORED, with_own())
    total = plan.total(plan.tasks)
    assert total.seconds == pytest.approx(sum(task.estimate.seconds for task in plan.tasks))
    assert total.disk_bytes == sum(task.estimate.disk_bytes for task in plan.tasks)
    assert total.memory_bytes == max(task.estimate.memory_bytes for task in plan.tasks)
    rows = next(task for task in plan.tasks if task.split == "train")
    assert rows.estimate.seconds == 640 * 0.5
    assert rows.estimate.disk_bytes == 640 * 8 * 4
    assert plan.total([]).seconds == plan.total([]).memory_bytes == 0


def test_a_loaded_sae_is_measured_on_the_evaluation_rows_of_a_stored_backbone():
    path = Path(__file__).parents[1] / "data" / "peers" / "saelens_topk"
    twin = f"  - {{name: theirs, type: pretrained, path: {path}, twin: {{type: topk}}}}\n"
    plan = plan_of(STORED.replace("architectures:\n", f"architectures:\n{twin}"), with_own())
    assert kinds(plan) == {"activations": 3, "load": 1, "train": 4, "metric": 1, "score": 8 + 7}
    (load,) = [task for task in plan.tasks if task.kind == "load"]
    assert [(needed.split, needed.rows) for needed in load.needs] == [("evaluation", 64)]


def test_every_module_that_shapes_a_product_is_there():
    root = Path(str(files("saebench_core")))
    for kind, names in keys._CORE.items():
        for name in names:
            assert (root / name).exists(), f"{name}, named for {kind}: its edits would re-run nothing"
