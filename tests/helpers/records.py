"""A made-up sweep with everything that trackers and reports must cope with; its numbers are chosen for hand checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saebench_core.results import CellRecord, CellResult, EntryRef, Journal, MetricValue, Sweep

STARTED_MS = 1_790_000_000_000
BACKBONES = ("toy", "smol")
CONSTRAINTS = ("trained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
SEEDS = (0, 1)

EXPLAINED = {  # seed 0, seed 1
    "trained": (0.80, 0.84),
    "frozen_decoder": (0.50, 0.52),
    "soft_frozen_decoder": (0.60, 0.63),
    "frozen_encoder": (0.40, 0.44),
}
ERRORS = {
    "trained": (2.0, 1.6),
    "frozen_decoder": (5.0, 4.8),
    "soft_frozen_decoder": (4.0, 3.6),
    "frozen_encoder": (6.0, 5.6),
}
RECOVERED = {
    "trained": (0.30, 0.34),
    "frozen_decoder": (0.10, 0.12),
    "soft_frozen_decoder": (0.20, 0.22),
    "frozen_encoder": (0.28, 0.30),
}

REGISTRY = """\
name: sanity-check
backbones:
  - {name: toy, type: synthetic, d_in: 100, n_features: 3200}
architectures:
  - {type: batch_topk, expansion: 8}
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def metric(value: float | None, reads: str, constraint: str, **changes: Any) -> MetricValue:
    null = constraint != "trained" and not (reads == "decoder" and constraint == "frozen_encoder")
    fields = {
        "status": "ok" if value is not None else "not_applicable",
        "value": value,
        "n": None if value is None else 4096,
        "direction": "higher",
        "unit": "share",
        "reads": reads,
        "valid_null": null,
        "metric_version": 1,
    }
    return MetricValue.model_validate(fields | changes)


def scores(backbone: str, constraint: str, index: int) -> dict[str, MetricValue]:
    shift = 0.05 if backbone == "smol" else 0.0
    found = {
        "reconstruction/explained_variance": metric(
            EXPLAINED[constraint][index] - shift, "both", constraint, floor=0.0, ceiling=1.0
        ),
        "reconstruction/mse": metric(
            ERRORS[constraint][index], "both", constraint, floor=10.0, direction="lower", unit="1"
        ),
        "reconstruction/l0": metric(20.1, "both", constraint, direction="none", unit="latents"),
    }
    if backbone == "toy":
        found["feature_recovery/mean"] = metric(
            RECOVERED[constraint][index], "decoder", constraint, floor=0.05, ceiling=1.0
        )
    else:
        reason = "smol has no known features"
        found["feature_recovery/mean"] = metric(None, "decoder", constraint, reason=reason)
    return found


def certificate(constraint: str, seed: int, init: str) -> dict[str, Any]:
    frozen = {
        "trained": [],
        "frozen_decoder": ["W_dec"],
        "soft_frozen_decoder": [],
        "frozen_encoder": ["W_enc", "b_enc"],
    }
    return {
        "base_draw_sha256": digest(f"draw {seed}"),
        "batch_order_sha256": digest(f"order {seed}"),
        "w_dec_start_sha256": digest(f"start {seed} {init}"),
        "frozen": {name: {"before": digest(name), "after": digest(name)} for name in frozen[constraint]},
        "decoder_cosine": {"min": 0.8, "mean": 0.91},
        "at_bound_share": 0.4 if constraint == "soft_frozen_decoder" else None,
        "realised_l0": 20.1,
        "alive_share": 0.93,
    }


def record(backbone: str, constraint: str, seed: int, **changes: Any) -> CellRecord:
    init = "iso"
    index = SEEDS.index(seed)
    fields: dict[str, Any] = {
        "cell_id": digest(f"{backbone} {constraint} {seed}")[:16],
        "backbone": EntryRef(
            name=backbone, type="synthetic" if backbone == "toy" else "hf_lm", config={"name": backbone}
        ),
        "site": "activations" if backbone == "toy" else "layers.15",
        "architecture": EntryRef(name="batch_topk", type="batch_topk", config={"expansion": 8}),
        "constraint": EntryRef(name=constraint, type=constraint, config={"init": init}),
        "init": init,
        "l0_target": 20.0,
        "seed": seed,
        "status": "done",
        "metrics": scores(backbone, constraint, index),
        "certificate": certificate(constraint, seed, init),
    }
    order = BACKBONES.index(backbone) * 8 + CONSTRAINTS.index(constraint) * 2 + index
    return CellRecord(
        result=CellResult.model_validate(fields | changes),
        finished_ms=STARTED_MS + 60_000 * (order + 1),
        seconds={"train": 41.5, "score": 3.25},
        params={"modality": "synthetic" if backbone == "toy" else "text", "d_in": 100, "d_sae": 800, "lr": 2e-4},
        plugins={"architecture": "saebench-core 0.1.0"},
    )


def records() -> list[CellRecord]:
    """All cells: one of smol's failed, one of toy's missed its L0, one of smol's collapsed."""
    special: Mapping[tuple[str, str, int], dict[str, Any]] = {
        ("smol", "frozen_encoder", 1): {
            "status": "failed",
            "error": "FloatingPointError: loss is nan at step 120",
            "metrics": {},
            "certificate": None,
        },
        ("toy", "frozen_decoder", 1): {"flags": ("missed_l0", "not_converged")},
        ("smol", "frozen_decoder", 0): {"flags": ("collapsed",)},
    }
    keys = [(backbone, constraint, seed) for backbone in BACKBONES for constraint in CONSTRAINTS for seed in SEEDS]
    return [record(*key, **special.get(key, {})) for key in keys]


def sweep(cells: list[CellRecord], name: str = "sanity-check", sweep_id: str = "5eed" * 4) -> Sweep:
    return Sweep(
        sweep_id=sweep_id,
        name=name,
        started_ms=STARTED_MS,
        registry=REGISTRY,
        cells=tuple(cell.result.cell_id for cell in cells),
        environment={"saebench-core": "0.1.0", "python": "3.11.7", "torch": "2.14.1", "device": "cpu"},
    )


def with_artifacts(cell: CellRecord, workdir: Path, curve: int = 1000) -> CellRecord:
    """Give a done cell what training leaves behind."""
    if cell.result.status != "done":
        return cell
    base = Path("products") / cell.result.cell_id
    place = workdir / base
    (place / "sae").mkdir(parents=True, exist_ok=True)
    (place / "sae" / "cfg.json").write_text("{}")
    (place / "sae" / "sae_weights.safetensors").write_bytes(b"weights of " + cell.result.cell_id.encode())
    (place / "sae" / "DONE").write_text("{}")
    (place / "certificate.json").write_text(json.dumps(cell.result.certificate))
    (place / "items.parquet").write_bytes(b"PAR1")
    value = cell.result.metrics["reconstruction/explained_variance"].value or 0.0
    points = [
        {
            "step": step,
            "rows": step * 64,
            "time_ms": STARTED_MS + step,
            "values": {"loss": 1 + 10 / step, "ev": value * (1 - 1 / step)},
        }
        for step in range(1, curve + 1)
    ]
    (place / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    artifacts = {
        "sae": f"{base}/sae",
        "certificate": f"{base}/certificate.json",
        "curves": f"{base}/curves.jsonl",
        "items/reconstruction": f"{base}/items.parquet",
    }
    return cell.model_copy(update={"result": cell.result.model_copy(update={"artifacts": artifacts})})


def write_journal(
    workdir: Path, cells: list[CellRecord] | None = None, **changes: Any
) -> tuple[Journal, Sweep, list[CellRecord]]:
    """Write a journal with artifacts and return it with its sweep and records."""
    cells = [with_artifacts(cell, workdir) for cell in (records() if cells is None else cells)]
    journal = Journal(workdir)
    kept = journal.write_sweep(sweep(cells, **changes))
    for cell in cells:
        journal.write_cell(kept.sweep_id, cell)
    return journal, kept, cells
