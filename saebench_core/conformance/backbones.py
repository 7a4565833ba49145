"""Checks of backbones: what they describe, what they stream, and the capabilities that they offer."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Final, cast, get_args

import torch
from torch import Tensor

from saebench_core.activations import StoredReader
from saebench_core.conformance.checks import NotCheckable, check, demand, demand_close, demand_equal
from saebench_core.conformance.context import KitContext
from saebench_core.conformance.subjects import PluginSubject
from saebench_core.interfaces.backbone import Backbone, BackboneConfig, GroundTruth, Precomputed
from saebench_core.interfaces.context import Split

ROWS: Final = 200
_SPLITS: Final[tuple[Split, ...]] = get_args(Split)


class BackboneSubject(PluginSubject):
    """A backbone, prepared in a temporary store."""

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, prepared once."""
        return self.prepared()

    @cached_property
    def context(self) -> KitContext:
        """Context of the backbone; products of a first preparation are found by a second."""
        return KitContext(self.new_folder(), catalog=self.catalog, role=self.plugin.name)

    def prepared(self) -> Backbone:
        """Return the backbone built and prepared anew."""
        made = cast(Backbone, self.build())
        made.prepare(self.context)
        return made

    @property
    def site(self) -> str:
        """The site that is read: the first that the configuration names, or the first that there is."""
        named = cast(BackboneConfig, self.config).sites
        return named[0] if named else next(iter(self.backbone.describe().sites))

    @property
    def exact(self) -> bool:
        """Whether rows must be bit-equal."""
        return self.backbone.describe().regenerates

    def rows(self, split: Split, start: int = 0, count: int = ROWS, backbone: Backbone | None = None) -> Tensor:
        """Return rows of a split; fewer where it ends or leaves some out."""
        made = backbone or self.backbone
        width = made.describe().sites[self.site]
        parts = [batch.inputs.clone() for batch in made.stream(self.site, split, start, count)]
        return torch.cat(parts) if parts else torch.zeros(0, width, device="cpu")

    def demand_rows(self, what: str, found: Tensor, allowed: Tensor) -> None:
        """Refuse other rows: bit-equal for a backbone that regenerates, else within 1e-5 of the rows' size."""
        if self.exact:
            demand_equal(what, found, allowed)
        else:
            demand_close(what, found, allowed, 1e-5, 1e-5 * float(allowed.abs().max()) if allowed.numel() else 0.0)

    def exercise(self) -> object:
        """Describe, prepare and stream from the start, with a store of its own."""
        made = cast(Backbone, self.build())
        made.describe()
        made.fingerprint()
        made.prepare(KitContext(self.new_folder(), catalog=self.catalog, role=self.plugin.name))
        return [self.rows(split, backbone=made) for split in _SPLITS]


@check("answer `describe` from the configuration and from headers; load weights in `prepare`")
def check_description(subject: BackboneSubject) -> None:
    """Sites and widths are known before anything is prepared, and stay true after it."""
    before = cast(Backbone, subject.build()).describe()
    demand(bool(before.sites), "no site", "at least one")
    for site, width in before.sites.items():
        demand(isinstance(width, int) and width > 0, f"width {width!r} of {site}", "a positive integer")
    for name in ("memory_bytes", "disk_bytes", "seconds_per_row"):
        demand(getattr(before, name) >= 0, f"{name} {getattr(before, name)}", "zero or more")
    json.dumps(dict(before.facts), allow_nan=False)
    after = subject.backbone.describe()
    demand_equal("sites after preparing", dict(after.sites), dict(before.sites))
    demand_equal("`regenerates` after preparing", after.regenerates, before.regenerates)


@check("yield ActivationBatch(x, x) with x fp32 of (rows, d_in), detached, on context.device")
def check_rows_have_the_declared_form(subject: BackboneSubject) -> None:
    """Batches are fp32 rows of the declared width, finite, without gradients, their own targets."""
    width = subject.backbone.describe().sites[subject.site]
    for split in _SPLITS:
        for batch in subject.backbone.stream(subject.site, split, 0, ROWS):
            x = batch.inputs
            demand(x.ndim == 2 and x.shape[1] == width, f"{split}: shape {tuple(x.shape)}", f"(rows, {width})")
            demand(x.dtype == torch.float32, f"{split}: {x.dtype}", "torch.float32")
            demand(x.device == subject.context.device, f"{split}: on {x.device}", f"on {subject.context.device}")
            demand(not x.requires_grad, f"{split}: rows want gradients", "rows without gradients")
            demand(bool(torch.isfinite(x).all()), f"{split}: rows that are not finite", "finite rows")
            demand(batch.targets is x, f"{split}: targets that are not the inputs", "the same tensor")


@check("yield as many rows as are asked for, until the split ends; count in `rows_available` what there is")
def check_rows_are_counted(subject: BackboneSubject) -> None:
    """A split gives the rows that are asked for, and ends where it says."""
    for split in _SPLITS:
        available = subject.backbone.rows_available(subject.site, split)
        demand(available is None or available > 0, f"{split}: {available} rows", "None, or at least one")
        wanted = ROWS if available is None else min(ROWS, available)
        found = len(subject.rows(split))
        enough = found == wanted if subject.exact else 0 < found <= wanted
        demand(enough, f"{split}: {found} rows of {wanted}", "all of them" if subject.exact else "most of them")
        if available is not None:
            beyond = len(subject.rows(split, max(0, available - 5), 50))
            demand(beyond <= 5, f"{split}: {beyond} rows from the fifth last on", "at most 5")
            demand_equal(f"{split}: rows after its end", len(subject.rows(split, available + 3, 5)), 0)


@check("cut batches out of fixed blocks, so that a row's numbers do not depend on where the stream begins or is cut")
def check_rows_do_not_depend_on_the_cut(subject: BackboneSubject) -> None:
    """The rows are the same in the same order however they are cut."""
    for split in ("train", "evaluation"):
        whole = subject.rows(split, 3, ROWS)
        for size in (1, 7, 64):
            count = min(ROWS, 20) if size == 1 else ROWS
            cut = [subject.rows(split, 3 + first, min(size, count - first)) for first in range(0, count, size)]
            wanted = whole if count == ROWS else subject.rows(split, 3, count)
            subject.demand_rows(f"{split}: rows read {size} at a time", torch.cat(cut), wanted)


@check("seed every draw by the configuration's `seed`, and put models into eval mode")
def check_same_seed_same_rows(subject: BackboneSubject) -> None:
    """A second object from the same configuration, and a second reading, give the same rows."""
    other = subject.prepared()
    for split in _SPLITS:
        first = subject.rows(split)
        subject.demand_rows(f"{split}: read twice", subject.rows(split), first)
        subject.demand_rows(f"{split}: of a second object", subject.rows(split, backbone=other), first)


@check("draw or cut splits apart: no row of evaluation or calibration is trained on")
def check_splits_differ(subject: BackboneSubject) -> None:
    """The splits hold different rows."""
    found = {split: subject.rows(split) for split in _SPLITS}
    for left, right in (("train", "evaluation"), ("train", "calibration"), ("calibration", "evaluation")):
        one, other = found[cast(Split, left)], found[cast(Split, right)]
        size = min(len(one), len(other))
        demand(not torch.equal(one[:size], other[:size]), f"{left} and {right} begin alike", "different rows")


@check("yield copies, or tensors that nothing reads again")
def check_rows_belong_to_the_reader(subject: BackboneSubject) -> None:
    """A reader may change a batch in place; the rows that come later are what they were."""
    before = subject.rows("train", 0, 60)
    for batch in subject.backbone.stream(subject.site, "train", 0, 50):
        batch.inputs.zero_()
    subject.demand_rows("rows after a reader changed its batches", subject.rows("train", 0, 60), before)


@check("return unit-norm features, probabilities in (0, 1], and codes whose sums with the features are the rows")
def check_ground_truth_explains_the_rows(subject: BackboneSubject) -> None:
    """Known features and codes add up to the rows."""
    backbone = subject.backbone
    if not isinstance(backbone, GroundTruth):
        raise NotCheckable("the backbone does not offer GroundTruth")
    features, probabilities = backbone.features(), backbone.probabilities()
    demand_close("norms of the features", features.norm(dim=1), torch.ones(len(features), device="cpu"), 1e-4)
    demand_equal("shape of the probabilities", tuple(probabilities.shape), (len(features),))
    inside = bool(((probabilities > 0) & (probabilities <= 1)).all())
    demand(inside, f"probabilities from {float(probabilities.min()):.3g}", "in (0, 1]")
    codes = backbone.codes("evaluation", 5, ROWS)
    sums = codes.to_dense() @ features
    demand_close("codes times features", sums, subject.rows("evaluation", 5, ROWS), 1e-4, 1e-4)


@check("put a manifest and shards into the folder that `folder` returns, as `saebench activations export` writes them")
def check_stored_rows_are_the_rows(subject: BackboneSubject) -> None:
    """Precomputed activations in files are the rows that are streamed."""
    backbone = subject.backbone
    if not isinstance(backbone, Precomputed):
        raise NotCheckable("the backbone does not offer Precomputed")
    for split in _SPLITS:
        reader = StoredReader(backbone.folder(subject.site, split), subject.context.device)
        stored = torch.cat(list(reader.batches(64)))
        demand_equal(f"{split}: rows in files", reader.rows, backbone.rows_available(subject.site, split))
        demand_equal(f"{split}: rows in files", stored[:ROWS], subject.rows(split))
