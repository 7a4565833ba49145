"""Plans of a thousand cells."""

from __future__ import annotations

import time

from tests.helpers.registries import TWO_BACKBONES, built_in, changed, kinds, plan_of, process

THOUSAND = changed(
    TWO_BACKBONES,
    (
        "{type: topk, d_sae: 16}",
        "{type: topk, d_sae: 16}\n  - {type: batch_topk, d_sae: 16}\n"
        "  - {type: relu, d_sae: 16}\n  - {type: jumprelu, d_sae: 16}",
    ),
    ("  - {type: untrained}", "  - {type: untrained}\n  - {type: frozen_encoder}"),
    ("l0: [3]", "l0: [2, 3, 4, 5, 6]"),
    ("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4]"),
)


def test_a_thousand_cells_are_planned_in_a_moment():
    built_in()
    began = time.perf_counter()
    plan = plan_of(THOUSAND)
    taken = time.perf_counter() - began
    assert len(plan.cells) == 1000
    assert kinds(plan) == {"train": 10, "metric": 4, "score": 2000}
    assert taken < 3, f"{taken:.2f} s"


def test_a_thousand_cells_are_planned_by_the_command(tmp_path):
    (tmp_path / "registry.yaml").write_text(THOUSAND)
    began = time.perf_counter()
    ended = process("plan", cwd=tmp_path)
    taken = time.perf_counter() - began
    assert ended.code == 0, ended.err
    assert "tiny: 1000 cells" in ended.out
    assert "2000 scores" in ended.out
    assert taken < 60, f"{taken:.2f} s: on a loaded machine too"
    assert [path.name for path in tmp_path.iterdir()] == ["registry.yaml"]
