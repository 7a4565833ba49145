"""No tensor is made on an implicit device: everything runs while the default device is one that holds no values."""

from __future__ import annotations

import pytest
import torch

from saebench_core.activations import LiveReader, StoredReader, collect, measure
from saebench_core.interfaces.metric import Subject
from saebench_core.rules import BatchTopK
from saebench_core.training.calibration import quantile_threshold
from saebench_core.training.certificate import Origin, certify, realised
from saebench_core.training.loop import train_group
from tests.helpers.contexts import FakeContext
from tests.helpers.training import (
    BATCH,
    D_IN,
    MemoryBackbone,
    MemoryReader,
    activations,
    base_draw,
    bits,
    build,
    make_trainee,
    quiet,
    random_sae,
    same_bits,
    settings,
    stream,
    trainable_names,
)

X = activations()
CPU = torch.device("cpu")


def trained(name):
    trainee = make_trainee(*name, x=X, training=settings(4, dead_rows=BATCH))
    origin = Origin.of(base_draw(), trainee.start, trainee.sae, trainee.frozen)
    outcome = train_group({"one": trainee}, stream(X, settings(4)), 1.0, X[:50], quiet, "test")
    certificate = certify(origin, trainee.start, trainee.sae, trainee.sae, trainee.constraint, "order")
    return trainee, outcome, certificate, realised(trainee.sae.folded(2.0), MemoryReader(X))


@pytest.mark.parametrize("constraint", trainable_names("constraint"))
@pytest.mark.parametrize("architecture", trainable_names("architecture"))
def test_training(architecture, constraint):
    plain = trained((architecture, constraint))
    with torch.device("meta"):
        guarded = trained((architecture, constraint))
    assert not guarded[1].failures
    assert same_bits(bits(plain[0]), bits(guarded[0]))
    assert plain[2:] == guarded[2:]


def test_thresholds_and_statistics():
    sae = random_sae(BatchTopK(3.0))
    wanted, statistics = quantile_threshold(sae, MemoryReader(X), 3.0), measure(MemoryReader(X), 500)
    with torch.device("meta"):
        assert quantile_threshold(sae, MemoryReader(X), 3.0) == wanted
        assert torch.equal(measure(MemoryReader(X), 500).covariance, statistics.covariance)


def test_readers(tmp_path):
    with torch.device("meta"):
        backbone = MemoryBackbone(X)
        collect(backbone, "values", "train", 100, tmp_path, quiet)
        readers = [StoredReader(tmp_path, CPU), LiveReader(backbone, "values", "train", 100, D_IN, CPU)]
        rows = [torch.cat(list(reader.batches(30))) for reader in readers]
    assert all(torch.equal(found, X[:100]) for found in rows)


@pytest.mark.parametrize("metric", ["reconstruction", "feature_recovery"])
def test_synthetic_rows_and_scores(metric):
    def scores():
        backbone = build("backbone", "synthetic", d_in=D_IN, n_features=40)
        context, judge = FakeContext(None, backbone, "activations"), build("metric", metric, **options)
        prepared = judge.prepare(context)
        scored = judge.score(Subject(sae, lambda: sae.w_dec), prepared, context)
        return {name: score.value for name, score in scored.scores.items()}, prepared.floors

    options = {"rows": 500} if metric == "reconstruction" else {}
    sae = random_sae(BatchTopK(3.0))
    wanted = scores()
    with torch.device("meta"):
        assert scores() == wanted
