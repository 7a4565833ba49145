"""SAEs that are loaded: one cell as it is, references at its measured L0, and nothing claimed that is not so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench_core import api
from saebench_core.catalog import PluginChoice
from saebench_core.errors import InputError
from saebench_core.formats import checkpoint_files, checkpoint_sizes, read_checkpoint
from saebench_core.registry import registry_schema
from saebench_core.report import write_html
from saebench_core.report.certificates import certificate_rows
from saebench_core.report.tables import comparisons
from saebench_core.tasks.references import shape_of
from tests.helpers.contexts import FakeContext
from tests.helpers.registries import TINY, built_in, call, changed, load, plan_of
from tests.helpers.runs import of

PEERS = Path(__file__).parents[1] / "data" / "peers"
TWIN = "{type: topk, aux_coefficient: 0.0}"


def registry(path, twin=TWIN, more="", text=TINY):
    """Return the tiny registry with an SAE to load beside its own architecture."""
    entry = f"  - {{name: theirs, type: pretrained, path: {path}, twin: {twin}{more}}}\n"
    return changed(("  - {type: topk, d_sae: 16}\n", "  - {type: topk, d_sae: 16}\n" + entry), text=text)


@pytest.fixture
def theirs(tmp_path):
    """A copy of an SAE that SAELens wrote, with decoder and biases small enough for rows of norm one."""
    shutil.copytree(PEERS / "saelens_training_batchtopk", tmp_path / "theirs")
    weights = tmp_path / "theirs" / "sae_weights.safetensors"
    tensors = load_file(weights)
    scaled = {name: tensors[name] * 0.1 for name in ("b_enc", "b_dec", "topk_threshold")}
    save_file({**tensors, **scaled}, weights)
    return tmp_path / "theirs"


def opened(folder, text, **options):
    (folder / "registry.yaml").write_text(text)
    return api.open_registry(
        str(folder / "registry.yaml"), folder / "work", choice=PluginChoice(frozenset()), **options
    )


def run(folder, text, **options):
    work = opened(folder, text, **options)
    report = api.run_opened(work, track=False)
    return work, report


def results(work):
    return [record.result for record in work.records()]


def test_there_is_one_cell_of_the_sae_and_references_at_every_seed(theirs):
    found = load(changed(("l0: [3]", "l0: [2, 3, 5]"), text=registry(theirs)))
    cells = [cell for cell in found.cells if cell.measured]
    assert [(cell.constraint.name, cell.seed, cell.loaded) for cell in cells] == [
        ("trained", 0, True),
        *((name, seed, False) for name in ("frozen_decoder", "soft_frozen_decoder", "untrained") for seed in (0, 1)),
    ]
    assert len(found.cells) == 3 * 4 * 2 + 7
    assert {(cell.d_in, cell.d_sae, cell.l0) for cell in cells} == {(8, 16, 0.0)}
    assert cells[0].recipe.type == "pretrained"
    assert {(cell.recipe.type, cell.recipe.config.d_sae) for cell in cells[1:]} == {("topk", 16)}
    assert cells[1].label == "toy | activations | theirs | frozen_decoder | L0 measured | s0"
    assert cells[1].identity["l0"] == "measured"
    assert cells[1].identity["architecture"]["twin"] == {"type": "topk", "aux_coefficient": 0.0}
    assert {cell.cell_id for cell in found.select(["l0=measured"])} == {cell.cell_id for cell in cells}


def test_the_plan_names_every_product_before_anything_is_measured(theirs):
    plan = plan_of(registry(theirs))
    loads = [task for task in plan.tasks if task.kind == "load"]
    assert [task.label for task in loads] == ["load | toy | activations | theirs"]
    place = {task: index for index, task in enumerate(plan.tasks)}
    groups = [task for task in plan.tasks if task.kind == "train"]
    assert [(len(task.cells), loads[0] in task.needs) for task in groups] == [
        (4, False), (4, False), (3, True), (3, True),
    ]  # fmt: skip
    assert all(place[needed] < place[task] for task in plan.tasks for needed in task.needs)
    assert {product.key for product in plan.measured.values()} == {loads[0].products[0].key}
    assert len(plan.measured) == 7
    again = plan_of(registry(theirs))
    assert [p.key for t in plan.tasks for p in t.products] == [p.key for t in again.tasks for p in t.products]


def test_other_cells_keep_their_products(theirs):
    alone, beside = plan_of(), plan_of(registry(theirs))
    for cell in alone.cells:
        assert alone.train[cell.cell_id][1].key == beside.train[cell.cell_id][1].key


def test_references_are_trained_at_the_l0_that_is_measured(theirs, tmp_path):
    work, report = run(tmp_path, registry(theirs, twin="{type: batch_topk}"))
    assert report.exit_code == 0, [record.result.error for record in report.records]
    cells = results(work)
    itself = of(cells, "trained")
    cell = of(work.registry.cells, "trained")
    rows = torch.cat([batch.inputs for batch in evaluation_batches(cell, tmp_path)])
    sae = read_checkpoint(theirs).sae
    wanted = float(sae.encode(rows).l0().mean())
    assert 2 < wanted < 14
    assert itself.l0_target == itself.certificate["realised_l0"] == pytest.approx(wanted)
    assert itself.metrics["reconstruction/l0"].value == pytest.approx(wanted, rel=0.2)
    for name in ("frozen_decoder", "soft_frozen_decoder", "untrained"):
        for seed in (0, 1):
            reference = of(cells, name, seed)
            assert (reference.status, reference.l0_target) == ("done", itself.l0_target)
            folder = tmp_path / "work" / reference.artifacts["sae"]
            stored = json.loads((folder / "cfg.json").read_text())
            assert stored["metadata"]["architecture"] == {"type": "batch_topk", "d_sae": 16} | {
                key: value for key, value in stored["metadata"]["architecture"].items() if key not in ("type", "d_sae")
            }
            assert stored["metadata"]["saebench"]["target_l0"] == itself.l0_target
    saved = read_checkpoint(tmp_path / "work" / itself.artifacts["sae"]).sae
    assert torch.equal(saved.reconstruct(rows), sae.reconstruct(rows)), "scored as it is"


def evaluation_batches(cell, folder):
    backbone = cell.backbone.instance
    backbone.prepare(FakeContext(folder, backbone, cell.site, cell.backbone.config.seed))
    return backbone.stream(cell.site, "evaluation", 0, cell.training.evaluation_rows)


def test_ids_do_not_change_when_the_l0_is_known(theirs, tmp_path):
    text = registry(theirs)
    before = opened(tmp_path, text)
    ids = [cell.cell_id for cell in before.registry.cells]
    assert {result.l0_target for result in results(before) if result.architecture.name == "theirs"} == {None}
    run(tmp_path, text, only=["architecture=theirs"])
    after = opened(tmp_path, text)
    assert [result.cell_id for result in results(after)] == ids
    known = {result.l0_target for result in results(after) if result.architecture.name == "theirs"}
    assert len(known) == 1 and None not in known
    assert after.plan.waiting(after.store) == [
        task for task in after.plan.tasks if not any(cell.measured for cell in task.cells) and task.kind != "metric"
    ]


def test_a_whole_number_is_taken_where_the_twin_needs_one(theirs):
    cell = of(load(registry(theirs)).cells, "frozen_decoder")
    from dataclasses import replace

    assert [shape_of(replace(cell, l0=l0)).l0 for l0 in (4.0, 4.4, 4.6, 0.2)] == [4.0, 4.0, 5.0, 1.0]
    free = of(load(registry(theirs, twin="{type: relu}")).cells, "frozen_decoder")
    assert shape_of(replace(free, l0=4.4)).l0 == 4.4


def test_only_the_references_can_be_asked_for(theirs, tmp_path):
    _, report = run(tmp_path, registry(theirs), only=["constraint=frozen_decoder", "architecture=theirs", "seed=1"])
    (record,) = report.records
    assert (record.result.status, record.result.seed, record.paired) == ("done", 1, False)
    assert record.result.l0_target > 0
    assert call("gc", "--json", "--workdir", "work", cwd=tmp_path).code == 0


def test_gc_keeps_what_they_need(theirs, tmp_path):
    run(tmp_path, registry(theirs))
    outcome = call("gc", "--workdir", "work", "--json", cwd=tmp_path)
    assert json.loads(outcome.out)["products"] == []


def test_what_is_known_of_the_sae_is_in_its_certificate_and_nothing_else(theirs, tmp_path):
    work, _ = run(tmp_path, registry(theirs), only=["architecture=theirs", "seed=0"])
    itself = of(results(work), "trained")
    certificate = itself.certificate
    assert {key for key, value in certificate.items() if value is None} == {
        "base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256", "decoder_cosine", "at_bound_share",
    }  # fmt: skip
    assert certificate["frozen"] == {}
    loaded = certificate["loaded"]
    assert loaded["format"] == "saelens" and loaded["k"] == 3.5 and loaded["tokens"] == 123_456
    assert set(loaded["files"]) == {"sae_weights.safetensors", "cfg.json", "runner_cfg.json"}
    assert set(itself.artifacts) & {"sae", "certificate", "curves"} == {"sae", "certificate"}
    reference = of(results(work), "frozen_decoder").certificate
    assert reference["base_draw_sha256"] and "loaded" not in reference


@pytest.mark.parametrize(
    ("said", "more", "flag"),
    [
        (123_456, "", "budget_unmatched"),
        (640, "", None),
        (641, "", "budget_unmatched"),
        (None, "", "budget_unknown"),
        (None, ", tokens: 640", None),
        (None, ", tokens: 1000", "budget_unmatched"),
        (641, ", tokens: 10", "budget_unmatched"),
    ],
)
def test_a_larger_budget_is_told(theirs, tmp_path, said, more, flag):
    (theirs / "runner_cfg.json").write_text(json.dumps({"training_tokens": said} if said else {}))
    text = registry(theirs, more=more)
    only = ["architecture=theirs", "constraint=trained"]
    work, _ = run(tmp_path, text, only=only)
    (itself,) = results(work)
    assert [one for one in itself.flags if one.startswith("budget")] == ([flag] if flag else [])


def test_the_report_calls_them_references(theirs, tmp_path):
    work, _ = run(tmp_path, registry(theirs))
    records = work.records()
    twins, references = comparisons(records)
    assert (twins.paired, references.paired) == (True, False)
    rows = [row for row in certificate_rows(records) if row.architecture == "theirs"]
    assert {(row.same_draw, row.same_order, row.same_start) for row in rows} == {(None, None, None)}
    assert all(row.same_draw for row in certificate_rows(records) if row.architecture == "topk")
    write_html(tmp_path / "report.html", work.sweep(), records, descriptions={}, headline=[], notice=None, commands=[])
    page = (tmp_path / "report.html").read_text()
    assert "they are not twins" in page and "budget_unmatched" in page
    text = call("results", "--workdir", "work", cwd=tmp_path).out
    assert "theirs was loaded: the rows below it are references trained at its L0, not twins" in text


def test_other_weights_make_its_cells_anew_and_no_others(theirs, tmp_path):
    text = registry(theirs)
    before = opened(tmp_path, text).plan
    tensors = load_file(theirs / "sae_weights.safetensors")
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, theirs / "sae_weights.safetensors")
    after = opened(tmp_path, text).plan
    for cell in before.cells:
        same = before.train[cell.cell_id][1].key == after.train[cell.cell_id][1].key
        assert same == (not cell.measured), cell.label


def test_an_sae_that_cannot_be_read_takes_its_references_along_and_nothing_else(theirs, tmp_path):
    config = json.loads((theirs / "cfg.json").read_text())
    (theirs / "cfg.json").write_text(json.dumps(config | {"normalize_activations": "layer_norm"}))
    work, report = run(tmp_path, registry(theirs))
    assert report.exit_code == 1
    for result in results(work):
        failed = result.architecture.name == "theirs"
        assert result.status == ("failed" if failed else "done")
        assert not failed or "normalize_activations is 'layer_norm'" in result.error
        assert not failed or result.l0_target is None
    assert "L0 not measured" in call("results", "--workdir", "work", cwd=tmp_path).out
    assert call("report", "--workdir", "work", cwd=tmp_path).code == 0


def test_an_sae_without_active_latents_has_no_references(theirs, tmp_path):
    tensors = load_file(theirs / "sae_weights.safetensors")
    save_file({**tensors, "topk_threshold": torch.tensor(1e6)}, theirs / "sae_weights.safetensors")
    work, _ = run(tmp_path, registry(theirs), only=["architecture=theirs"])
    assert "collapsed" in of(results(work), "trained").flags
    assert "no active latent" in of(results(work), "untrained", 1).error


PROBLEMS = [
    (
        "{type: topk, d_sae: 16}",
        "registry.yaml:6:",
        "references have the size of the SAE, 16 latents; leave 'd_sae' out",
    ),
    (
        "{type: topk, expansion: 2}",
        "registry.yaml:6:",
        "references have the size of the SAE, 16 latents; leave 'expansion' out",
    ),
    ("{type: topkk}", "registry.yaml:6:", "no architecture that is trained is called 'topkk'; did you mean 'topk'?"),
    ("{type: pretrained}", "registry.yaml:6:", "no architecture that is trained is called 'pretrained'"),
    ("{}", "registry.yaml:6:", "the key `type` is missing; installed: batch_topk"),
    ("{type: topk, k: 3}", "registry.yaml:6:", "unknown key 'k'; allowed: aux_coefficient, aux_k, type"),
    ("{type: topk, aux_coefficient: -1}", "registry.yaml:6:", "aux_coefficient: input should be greater than or equal"),
]


@pytest.mark.parametrize(("twin", "place", "message"), PROBLEMS, ids=[problem[0] for problem in PROBLEMS])
def test_a_twin_that_cannot_be_is_refused_with_its_place(theirs, twin, place, message):
    with pytest.raises(InputError) as caught:
        load(registry(theirs, twin=twin))
    assert str(caught.value).startswith(place)
    assert f"architectures[1].twin: {message}" in str(caught.value)


def test_what_cannot_be_loaded_is_refused_before_anything_runs(theirs, tmp_path):
    cases = [
        (registry(theirs / "missing"), "no file"),
        (registry(theirs, more=", format: sparsify"), r"expected a folder with one of sae.safetensors \(sparsify\)"),
        (changed(("d_in: 8", "d_in: 9"), text=registry(theirs)), "reads 8 numbers, but activations of toy has 9"),
        (changed(("  - {type: trained}\n", ""), text=registry(theirs)), "such as `trained`, is missing"),
        (registry(theirs, more=", d_sae: 16"), "unknown key 'd_sae'"),
        (registry(theirs).replace(f", twin: {TWIN}", ""), "the key 'twin' is missing"),
    ]
    for text, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "registry.yaml:6:" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "saelens_training_batchtopk",
        "dictionary_learning_topk",
        "dictionary_learning_mid_run",
        "dictionary_learning_jumprelu",
        "gemma-scope-2b-pt-res/layer_12/width_65k/average_l0_71",
        "sparsify_free/layers.5",
    ],
)
def test_sizes_are_read_from_headers(name):
    assert checkpoint_sizes(PEERS / name) == (8, 16)


def test_the_files_of_a_checkpoint():
    run = PEERS / "dictionary_learning_topk"
    assert set(checkpoint_files(run)) == {"ae.pt", "config.json"}
    assert checkpoint_files(run / "checkpoints" / "ae_20.pt")["../config.json"].is_file()
    assert set(checkpoint_files(PEERS / "sparsify_free" / "layers.5")) == {
        "sae.safetensors", "cfg.json", "../config.json",
    }  # fmt: skip


def test_the_schema_names_what_a_twin_may_be():
    schema = registry_schema(built_in())["$defs"]["PretrainedConfig"]
    assert "twin" in schema["required"] and "d_sae" not in schema["properties"]
    choices = {choice["$ref"].rpartition("/")[2] for choice in schema["properties"]["twin"]["anyOf"]}
    assert {"TopKConfig", "ReLUConfig"} <= choices and "PretrainedConfig" not in choices
