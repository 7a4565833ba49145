"""Absorption on a world of parents and children, with SAEs that absorb by construction."""

from __future__ import annotations

import pytest
import torch
from saebench_plugins.metrics.feature_absorption import FeatureAbsorption, FeatureAbsorptionConfig

from saebench_core.errors import PluginError
from saebench_core.interfaces.metric import NotApplicable, Subject
from saebench_core.rules import ReLU
from saebench_core.sae import SparseAutoencoder
from tests.helpers.contexts import FakeContext
from tests.helpers.training import MemoryBackbone, build, generator, normal

N, ROWS = 12, 4000
HIERARCHY = {"roots": 4, "branching": 2, "depth": 1, "exclusive": 1.0, "scale_by_parent": False, "compensate": False}


@pytest.fixture
def context():
    """Twelve orthonormal features: four roots with two children each, of which at most one fires."""
    backbone = build(
        "backbone", "synthetic", d_in=N, n_features=N, probability={"type": "constant", "p": 0.3}, hierarchy=HIERARCHY
    )
    found = FakeContext(None, backbone)
    found.backbone._features = torch.linalg.qr(normal(N, N, seed=3))[0]
    return found


def sae_of(encoder, decoder):
    sae = SparseAutoencoder.start(encoder.T, decoder, torch.zeros(N), ReLU(), "none")
    with torch.no_grad():
        sae.tensors["b_enc"].fill_(-0.1)
    return sae


def score(context, sae, **config):
    metric = FeatureAbsorption(FeatureAbsorptionConfig(rows=ROWS, **config))
    scored = metric.score(Subject(sae, lambda: sae.w_dec), metric.prepare(context), context)
    return {name: getattr(found, "value", found) for name, found in scored.scores.items()}, scored


def truth(context):
    return context.backbone.features(), context.backbone.parents()


def test_a_perfect_sae_absorbs_nothing(context):
    features, _ = truth(context)
    found, scored = score(context, sae_of(features, features))
    assert found == {"rate": 0.0, "missed": 0.0, "shared": 0.0}
    assert scored.items["child"] == list(range(4, N))
    assert scored.items["parent"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert scored.items["counted"] == [True] * 8


def test_a_parent_that_falls_silent_beside_one_child_is_counted(context):
    """The latent of root 0 is switched off by child 4, and goes on beside child 5: a rate of one pair in eight."""
    features, parents = truth(context)
    assert parents[4] == parents[5] == 0
    encoder = features.clone()
    encoder[0] -= 10 * features[4]
    decoder = features.clone()
    decoder[4] += 0.5 * features[0]
    found, scored = score(context, sae_of(encoder, decoder))
    assert found["rate"] == pytest.approx(1 / 8)
    assert found["missed"] == 0.0
    assert scored.items["absorbed"][0] == scored.items["together"][0] > 100
    assert scored.items["absorbed"][1:] == [0] * 7
    codes = context.backbone.codes("evaluation", 0, ROWS).to_dense() > 0
    assert scored.items["together"] == [int((codes[:, c] & codes[:, parents[c]]).sum()) for c in range(4, N)]


def test_a_latent_that_misses_its_feature_anyway_is_no_absorption(context):
    features, _ = truth(context)
    sae = sae_of(features, features)
    with torch.no_grad():
        sae.tensors["b_enc"][1] = -1e9  # root 1 never fires, children or not
    found, _ = score(context, sae)
    assert found["rate"] == pytest.approx(2 / 8)
    assert found["missed"] == pytest.approx(1 / 4)
    with torch.no_grad():
        sae.tensors["b_enc"][:] = -1e9  # nor does any child: nothing stands for the parent
    found, _ = score(context, sae)
    assert found["rate"].reason == "no pair of parent and child has a latent each, and rows enough"


def test_misses_weigh_as_pairs_do(context):
    """Root 1 never fires and has two pairs, the others one each: nothing is absorbed, so both numbers are the same."""
    features, _ = truth(context)
    decoder = features.clone()
    decoder[[4, 8, 10]] = 0.0
    sae = sae_of(features, decoder)
    with torch.no_grad():
        sae.tensors["b_enc"][1] = -1e9
    found, scored = score(context, sae)
    assert sum(scored.items["counted"]) == 5
    assert found["rate"] == found["missed"] == pytest.approx(2 / 5)


def test_only_rows_in_which_the_child_is_seen_count(context):
    """Child 4's latent fires on strong rows alone, and then root 0's is off: all that is seen is absorbed."""
    features, _ = truth(context)
    encoder = features.clone()
    encoder[0] -= 10 * features[4]
    sae = sae_of(encoder, features)
    with torch.no_grad():
        sae.tensors["b_enc"][4] = -1.2
    found, scored = score(context, sae)
    assert 0 < scored.items["seen"][0] < scored.items["together"][0]
    assert scored.items["absorbed"][0] == scored.items["seen"][0]
    assert found["rate"] == pytest.approx(1 / 8)


def test_one_latent_for_both_is_told_apart(context):
    features, _ = truth(context)
    decoder = features.clone()
    decoder[0] = features[0] + features[4]
    decoder[4] = -features[4]
    found, scored = score(context, sae_of(features, decoder))
    assert found["shared"] == pytest.approx(1 / 8)
    assert scored.items["counted"][0] is False
    assert found["rate"] == 0.0


def test_without_latents_of_features_it_says_why(context):
    found, _ = score(context, sae_of(torch.zeros(2, N), normal(2, N)), threshold=0.99)
    assert {name: value.reason for name, value in found.items()} == {
        "rate": "no pair of parent and child has a latent each, and rows enough",
        "missed": "no parent of such a pair fires alone",
        "shared": "no pair of parent and child has a latent",
    }
    features, _ = truth(context)
    found, scored = score(context, sae_of(features, features), least=ROWS)
    assert isinstance(found["rate"], NotApplicable)
    assert not any(scored.items["counted"])


def test_it_needs_features_with_parents():
    metric = FeatureAbsorption(FeatureAbsorptionConfig())
    flat, blind = build("backbone", "synthetic", d_in=4, n_features=4), MemoryBackbone(normal(10, 4))
    assert metric.applicable(flat).reason == "no feature of the backbone has a parent"
    assert metric.applicable(blind).reason == "the backbone's true features are not known"
    with pytest.raises(PluginError, match="no parents"):
        metric.prepare(FakeContext(None, flat))
    tree = build("backbone", "synthetic", d_in=4, n_features=12, hierarchy=HIERARCHY)
    assert metric.applicable(tree) is None


def test_copies_of_a_latent_are_one_with_it_in_any_order(context):
    """A perfect SAE with a silent copy of every latent absorbs nothing, whichever of the two comes first."""
    features, _ = truth(context)
    for order in (torch.arange(2 * N), torch.arange(2 * N).flip(0), torch.randperm(2 * N, generator=generator(1))):
        directions = features.repeat(2, 1)[order]
        sae = SparseAutoencoder.start(directions.T, directions, torch.zeros(N), ReLU(), "none")
        with torch.no_grad():
            sae.tensors["b_enc"].copy_(torch.where(order < N, -0.1, -1e9))
        found, scored = score(context, sae)
        assert found == {"rate": 0.0, "missed": 0.0, "shared": 0.0}
        places = order.argsort()
        assert scored.items["child_latent"] == [min(int(places[c]), int(places[c + N])) for c in range(4, N)]


def test_a_latent_of_parent_and_child_is_shared_beside_one_of_the_childs_own(context):
    """Latent 0 lies half-way from root 0 to child 4, latent 4 is as near to the child: the child has both."""
    features, _ = truth(context)
    between = features[0] + features[4]
    decoder = torch.cat([between[None], features[1:4], (features[4] - features[0])[None], features[5:]])
    found, scored = score(context, sae_of(features, decoder))
    assert (scored.items["parent"][0], scored.items["parent_latent"][0], scored.items["child_latent"][0]) == (0, 0, 0)
    assert found["shared"] == pytest.approx(1 / 8)
    assert scored.items["counted"] == [False] + [True] * 7
