"""The load task: somebody's SAE is read, measured on evaluation rows, and published beside those that are trained."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from saebench_core.errors import InputError
from saebench_core.formats import Checkpoint
from saebench_core.interfaces.loaded import LoadedArchitecture, LoadedConfig
from saebench_core.plan import Task
from saebench_core.registry import Cell
from saebench_core.tasks.workbench import PluginContext, Workbench
from saebench_core.training.certificate import realised

__all__ = ["budget_flags", "load"]


def load(task: Task, bench: Workbench, identity: Mapping[str, Any]) -> None:
    """Read the SAE of a task's cell, measure its L0, and publish it with a certificate of what was read.

    Raises:
        InputError: if it cannot be read, or has another size than its header said.
    """
    cell = task.cells[0]
    architecture = cast(LoadedArchitecture, cell.architecture.instance)

    def build(folder: Path) -> None:
        began = time.monotonic()
        found = architecture.load(PluginContext(bench, cell.seed, cell.architecture.plugin))
        if (found.sae.d_in, found.sae.d_sae) != (cell.d_in, cell.d_sae):
            raise InputError(
                f"{cell.architecture.name}: d_in {found.sae.d_in} and {found.sae.d_sae} latents, "
                f"its header says {cell.d_in} and {cell.d_sae}"
            )
        rows = cell.training.evaluation_rows
        measured = realised(found.sae, bench.reader(cell.backbone, identity, cell.site, "evaluation", rows))
        certificate = _certificate(found, measured, architecture.fingerprint())
        flags = [*budget_flags(cell, found.facts.tokens), *(["collapsed"] if not measured["realised_l0"] else [])]
        _write(folder, cell, found, certificate, flags, time.monotonic() - began)

    bench.make(task.products[0], build)


def budget_flags(cell: Cell, tokens: int | None) -> list[str]:
    """Compare the budget of a loaded SAE with that of its references: in its files, or as the registry says.

    Args:
        cell: the loaded SAE's cell.
        tokens: what its files say.
    """
    own = tokens if tokens is not None else cast(LoadedConfig, cell.architecture.config).tokens
    if own is None:
        return ["budget_unknown"]
    return ["budget_unmatched"] if own > cell.training.total_rows else []


def _certificate(found: Checkpoint, measured: Mapping[str, float], files: Mapping[str, Any]) -> dict[str, Any]:
    """Return a certificate: nothing of it is random or shared, so there is nothing to hash but the files."""
    drawn = dict.fromkeys(("base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256", "decoder_cosine"))
    loaded = {**asdict(found.facts), "notes": list(found.facts.notes), "files": dict(files)}
    return {**drawn, "frozen": {}, "at_bound_share": None, **measured, "loaded": loaded}


def _write(
    folder: Path, cell: Cell, found: Checkpoint, certificate: Mapping[str, Any], flags: list[str], seconds: float
) -> None:
    facts = found.facts
    rule = {**facts.plugins, "l0": facts.k if facts.plugins else certificate["realised_l0"]}
    metadata = {
        "model_name": cell.backbone.name,
        "hook_name": cell.site,
        **rule,
        "saebench": {"cell_id": cell.cell_id, "cell": cell.identity, "loaded": certificate["loaded"]},
    }
    found.sae.save(folder / "sae", metadata)
    contents = {
        "certificate": certificate,
        "facts": {"certificate": certificate, "flags": flags},
        "seconds": {"load": round(seconds, 3)},
    }
    for name, content in contents.items():
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
