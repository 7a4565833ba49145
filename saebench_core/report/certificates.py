"""What the certificates prove: twins shared draw and data, and frozen tensors stayed as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from saebench_core.report.tables import group_by_block
from saebench_core.results import CellRecord, CellResult

__all__ = ["CertificateRow", "certificate_rows"]


@final
@dataclass(frozen=True)
class CertificateRow:
    """One cell's certificate; checks are True, False, or None where there is nothing to check.

    Attributes:
        same_draw: whether the base draw's hash is that of all its twins.
        same_order: whether the batch order's hash is that of all its twins.
        same_start: whether the starting decoder's hash is that of all twins of the same init.
        frozen: tensor to whether it ended as it began.
    """

    cell_id: str
    backbone: str
    site: str
    architecture: str
    l0_target: float | None
    constraint: str
    init: str
    seed: int
    same_draw: bool | None
    same_order: bool | None
    same_start: bool | None
    frozen: Mapping[str, bool]
    cosine_min: float | None
    cosine_mean: float | None
    at_bound_share: float | None
    realised_l0: float | None
    alive_share: float | None
    hashes: Mapping[str, str]
    flags: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether no check failed."""
        checks = (self.same_draw, self.same_order, self.same_start, *self.frozen.values())
        return all(check is not False for check in checks)


_HASHES = ("base_draw_sha256", "batch_order_sha256", "w_dec_start_sha256")


def certificate_rows(records: Iterable[CellRecord]) -> list[CertificateRow]:
    """Return a row for every cell that has a certificate, twins compared with each other."""
    records = list(records)
    unpaired = {record.result.cell_id for record in records if not record.paired}
    rows = []
    for cells in group_by_block(records).values():
        certified = [cell for cell in cells if cell.certificate is not None]
        for cell in certified:
            twins = [] if cell.cell_id in unpaired else [twin for twin in certified if twin.seed == cell.seed]
            rows.append(_row(cell, twins))
    return rows


def _equal(key: str, cell: CellResult, twins: Sequence[CellResult]) -> bool | None:
    hashes = [(twin.certificate or {}).get(key) for twin in twins]
    known = [value for value in hashes if value]
    if len(known) < 2 or not (cell.certificate or {}).get(key):
        return None
    return len(set(known)) == 1


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _frozen(facts: Mapping[str, Any]) -> dict[str, bool]:
    """Return what was to stay as it was, and whether it did: tensors, vectors of single latents, a twin's decoder."""
    found = {name: pair.get("before") == pair.get("after") for name, pair in (facts.get("frozen") or {}).items()}
    for name, pair in (facts.get("frozen_latents") or {}).items():
        if isinstance(pair, Mapping):
            found[f"{name} of frozen latents"] = pair.get("before") == pair.get("after")
    if "unpermuted_w_dec_sha256" in facts:
        found["W_dec up to its order"] = facts["unpermuted_w_dec_sha256"] == (facts.get("twin") or {}).get("W_dec")
    return found


def _row(cell: CellResult, twins: Sequence[CellResult]) -> CertificateRow:
    facts: Mapping[str, Any] = cell.certificate or {}
    cosine = facts.get("decoder_cosine") or {}
    same_init = [twin for twin in twins if twin.init == cell.init]
    return CertificateRow(
        cell_id=cell.cell_id,
        backbone=cell.backbone.name,
        site=cell.site,
        architecture=cell.architecture.name,
        l0_target=cell.l0_target,
        constraint=cell.constraint.name,
        init=cell.init,
        seed=cell.seed,
        same_draw=_equal("base_draw_sha256", cell, twins),
        same_order=_equal("batch_order_sha256", cell, twins),
        same_start=_equal("w_dec_start_sha256", cell, same_init),
        frozen=_frozen(facts),
        cosine_min=_number(cosine.get("min")),
        cosine_mean=_number(cosine.get("mean")),
        at_bound_share=_number(facts.get("at_bound_share")),
        realised_l0=_number(facts.get("realised_l0")),
        alive_share=_number(facts.get("alive_share")),
        hashes={key: str(facts[key]) for key in _HASHES if facts.get(key)},
        flags=cell.flags,
    )
