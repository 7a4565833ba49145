"""Drift of directions from where they were drawn, and how many SAEs fit into memory."""

from __future__ import annotations

import math

import pytest
import torch

from saebench_core.interfaces.constraint import Start
from saebench_core.rules import TopK
from saebench_core.sae import SparseAutoencoder
from saebench_core.training import drift, fitting
from saebench_core.training.fitting import available_bytes, kept_bytes, parts_that_fit, passing_bytes
from saebench_core.training.loop import train_group
from tests.helpers.training import activations, make_trainee, quiet, settings, stream

ALIVE = torch.tensor([True, True, True, False])


def summary(angles):
    """Four latents in the plane, turned by these angles (degrees) and scaled; the encoder is turned twice as far."""
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])

    def turned(factor):
        rows = []
        for (x, y), angle in zip(start.tolist(), angles, strict=True):
            c, s = math.cos(math.radians(factor * angle)), math.sin(math.radians(factor * angle))
            rows.append([3 * (c * x - s * y), 3 * (s * x + c * y)])
        return torch.tensor(rows)

    sae = SparseAutoencoder.start(turned(2).T, turned(1), torch.zeros(2), TopK(1), "b_dec")
    return drift.drift_summary(sae, Start(start.T, start), ALIVE, 5, 0.25)


def test_cosines_of_alive_and_dead_latents_are_told_apart():
    found = summary([0, 60, 90, 0])
    assert (found["step"], found["share"]) == (5, 0.25)
    alive = found["decoder"]["alive"]
    assert alive["latents"] == 3
    assert alive["mean"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-6)
    assert alive["median"] == pytest.approx(0.5, abs=1e-6)
    assert alive["at_least"] == {"0.8": pytest.approx(1 / 3), "0.9": pytest.approx(1 / 3), "0.99": pytest.approx(1 / 3)}
    assert found["decoder"]["dead"]["mean"] == pytest.approx(1)
    assert found["encoder"]["alive"]["mean"] == pytest.approx((1 - 0.5 - 1) / 3, abs=1e-6)


def test_counts_lie_in_bins_from_minus_a_fifth_to_one_and_lose_nothing():
    counts = summary([0, 60, 150, 0])["decoder"]["alive"]["counts"]
    assert len(counts) == 100
    assert sum(counts) == 3
    assert counts[99] == 1
    assert counts[0] == 1, "what is below the first bin is counted in it"
    assert sum(counts[57:60]) == 1, "0.5 is 0.7 of 1.2 from the low end"


def test_no_dead_latent_is_no_number():
    sae_start = torch.eye(2)
    sae = SparseAutoencoder.start(sae_start.T, sae_start, torch.zeros(2), TopK(1), "b_dec")
    found = drift.drift_summary(sae, Start(sae_start.T, sae_start), torch.tensor([True, True]), 0, 0.0)
    assert found["decoder"]["dead"] == {"latents": 0}


def test_drift_is_looked_at_on_a_grid_of_half_decades_and_at_the_paper_s_shares():
    assert drift.drift_steps(1000) == {0, 1, 3, 10, 32, 50, 100, 316, 1000}
    assert drift.drift_steps(10) == {0, 1, 3, 10}


def test_a_training_logs_its_drift_and_a_frozen_decoder_has_none():
    x = activations()
    trainees = {name: make_trainee("topk", name, training=settings(40)) for name in ("trained", "frozen_decoder")}
    outcome = train_group(trainees, stream(x, settings(40), 0), 1.0, x[:50], quiet, "test")
    logs = {name: curve.drift for name, curve in outcome.curves.items()}
    assert [point["step"] for point in logs["trained"]] == [0, 1, 2, 4, 13, 40]

    def mean(point, part):
        """Over alive and dead latents together."""
        groups = [group for group in point[part].values() if group["latents"]]
        return sum(group["latents"] * group["mean"] for group in groups) / sum(group["latents"] for group in groups)

    curve = outcome.curves["trained"]
    assert "explained_variance" not in curve.drift[0]
    assert curve.drift[-1]["explained_variance"] == curve.heldout[40] > curve.drift[1]["explained_variance"]
    assert mean(logs["trained"][0], "decoder") == pytest.approx(1, abs=1e-6)
    assert mean(logs["trained"][-1], "decoder") < 0.99
    assert mean(logs["frozen_decoder"][-1], "decoder") == pytest.approx(1, abs=1e-6)
    assert mean(logs["frozen_decoder"][-1], "encoder") < 0.99


def test_groups_are_cut_into_equal_parts_that_fit(monkeypatch):
    monkeypatch.setattr(fitting, "_PART_BUFFERS", 0)
    items = list(range(7))
    assert parts_that_fit(items, 10, 0, 1000) == [items]
    assert parts_that_fit(items, 10, 20, 100) == [[0, 1, 2, 3], [4, 5, 6]], "80 % of 100 less 20: six fit, in two parts"
    assert parts_that_fit(items, 10, 0, 1) == [[item] for item in items], "one is tried in any case"
    assert (kept_bytes(10, 20), kept_bytes(10, 20, trains=False), passing_bytes(10, 20)) == (7200, 2400, 3200)


def test_free_memory_is_what_the_machine_says():
    free = available_bytes(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 44
    meminfo = fitting._meminfo()
    assert meminfo is None or free <= 1.5 * meminfo


def test_files_that_were_read_before_count_as_free_in_a_container(monkeypatch, tmp_path):
    contents = {"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 300\ninactive_file 500\n"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(fitting, "Path", lambda _: tmp_path)
    assert fitting._control_group() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert fitting._control_group() is None


def test_a_container_s_limit_counts(monkeypatch):
    monkeypatch.setattr(fitting, "_meminfo", lambda: 1000)
    for limit, wanted in ((None, 1000), (300, 300), (5000, 1000)):
        monkeypatch.setattr(fitting, "_control_group", lambda limit=limit: limit)
        assert available_bytes(torch.device("cpu")) == wanted
