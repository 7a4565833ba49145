"""A backbone that has a site and no rows, for models of tests to build on."""

from __future__ import annotations

from typing import ClassVar

from saebench_core import Backbone, BackboneDescription


class Plain(Backbone):
    """Nothing but a backbone."""

    modality: ClassVar[str] = "other"
    d_in: ClassVar[int] = 2

    def describe(self):
        return BackboneDescription(self.modality, {"s": self.d_in})

    def prepare(self, context):
        pass

    def rows_available(self, site, split):
        return 0

    def stream(self, site, split, start, rows):
        return iter(())
