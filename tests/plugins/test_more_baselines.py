"""The baselines beyond the paper's: what is random in each, and that the rest is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from saebench_plugins.constraints.random_codes import RandomPattern, _hash, _table
from safetensors.torch import load_file

from saebench_core import api
from saebench_core.geometry import drawn_order, project_on_band
from saebench_core.kernels import PreActivations
from saebench_core.randomness import tensor_sha256
from saebench_core.rules import JumpReLU
from tests.helpers.registries import built_in
from tests.helpers.training import (
    D_SAE,
    MemoryReader,
    activations,
    bits,
    build,
    make_trainee,
    normal,
    same_bits,
    settings as training_settings,
    stream,
)

unit = torch.nn.functional.normalize
X = activations(3000)


def trained(constraint, architecture="topk", steps=50, each=None, **keys):
    training = training_settings(steps, lr=0.01)
    trainee = make_trainee(architecture, constraint, X, training=training, **keys)
    for number, batch in enumerate(stream(X, training).batches()):
        trainee.step(batch, number)
        if each is not None:
            each(trainee)
    return trainee


def cosines(trainee):
    return torch.cosine_similarity(trainee.sae.w_dec.detach().double(), trainee.start.w_dec.double(), dim=1)


@pytest.fixture(scope="module")
def twin():
    return trained("trained").sae.folded(1.0)


@settings(deadline=None, max_examples=60)
@given(st.floats(-0.9, 0.8), st.floats(0.05, 0.3), st.integers(2, 8), st.integers(0, 10**6))
def test_a_band_is_kept_from_both_sides_and_rows_inside_keep_their_bits(least, width, d, seed):
    most = min(0.99, least + width)
    anchors = unit(normal(60, d, seed=seed), dim=1)
    rows = 2 * unit(anchors + torch.linspace(-3, 3, 60)[:, None] * normal(60, d, seed=seed + 1), dim=1)
    before = torch.cosine_similarity(rows.double(), anchors.double(), dim=1)
    out = rows.clone()
    project_on_band(out, anchors, least, most)
    after = torch.cosine_similarity(out.double(), anchors.double(), dim=1)
    assert float(after.min()) >= least - 1e-6
    assert float(after.max()) <= most + 1e-6
    inside = (before > least + 1e-6) & (before < most - 1e-6)
    assert torch.equal(out[inside], rows[inside])
    torch.testing.assert_close(after[before > most + 1e-6], torch.full_like(after[before > most + 1e-6], most),
                               rtol=0, atol=1e-6)  # fmt: skip
    torch.testing.assert_close(out.norm(dim=1), rows.norm(dim=1), rtol=1e-5, atol=0)


def test_a_row_at_its_anchor_leaves_it_along_one_axis():
    anchors = unit(normal(20, 5), dim=1)
    first, second = anchors.clone(), anchors.clone()
    project_on_band(first, anchors, 0.2, 0.6)
    project_on_band(second, anchors, 0.2, 0.6)
    assert torch.equal(first, second)
    torch.testing.assert_close((first * anchors).sum(1), torch.full((20,), 0.6))


def test_the_order_of_a_draw_is_a_permutation_and_tells_nothing_of_directions():
    firsts = torch.bincount(torch.tensor([int(drawn_order(normal(4, 6, seed=n))[0]) for n in range(4000)]))
    assert float((firsts / 4000 - 0.25).abs().max()) < 0.035, "five standard errors"
    rows = normal(4000, 6)
    order = drawn_order(rows)
    assert torch.equal(order.sort().values, torch.arange(4000))
    assert torch.equal(order, drawn_order(rows.clone()))
    assert not torch.equal(order, drawn_order(normal(4000, 6, seed=1)))
    assert float(rows[order[:2000]].mean(0).abs().max()) < 5 * (0.5 / 2000) ** 0.5, "halves point nowhere"
    neighbours = torch.cosine_similarity(rows[order], rows[order.roll(1)], dim=1)
    assert abs(float(neighbours.mean())) < 5 * (1 / 6 / 4000) ** 0.5


def test_angular_band_holds_after_every_step():
    seen = []
    trainee = trained("angular_band", each=lambda now: seen.append(cosines(now)), least=0.5, most=0.8)
    assert min(float(step.min()) for step in seen) >= 0.5 - 1e-6
    assert max(float(step.max()) for step in seen) <= 0.8 + 1e-6
    facts = trainee.constraint.certify(trainee.sae, trainee.start)
    assert facts["decoder_cosine_max"] == pytest.approx(float(cosines(trainee).max()), abs=1e-6)
    assert 0 < facts["at_bound_share"] <= 1
    with pytest.raises(ValidationError, match="must be below most"):
        build("constraint", "angular_band", least=0.8, most=0.5)
    with pytest.raises(ValidationError, match="holds nothing"):
        build("constraint", "angular_band", least=-1.0, most=1.0)


def test_fixed_norm_holds_random_norms_while_directions_learn():
    trainee = trained("fixed_norm", spread=0.5)
    norms = trainee.sae.w_dec.detach().norm(dim=1)
    expected = torch.special.ndtri((torch.arange(D_SAE, dtype=torch.float64) + 0.5) / D_SAE).mul(0.5).exp()
    torch.testing.assert_close(norms.sort().values.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(norms.argsort(), trainee.start.order)
    facts = trainee.constraint.certify(trainee.sae, trainee.start)["fixed_norms"]
    assert facts["largest_miss"] < 1e-5
    assert (facts["min"], facts["max"]) == pytest.approx((float(norms.min()), float(norms.max())))
    doubled = trainee.sae.folded(1.0)
    doubled.w_dec.mul_(2)
    assert trainee.constraint.certify(doubled, trainee.start)["fixed_norms"]["largest_miss"] > 0.9
    assert float(cosines(trainee).mean()) < 0.99
    one = trained("fixed_norm", spread=0.0).sae.w_dec.detach().norm(dim=1)
    torch.testing.assert_close(one, torch.ones(D_SAE))


@pytest.mark.parametrize("part", ["decoder", "encoder", "both"])
@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu"])
def test_partial_freeze_keeps_the_bits_of_its_latents_and_of_no_other(architecture, part):
    trainee = trained("partial_freeze", architecture, fraction=0.25, part=part)
    chosen = torch.zeros(D_SAE, dtype=torch.bool)
    chosen[trainee.start.order[: D_SAE // 4]] = True
    sae, start = trainee.sae, trainee.start
    for name, now, before in (("decoder", sae.w_dec, start.w_dec), ("encoder", sae.w_enc.T, start.w_enc.T)):
        kept = (now.detach() == before).all(1)
        assert torch.equal(kept, chosen if part in (name, "both") else torch.zeros_like(chosen))
    bias = sae.encoder_bias.detach()[chosen]
    assert bool((bias == 0).all()) == (part != "decoder" and architecture != "relu")
    facts = trainee.constraint.certify(sae.folded(2.0), start)["frozen_latents"]
    assert facts.pop("count") == D_SAE // 4
    assert set(facts) == {"decoder": {"W_dec"}, "encoder": {"W_enc"}, "both": {"W_dec", "W_enc"}}[part]
    assert all(pair["before"] == pair["after"] for pair in facts.values())
    with torch.no_grad():
        sae.w_dec.neg_(), sae.w_enc.neg_()
    broken = trainee.constraint.certify(sae, start)["frozen_latents"]
    assert any(pair["before"] != pair["after"] for name, pair in broken.items() if name != "count")


def test_some_latents_are_frozen_and_some_are_not():
    with pytest.raises(ValidationError, match="less than 1"):
        build("constraint", "partial_freeze", fraction=1.0)
    for fraction, count in ((1e-6, 1), (1 - 1e-6, D_SAE - 1)):
        trainee = make_trainee("topk", "partial_freeze", X, fraction=fraction)
        assert trainee.constraint.certify(trainee.sae, trainee.start)["frozen_latents"]["count"] == count


def test_what_the_encoder_reads_is_fixed_where_its_vectors_are():
    assert trained("partial_freeze", part="both").sae.centring == "fixed"
    assert trained("partial_freeze", part="decoder").sae.centring == "b_dec"


def finished(constraint, twin, architecture="topk", **keys):
    trainee = make_trainee(architecture, constraint, X, **keys)
    before = bits(trainee)
    trainee.step(X[:64], 0)
    assert same_bits(before, bits(trainee))
    sae = trainee.constraint.finish(trainee.sae.folded(1.0), twin)
    return trainee, trainee.constraint.calibrate(sae, twin, MemoryReader(X))


def test_permuted_decoder_moves_every_row_and_nothing_else(twin):
    trainee, sae = finished("permuted_decoder", twin)
    assert not bool((sae.w_dec == twin.w_dec).all(1).any()), "a cycle leaves no row in its place"
    assert {tuple(row) for row in sae.w_dec.tolist()} == {tuple(row) for row in twin.w_dec.tolist()}
    assert torch.equal(sae.encode(X).to_dense(), twin.encode(X).to_dense())
    facts = trainee.constraint.certify(sae, trainee.start)
    assert facts == {"unpermuted_w_dec_sha256": tensor_sha256(twin.w_dec)}
    other = finished("permuted_decoder", twin, seed=1)[1]
    assert not torch.equal(other.w_dec, sae.w_dec)


def frequencies(sae, x=X):
    codes = sae.encode(x)
    return torch.bincount(codes.selection.cols[codes.values != 0], minlength=sae.d_sae)


def test_untrained_matched_fires_each_latent_as_often_as_the_twins(twin):
    trainee, sae = finished("untrained_matched", twin)
    assert isinstance(sae.rule, JumpReLU)
    assert torch.equal(sae.w_dec, trainee.start.w_dec)
    wanted, found = frequencies(twin), frequencies(sae)
    reachable = (sae.pre_activations(X) > 0).sum(0)
    assert torch.equal(found, torch.minimum(wanted, reachable))
    assert int((wanted <= reachable).sum()) > D_SAE // 2


def test_as_many_rows_are_matched_on_as_the_key_says(twin):
    for rows, wanted in ((10, 10), (2500, 2500), (10**6, 3000)):
        trainee = make_trainee("topk", "untrained_matched", X, rows=rows)
        batches = list(trainee.constraint._batches(MemoryReader(X)))
        assert sum(len(batch) for batch in batches) == wanted


def test_random_codes_keep_frequencies_strengths_and_l0_and_ignore_the_input(twin):
    _, sae = finished("random_codes", twin)
    assert torch.equal(sae.w_dec, twin.w_dec)
    x = activations(60_000, seed=5)
    codes, wanted = sae.encode(x), twin.encode(X)
    assert float(codes.l0().mean()) == pytest.approx(float(wanted.l0().mean()), rel=0.02)
    share = torch.bincount(codes.selection.cols, minlength=D_SAE) / x.shape[0]
    torch.testing.assert_close(share, frequencies(twin) / X.shape[0], rtol=0, atol=0.01)
    dense = wanted.to_dense()
    strengths = dense.sum(0) / (dense != 0).sum(0).clamp(min=1)
    fired = codes.selection.cols.unique()
    torch.testing.assert_close(sae.tensors["magnitude"][fired], strengths[fired])
    other = finished("random_codes", twin, seed=1)[1].encode(x)
    assert not torch.equal(other.to_dense()[:100], codes.to_dense()[:100]), "each seed has its own patterns"
    correlation = torch.corrcoef(torch.stack([codes.to_dense()[:, fired[0]], twin.encode(x).to_dense()[:, fired[0]]]))
    assert abs(float(correlation[0, 1])) < 0.02


def test_random_codes_of_a_row_do_not_depend_on_its_batch(twin):
    _, sae = finished("random_codes", twin)
    whole = sae.encode(X).to_dense()
    order = torch.randperm(X.shape[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(X[order]).to_dense(), whole[order])
    assert torch.equal(sae.encode(torch.cat([X[:3], X[:3]])).to_dense(), whole[[0, 1, 2, 0, 1, 2]])
    zeros = torch.zeros(1, 5)
    assert torch.equal(_hash(zeros, 3), _hash(-zeros, 3)), "equal rows, whatever the sign of their zeros"
    assert torch.equal(torch.cat([sae.encode(part).to_dense() for part in X.split(17)]), whole)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 9), st.integers(1, 60), st.integers(0, 1000))
def test_a_table_of_patterns_has_every_latent_as_often_as_it_should(log2, d_sae, seed):
    patterns, frequency = 1 << log2, torch.rand(d_sae, generator=torch.Generator().manual_seed(seed))
    latents, bounds = _table(patterns, seed, frequency.numpy().tobytes())
    assert bounds[-1] == latents.numel()
    counts = torch.bincount(latents, minlength=d_sae).double() / patterns
    assert float((counts - frequency.double()).abs().max()) <= 1 / patterns
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert len(set(latents[first:last].tolist())) == last - first, "no latent twice in a pattern"


def test_rows_are_spread_over_the_patterns():
    rule = RandomPattern(256)
    x = normal(20_000, 8)
    hit = torch.bincount(_hash(x, 7) % 256, minlength=256)
    assert float(hit.min()) > 20_000 / 256 * 0.5
    assert float(hit.max()) < 20_000 / 256 * 1.6
    pre = PreActivations(x, normal(8, 5), torch.zeros(5))
    tensors = {
        "frequency": torch.tensor([1.0, 0.5, 0.0, 0.1, 0.0]),
        "magnitude": torch.ones(5),
        "salt": torch.tensor(3.0),
    }
    selected = rule.select_inference(pre, tensors)
    assert bool((selected.selection.rows.diff() >= 0).all())
    assert torch.bincount(selected.selection.cols, minlength=5)[[0, 2, 4]].tolist() == [20_000, 0, 0]


@pytest.mark.parametrize("name", ["permuted_decoder", "random_codes", "untrained_matched"])
def test_without_a_twin_there_is_nothing_to_start_from(name):
    trainee = make_trainee("topk", name, X)
    sae = trainee.sae.folded(1.0)
    with pytest.raises(Exception, match="none was given"):
        trainee.constraint.calibrate(trainee.constraint.finish(sae, None), None, MemoryReader(X))


def test_what_they_randomise():
    wanted = {
        "permuted_decoder": {"pairing"},
        "random_codes": {"codes"},
        "untrained_matched": {"encoder", "decoder"},
        "angular_band": set(),
        "fixed_norm": set(),
        "partial_freeze": set(),
    }
    assert {name: set(build("constraint", name).randomises) for name in wanted} == wanted


def test_the_preset_runs_all_constraints_that_are_installed(tmp_path):
    opened = api.open_registry("preset:more-baselines", tmp_path)
    used = {cell.constraint.type for cell in opened.registry.cells}
    references = {"matching_pursuit", "fitted_dictionary"}
    assert used == set(built_in().names("constraint")) - references


def test_a_short_run_of_the_preset_is_whole_and_scored(tmp_path):
    short = ["training.steps=60", "training.batch_size=256", "seeds=[0]", "training.calibration_rows=4096",
             "training.evaluation_rows=4096", "metrics.reconstruction.rows=4096"]  # fmt: skip
    opened = api.open_registry("preset:more-baselines", tmp_path, overrides=short)
    report = api.run_opened(opened, track=False)
    cells = {(r.result.architecture.type, r.result.constraint.name): r.result for r in report.records}
    assert {cell.status for cell in cells.values()} == {"done"}, [cell.error for cell in cells.values()]
    for cell in cells.values():
        published = load_file(tmp_path / cell.artifacts["sae"] / "sae_weights.safetensors")
        for name in {"W_enc", "W_dec"} & set(cell.certificate["frozen"]):
            assert cell.certificate["frozen"][name]["after"] == tensor_sha256(published[name]), "of what is in the file"
    for architecture in ("topk", "batch_topk"):
        twin = load_file(tmp_path / cells[architecture, "trained"].artifacts["sae"] / "sae_weights.safetensors")
        for name in ("permuted_decoder", "random_codes", "untrained_matched"):
            assert cells[architecture, name].certificate["twin"]["W_dec"] == tensor_sha256(twin["W_dec"])
        free, permuted, codes, matched = (
            cells[architecture, name] for name in ("trained", "permuted_decoder", "random_codes", "untrained_matched")
        )
        score = "reconstruction/l0"
        for cell in (permuted, codes, matched):
            assert set(cell.certificate["twin"]) >= {"W_enc", "W_dec"}
            assert cell.metrics[score].value == pytest.approx(free.metrics[score].value, rel=0.03)
        score = "feature_recovery/mean"
        assert permuted.metrics[score].value == pytest.approx(free.metrics[score].value, abs=1e-6)
        assert codes.metrics[score].value == pytest.approx(free.metrics[score].value, abs=1e-6)
        assert codes.metrics["reconstruction/explained_variance"].value < 0.05
        assert permuted.metrics["reconstruction/explained_variance"].value < 0.05
