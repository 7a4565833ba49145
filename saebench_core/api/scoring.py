"""Scores an SAE that somebody has, on a backbone or on activations in a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from saebench_core.api.entries import EntryLike, as_block, as_entry, as_list
from saebench_core.api.notebook import work_through
from saebench_core.api.opening import checked_workdir, plan_registry
from saebench_core.api.outcomes import CellOutcome
from saebench_core.api.tensors import Rows, SplitRows, by_split, keep, stored_entry
from saebench_core.catalog import make_catalog
from saebench_core.errors import InputError, SaebenchError, nearest
from saebench_core.randomness import tensor_sha256
from saebench_core.registry import Document, Registry, validate
from saebench_core.report import score_frame, score_lines
from saebench_core.results import MetricValue
from saebench_core.sae import SparseAutoencoder, inference_rule
from saebench_core.sources.files import PACKAGE_PREFIX
from saebench_core.store import Store, content_key

if TYPE_CHECKING:
    import pandas

__all__ = ["GIVEN", "Scores", "score"]

GIVEN: Final = "given"
"""Kind of the products that SAEs are kept as which were handed over as objects."""

_LABEL: Final = "score"


@final
class Scores(Mapping[str, MetricValue]):
    """Scores of one SAE by name, ``metric/score``, each with value, floor, ceiling, or the reason for having none.

    Attributes:
        cell: the SAE as a cell of results: per-item tables, what its files say, where they lie.
        realised_l0: mean number of active latents on the evaluation rows.
        alive_share: share of latents that fire on them.
    """

    def __init__(self, cell: CellOutcome) -> None:
        self.cell = cell
        self.realised_l0 = float(cell.certificate["realised_l0"])
        self.alive_share = float(cell.certificate["alive_share"])

    def __getitem__(self, score: str) -> MetricValue:
        """Return one score.

        Raises:
            KeyError: if there is none of that name.
        """
        if score not in self.cell.scores:
            raise KeyError(f"{score!r}{nearest(score, self.cell.scores)}; there are: {', '.join(self.cell.scores)}")
        return self.cell.scores[score]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cell.scores)

    def __len__(self) -> int:
        return len(self.cell.scores)

    def to_frame(self) -> pandas.DataFrame:
        """Return a data frame with a row for each score."""
        return score_frame(self)

    def __repr__(self) -> str:
        return score_lines(self)


def score(
    sae: SparseAutoencoder | CellOutcome | str | Path,
    metrics: Sequence[EntryLike] = ("reconstruction",),
    *,
    backbone: EntryLike | None = None,
    activations: Rows | Mapping[str, Rows] | None = None,
    site: str | None = None,
    format: str = "auto",
    runtime: Mapping[str, Any] | None = None,
    workdir: str | Path = ".saebench",
    progress: bool = False,
) -> Scores:
    """Score an SAE as it is, with floors and ceilings; nothing is trained.

    It goes the way of a registry with an entry of type ``pretrained``: what a metric prepares for a backbone is
    computed once, and the same SAE is not scored twice.

    Args:
        sae: an SAE, a cell of results, or the folder or file of one that saebench_core, SAELens, dictionary_learning,
            Gemma Scope or sparsify wrote. It acts on raw activations.
        metrics: entries as in a registry, or types alone.
        backbone: entry of a registry, such as ``registry.backbone("planted")``: where activations come from.
        activations: in its place, ``(rows, d_in)``: all rows are evaluated on. Or a mapping with a tensor for each of
            ``train``, ``calibration`` and ``evaluation``.
        site: place in the backbone; may be left out where there is one only.
        format: of the files; ``auto`` tells it from their names.
        runtime: the registry's ``runtime``, such as ``{"device": "cpu"}``.
        workdir: folder that everything is written below.
        progress: whether to show how it goes, on standard error.

    Raises:
        InputError: if an argument cannot be used, with what was given and what is allowed.
        SaebenchError: if a metric fails, with its error.
        KeyboardInterrupt: if the user interrupts.
    """
    if (backbone is None) == (activations is None):
        raise InputError(f"{_LABEL}: give exactly one of `backbone` and `activations`")
    splits = None if activations is None else by_split(_LABEL, activations, _all)
    place = checked_workdir(Path(workdir))
    store, catalog = Store(place / "store"), make_catalog()

    def document(sae_path: str, entry: Any) -> dict[str, Any]:
        return _document(sae_path, format, entry, as_list(_LABEL, "metrics", metrics), as_block(runtime))

    entry = {"name": "rows", "type": "activations", "path": "."} if backbone is None else _at(as_entry(backbone), site)
    validate(Document.of(_LABEL, document(".", entry)), catalog)  # before anything is written
    path = _place_of(sae, store)
    if splits is not None:
        entry = stored_entry(keep(_LABEL, splits, store), "rows")
    registry = Registry.from_dict(document(path, entry), catalog=catalog, label=_LABEL)
    (cell,) = work_through(plan_registry(registry, place), progress=progress).cells
    if cell.result.error is not None:
        raise SaebenchError(f"{_LABEL}: {cell.result.error}")
    return Scores(cell)


def _document(path: str, format: str, backbone: Any, metrics: list[Any], runtime: Any) -> dict[str, Any]:
    """Return a registry with the SAE alone: its entry needs a twin, from which nothing is trained here."""
    return {
        "name": _LABEL,
        "backbones": [backbone],
        "architectures": [
            {"name": "sae", "type": "pretrained", "path": path, "format": format, "twin": {"type": "topk"}}
        ],
        "constraints": [{"type": "trained"}],
        "l0": [1],
        "seeds": [0],
        "training": {"steps": 1, "batch_size": 1},
        "runtime": runtime,
        "metrics": metrics,
    }


def _all(rows: Rows) -> SplitRows:
    return {"train": rows, "calibration": rows, "evaluation": rows}


def _at(backbone: Any, site: str | None) -> Any:
    """Return a backbone's entry with one site.

    Raises:
        InputError: if it has several to choose from.
    """
    if not isinstance(backbone, Mapping):  # the registry's checks say what is wrong with it
        return backbone
    if site is not None:
        return {**backbone, "sites": [site]}
    sites = backbone.get("sites")
    if isinstance(sites, Sequence) and not isinstance(sites, str) and len(sites) > 1:
        raise InputError(f"{_LABEL}: the backbone has several sites; give `site`: {', '.join(map(str, sites))}")
    return backbone


def _place_of(sae: object, store: Store) -> str:
    """Return where an SAE lies; one that is an object is kept in the store.

    Raises:
        InputError: if it is none, or its cell has none.
    """
    if isinstance(sae, CellOutcome):
        return str(sae.path("sae"))
    if isinstance(sae, SparseAutoencoder):
        return str(_kept(sae, store))
    if isinstance(sae, str | Path):
        return str(sae) if str(sae).startswith(PACKAGE_PREFIX) else str(Path(sae).absolute())
    kind = f"{type(sae).__module__}.{type(sae).__qualname__}".removeprefix("builtins.")
    raise InputError(
        f"{_LABEL}: expected a SparseAutoencoder, a cell of results, or a path, got {kind}; "
        "save it with its own library and give the folder"
    )


def _kept(sae: SparseAutoencoder, store: Store) -> Path:
    export = sae.rule.export(sae.tensors)
    try:
        inference_rule({"architecture": export.architecture, **export.config})
    except InputError as error:
        raise InputError(f"{_LABEL}: {error}; give the cell of results, or the folder that it was saved in") from error
    identity = {
        "tensors": {name: tensor_sha256(tensor) for name, tensor in sorted(sae.tensors.items())},
        "rule": {"architecture": export.architecture, **export.config},
        "centring": sae.centring,
    }
    return store.make(GIVEN, content_key(identity), identity, lambda folder: sae.save(folder / "sae", {})) / "sae"
