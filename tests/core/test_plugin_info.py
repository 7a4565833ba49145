"""`saebench plugins info`: all that is known of a plugin, for people and for programs."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from saebench_core.catalog import make_catalog
from saebench_core.catalog.describing import describe, scores_of
from saebench_core.errors import InputError
from saebench_core.interfaces.entry import Kind
from tests.helpers.distributions import architecture, metric
from tests.helpers.registries import built_in, call

KEYS = {
    "kind", "name", "summary", "source", "distribution", "version", "origin", "depends", "notices", "config", "nested",
    "constraint", "metric", "unknown",
}  # fmt: skip
PLUGINS = [(plugin.kind, plugin.name) for plugin in built_in()]


def info(*words, cwd):
    """Return the document; NaN and infinity are no JSON."""

    def refuse(name):
        raise AssertionError(f"{name} in JSON")

    outcome = call("plugins", "info", *words, "--json", cwd=cwd)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out, parse_constant=refuse)
    assert set(document) == {"schema", "plugin"}
    assert document["schema"] == 1
    return document["plugin"]


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_every_built_in_can_be_described(kind, name):
    plugin = built_in().get(kind, name)
    document = describe(plugin)
    assert set(document) == KEYS
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["unknown"] is None
    assert document["origin"] == f"saebench-core:{kind}-{name.replace('_', '-')}"
    assert {field["key"] for field in document["config"]} == set(plugin.spec.config.model_fields) - {"type"}
    assert all(field["description"] and field["type"] for field in document["config"])
    assert (document["constraint"] is not None) is (kind == "constraint")
    assert (document["metric"] is not None) is (kind == "metric")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_built_in_can_be_shown(kind, tmp_path):
    for plugin in built_in().of_kind(kind):
        outcome = call("plugins", "info", plugin.name, "--kind", kind, cwd=tmp_path)
        assert (outcome.code, outcome.err) == (0, "")
        lines = outcome.out.splitlines()
        assert lines[0] == f"{kind} {plugin.name}: {plugin.spec.summary}"
        assert f"from: saebench-core {plugin.version} ({plugin.origin})" in lines
        for key, field in plugin.spec.config.model_fields.items():
            if key != "type":
                assert [line for line in lines if line.startswith(f"  {key}: ")]
                assert f"      {field.description}" in lines
        assert list(tmp_path.iterdir()) == []


def test_keys_have_type_default_and_meaning(tmp_path):
    fields = {field["key"]: field for field in info("soft_frozen_decoder", cwd=tmp_path)["config"]}
    assert fields["tau"] == {
        "key": "tau",
        "type": "number >= -1 and <= 1",
        "required": False,
        "default": 0.8,
        "description": "Smallest cosine of a direction with its start.",
    }
    assert fields["init"]["type"] == "iso or cov or kaiming or truth"
    twin = {field["key"]: field for field in info("pretrained", cwd=tmp_path)["config"]}["twin"]
    assert (twin["type"], twin["required"], twin["default"]) == ("mapping", True, None)


def test_keys_inside_keys_are_described(tmp_path):
    nested = info("synthetic", cwd=tmp_path)["nested"]
    assert [(part["key"], part["type"]) for part in nested] == [
        ("probability", "constant"), ("probability", "log_uniform"), ("probability", "zipf"), ("probability", "linear"),
        ("correlation", "low_rank"), ("correlation", "full"), ("hierarchy", None),
        ("magnitude", "rectified_normal"), ("orthogonalise", None),
    ]  # fmt: skip
    assert [field["key"] for field in nested[1]["config"]] == ["low", "high"]
    lines = call("plugins", "info", "synthetic", cwd=tmp_path).out
    assert "probability: {type: constant}  Every feature fires equally often." in lines
    assert "\n  p: number > 0 and < 1; required\n      Probability to fire in a row.\n" in lines


def test_a_constraint_says_what_it_randomises_and_needs(tmp_path):
    assert info("frozen_decoder", cwd=tmp_path)["constraint"] == {
        "randomises": ["decoder"], "needs": None, "trains": True,
    }  # fmt: skip
    assert info("permuted_decoder", cwd=tmp_path)["constraint"] == {
        "randomises": ["pairing"], "needs": "trained", "trains": False,
    }  # fmt: skip
    lines = call("plugins", "info", "permuted_decoder", cwd=tmp_path).out
    assert "holds random: pairing\nstarts from a twin: trained\nis trained: no\n" in lines
    assert "holds random: nothing\nstarts from a twin: none\nis trained: yes\n" in call(
        "plugins", "info", "trained", cwd=tmp_path
    ).out  # fmt: skip


def test_a_metric_says_what_its_scores_mean(tmp_path):
    scores = info("reconstruction", cwd=tmp_path)["metric"]["scores"]
    declared = scores_of(built_in().get("metric", "reconstruction"))
    assert list(scores) == list(declared)
    assert scores["mse"] == {
        "direction": "lower",
        "unit": "squared activation",
        "low": 0.0,
        "high": None,
        "reads": "both",
        "formula": "mean over rows of ||x - x_hat||^2",
        "source": "Sanity Checks for SAEs, eq. 5",
        "headline": False,
    }
    lines = call("plugins", "info", "reconstruction", cwd=tmp_path).out
    assert "  reconstruction/mse: lower is better, [0, inf), squared activation, reads both\n" in lines
    assert "  reconstruction/l0 *: no direction, [0, inf), latents, reads encoder\n" in lines


def test_a_strangers_plugin_with_a_notice(tmp_path, site):
    site.add("old-dist", {"info_old": architecture("mine")}, version="0.3", requires=["saebench-core<0.1"])
    document = info("mine", cwd=tmp_path)
    assert (document["distribution"], document["version"], document["origin"]) == ("old-dist", "0.3", "old-dist:plugin")
    (notice,) = document["notices"]
    assert notice.startswith("was made for saebench-core<0.1")
    assert f"NOTICE: {notice}\n" in call("plugins", "info", "mine", cwd=tmp_path).out


UNKNOWN = {
    "needs a key": (
        metric("mine").replace('"mine"\n', '"mine"\n    tasks: list[str]\n', 1),
        "tasks",
    ),
    "raises": (metric("mine").replace('return {"value"', 'raise KeyError("oops")\n        return {"value"'), "oops"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_a_plugin_cannot_say_is_told_with_the_reason(tmp_path, site, case):
    source, reason = UNKNOWN[case]
    site.add("my-dist", {f"info_unknown_{list(UNKNOWN).index(case)}": source})
    document = info("mine", cwd=tmp_path)
    assert document["metric"] is None
    assert reason in document["unknown"]
    assert "\n" not in document["unknown"]
    lines = call("plugins", "info", "mine", cwd=tmp_path).out
    assert "what it says of itself is not known without keys: " in lines


def test_bounds_and_defaults_that_are_infinite_are_json(tmp_path, site):
    source = metric("mine").replace("0.0, 1.0", 'float("-inf"), float("inf")')
    source = source.replace('"mine"\n', '"mine"\n    limit: float = float("inf")\n', 1)
    site.add("my-dist", {"info_infinite": source})
    document = info("mine", cwd=tmp_path)
    score = document["metric"]["scores"]["value"]
    assert (score["low"], score["high"]) == (None, None)
    assert document["config"][-1]["default"] == "inf"


def test_a_name_of_two_kinds_needs_the_kind(tmp_path, site):
    site.add("my-dist", {"info_two_kinds": metric("topk")})
    refused = call("plugins", "info", "topk", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "'topk' is the name of plugins of kind architecture and metric; say which with --kind\n"
    assert info("topk", "--kind", "metric", cwd=tmp_path)["distribution"] == "my-dist"
    assert info("topk", "--kind", "architecture", cwd=tmp_path)["distribution"] == "saebench-core"
    with pytest.raises(InputError, match="say which with --kind"):
        make_catalog().find("topk")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["batch_topkk"], "no plugin is called 'batch_topkk'; did you mean 'batch_topk'?; see: saebench plugins list"),
        (["batch-topk"], "did you mean 'batch_topk'?"),
        (["frozen", "--kind", "constraint"], "no constraint is called 'frozen'"),
        (["topk", "--kind", "metric"], "no metric is called 'topk'"),
        (["topk", "--kind", "metrics"], "'metrics' is no kind of plugin; did you mean 'metric'?; kinds: backbone, "),
        ([], "Missing argument"),
    ],
)
def test_what_is_unknown_gets_the_nearest_name(tmp_path, words, told):
    outcome = call("plugins", "info", *words, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err
    assert "Traceback" not in outcome.err


def test_a_plugin_that_failed_to_load_is_named(tmp_path, site):
    site.add("broken-dist", {"info_broken": "import no_such_module_anywhere\n"})
    outcome = call("plugins", "info", "mine", cwd=tmp_path)
    assert outcome.code == 2
    assert "failed to load: broken-dist:plugin: ModuleNotFoundError" in outcome.err
