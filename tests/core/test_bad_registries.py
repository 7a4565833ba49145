"""Every kind of bad registry is refused with the place of the fault: ``@`` in a case marks where it stands."""

from __future__ import annotations

import time

import pytest

from saebench_core.errors import InputError
from saebench_core.registry import Document, Registry, load_registry
from tests.helpers.registries import TINY, built_in, changed

CASES = {
    "unknown key": [("seeds: [0, 1]", "seeds: [0, 1]\n@metrcs: []"), "unknown key 'metrcs'; did you mean 'metrics'?"],
    "unknown key of an entry": [("d_sae: 16", "@d_sea: 16"), "unknown key 'd_sea'; did you mean 'd_sae'?"],
    "unknown key of training": [
        ("batch_size: 32", "@batchsize: 32"),
        "training.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?",
    ],
    "unknown key of a backbone's training": [
        ("d_in: 8", "d_in: 8, training: {@stps: 3, batch_size: 4}"),
        "did you mean 'steps'?",
    ],
    "unknown nested key": [("p: 0.1", "p: 0.1, @q: 0.1"), "unknown key 'q'; allowed: p, type"],
    "unknown key of exclude": [
        ("seeds: [0, 1]", "seeds: [0, 1]\nexclude:\n  - {@constrant: trained}"),
        "unknown key 'constrant'; did you mean 'constraint'?",
    ],
    "sparsity outside l0": [("d_sae: 16", "d_sae: 16, @k: 3"), "unknown key 'k'"],
    "key given twice": [("d_in: 8", "d_in: 8, @d_in: 9"), "the key 'd_in' is given twice"],
    "top-level key given twice": [("seeds: [0, 1]", "seeds: [0, 1]\n@seeds: [2]"), "the key 'seeds' is given twice"],
    "key that is no text": [("seeds: [0, 1]", "seeds: [0, 1]\n@3: 4"), "the key 3 is no text"],
    "wrong type": [("d_in: 8", "@d_in: eight"), "should be a valid integer, unable to parse"],
    "text for a list": [("seeds: [0, 1]", "@seeds: 0"), "seeds: input should be a valid tuple (given: 0)"],
    "entry that is no mapping": [("{type: topk, d_sae: 16}", "@topk"), "(given: 'topk')"],
    "number for a name": [("name: tiny", "@name: 3"), "name: input should be a valid string (given: 3)"],
    "empty axis": [("l0: [3]", "@l0: []"), "l0: tuple should have at least 1 item"],
    "empty list": [
        ("metrics:\n  - {type: reconstruction, rows: 64}\n  - {type: feature_recovery}", "@metrics: []"),
        "metrics: tuple should have at least 1 item",
    ],
    "unknown plugin": [
        ("{type: topk,", "{@type: topkk,"),
        "no architecture is called 'topkk'; did you mean 'topk'?; installed: batch_topk",
    ],
    "plugin of another kind": [("{type: topk,", "{@type: trained,"), "no architecture is called 'trained'"],
    "missing type": [("{type: topk, d_sae: 16}", "@{d_sae: 16}"), "the key `type` is missing; installed: batch_topk"],
    "missing training": [
        ("training: {steps: 20, batch_size: 32, calibration_rows: 64, evaluation_rows: 64}\n", ""),
        "the key 'training' is missing",
    ],
    "steps and tokens": [
        ("training: {steps: 20", "@training: {tokens: 640, steps: 20"),
        "training: give exactly one of `steps` and `tokens`",
    ],
    "neither steps nor tokens": [("training: {steps: 20, ", "@training: {"), "give exactly one of `steps`"],
    "warm-up as long as training": [
        ("training: {steps: 20", "@training: {warmup_steps: 20, steps: 20"),
        "warmup_steps 20 must be below the 20 steps",
    ],
    "two sizes": [("{type: topk, d_sae: 16}", "@{type: topk, d_sae: 16, expansion: 2}"), "give exactly one of `d_sae`"],
    "l0 above d_sae": [("l0: [3]", "l0: [3, @17]"), "l0 17 is more than the 16 latents of topk on toy"],
    "l0 that an architecture cannot have": [("l0: [3]", "l0: [@3.5]"), "l0 3.5 is not one; try 4"],
    "l0 of zero": [("l0: [3]", "l0: [@0]"), "input should be greater than 0 (given: 0)"],
    "a backbone's own l0 above d_sae": [("d_in: 8", "d_in: 8, l0: [@99]"), "l0 99 is more than the 16 latents"],
    "tau outside": [("tau: 0.8", "@tau: 1.8"), "constraints[2].tau: input should be less than or equal to 1 (given: 1"],
    "site that is none": [
        ("d_in: 8", "d_in: 8, sites: [@activation]"),
        "no site 'activation'; did you mean 'activations'?; sites: activations",
    ],
    "only without backbone": [
        ("d_sae: 16", "d_sae: 16, only: [toy, @toyy]"),
        "architectures[0].only: no backbone 'toyy'; did you mean 'toy'?; there are: synthetic, toy",
    ],
    "entry nobody uses": [
        ("  - {type: trained}\n", "  - @{type: trained}\n"),
        "constraints[0]: no cell uses 'trained'",
        "exclude:\n  - {constraint: trained}\n",
    ],
    "metric nobody uses": [
        (
            "architectures:",
            "  - {name: off, type: synthetic, d_in: 9}\narchitectures:",
        ),
        "metrics[1]: no cell uses 'feature_recovery'",
        "exclude:\n  - {backbone: off}\n",
        ("  - {type: feature_recovery}", "  - @{type: feature_recovery, only: [off]}"),
    ],
    "exclude that matches nothing": [
        ("seeds: [0, 1]", "seeds: [0, 1]\nexclude:\n  - @{constraint: frozen_encoder}"),
        "exclude[0]: matches no cell",
    ],
    "two equal entries": [
        ("  - {type: trained}", "  - {type: trained}\n  - @{type: trained}"),
        "constraints[1]: a second entry called 'trained'",
    ],
    "two equal entries of two names": [
        ("  - {type: trained}", "  - {type: trained}\n  - @{name: b, type: trained}"),
        "constraints[1]: 'b' gives the same cells as 'trained'",
    ],
    "one name for two entries": [
        ("  - {type: frozen_decoder}", "  - @{name: trained, type: frozen_decoder}"),
        "constraints[1]: a second entry called 'trained'",
    ],
    "a seed twice": [("seeds: [0, 1]", "seeds: [0, 1, @0]"), "seeds: 0 is given twice"],
    "an l0 twice": [("l0: [3]", "l0: [3, @3.0]"), "l0: 3.0 is given twice"],
    "infinite number": [("batch_size: 32", "batch_size: 32, @lr: .inf"), "training.lr: expected a finite number"],
    "number beyond floats": [("batch_size: 32", "batch_size: 32, @lr: 1e999"), "training.lr: expected a finite number"],
    "no number": [("tau: 0.8", "@tau: .nan"), "constraints[2].tau: expected a finite number, got nan"],
    "syntax": [("seeds: [0, 1]", "seeds: [0, 1\ntraining@: x"), "not valid YAML: expected ',' or ']', but got ':'"],
    "tab": [("seeds: [0, 1]", "@\tseeds: [0, 1]"), "not valid YAML: found character '\\t'"],
    "unknown alias": [("seeds: [0, 1]", "seeds: @*nobody"), "found undefined alias 'nobody'"],
    "control character": [("name: tiny", "name: tiny@\x07"), "not valid YAML: special characters are not allowed"],
    "python tag": [
        ("name: tiny", "@name: !!python/object/apply:os.system [exit]"),
        "the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed",
    ],
    "own tag": [("p: 0.1", "@p: !foo 0.1"), "the tag !foo is not allowed"],
    "set": [("seeds: [0, 1]", "@seeds: !!set {0}"), "the tag !!set is not allowed"],
    "two documents": [("seeds: [0, 1]", "seeds: [0, 1]\n@---\nname: other"), "but found another document"],
    "alias of itself": [("batch_size: 32", "batch_size: 32, betas: @&b [*b]"), "training.betas[0]: input should be"],
}  # fmt: skip


def refusal(text):
    with pytest.raises(InputError) as caught:
        load_registry(Document("bad.yaml", text), built_in())
    return list(caught.value.problems)


@pytest.mark.parametrize("case", CASES)
def test_place_and_words(case):
    change, words, *more = CASES[case]
    extra = "".join(part for part in more if isinstance(part, str))
    pairs = [change, *(part for part in more if not isinstance(part, str))]
    text = changed(*pairs) + extra
    before, mark, after = text.partition("@")
    found = refusal(before + after)
    hit = [problem for problem in found if words in problem]
    assert len(hit) == 1, found
    if mark:
        place = f"bad.yaml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        assert hit[0].startswith(f"{place} "), f"{hit[0]} should be at {place}"
    assert "\n" not in hit[0]


def test_all_problems_are_told_at_once():
    text = changed(("d_sae: 16", "d_sea: 16"), ("tau: 0.8", "tau: 1.8"), ("l0: [3]", "l0: []"))
    found = refusal(text)
    assert len(found) == 3
    assert len(set(found)) == 3
    text = changed(("l0: [3]", "l0: [17, 18]"))
    assert len(refusal(text)) == 2


def test_an_alias_bomb_is_refused_quickly():
    levels = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 10)]
    began = time.monotonic()
    assert "once aliases are followed" in refusal(TINY + "\n".join(levels))[0]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("depth", [60, 400])
def test_deep_nesting_is_refused(depth):
    assert refusal(changed(("seeds: [0, 1]", f"seeds: {'[' * depth}{']' * depth}")))


@pytest.mark.parametrize("text", ["", "- a\n", "3\n", "just words\n", "# a comment\n", "null\n"])
def test_a_document_that_is_no_mapping(text):
    assert refusal(text) == ["bad.yaml:1:1 expected a mapping with keys such as `name` and `backbones`"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file; `saebench init` writes a registry to start from"),
        ("directory", "cannot be read as text"),
        ("binary", "cannot be read as text"),
        ("huge", "larger than 1048576 bytes"),
    ],
)
def test_files_that_are_no_registry(tmp_path, kind, words):
    path = tmp_path / "registry.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(bytes(range(256)))
    elif kind == "huge":
        path.write_text(TINY + "# " + "x" * (1 << 20))
    with pytest.raises(InputError) as caught:
        Registry.from_file(path, catalog=built_in())
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
