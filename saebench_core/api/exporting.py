"""Writes the activations of a registry's cells into a folder of the user's."""

from __future__ import annotations

from pathlib import Path

from saebench_core.activations import Manifest
from saebench_core.api.opening import Opened
from saebench_core.api.process import threads
from saebench_core.api.running import Listener
from saebench_core.errors import InputError, nearest
from saebench_core.interfaces.context import Split
from saebench_core.tasks import Workbench, pick_device
from saebench_core.tasks.export import export_splits

__all__ = ["export_activations"]


def export_activations(opened: Opened, backbone: str, folder: Path, site: str | None = None) -> dict[Split, int]:
    """Write the activations that a registry's cells would be trained and evaluated on into a folder of the user's.

    Args:
        opened: an open registry.
        backbone: name of one of its backbones.
        folder: gets the folders ``train``, ``calibration`` and ``evaluation``, each with manifest and shards.
        site: place in the backbone; may be left out where cells have one only.

    Returns:
        The rows of each split.

    Raises:
        InputError: if the backbone or the site is none of the registry's, or something is in the way.
    """
    cells = {cell.site: cell for cell in opened.registry.cells if cell.backbone.name == backbone}
    names = sorted({cell.backbone.name for cell in opened.registry.cells})
    if not cells:
        raise InputError(f"no backbone {backbone!r}; there are: {', '.join(names)}{nearest(backbone, names)}")
    if site not in cells and (site is not None or len(cells) > 1):
        raise InputError(
            f"give a --site of {backbone}: {', '.join(sorted(cells))}" + (f", not {site!r}" if site else "")
        )
    cell = cells[site] if site is not None else next(iter(cells.values()))
    training, device = cell.training, pick_device(opened.registry.runtime.device)
    rows: dict[Split, int] = {
        "train": training.total_rows,
        "calibration": training.calibration_rows,
        "evaluation": training.evaluation_rows,
    }
    bench = Workbench(opened.store, opened.catalog, opened.environment, device, Listener().progress)
    with threads(opened.registry.runtime.threads):
        export_splits(bench, cell.backbone, opened.plan.identities[backbone], cell.site, rows, folder)
    return {split: Manifest.read(folder / split).rows for split in rows}
