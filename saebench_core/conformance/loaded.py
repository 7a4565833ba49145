"""Checks of architectures that are loaded, not trained."""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from saebench_core.conformance.checks import check, demand, demand_close, demand_equal
from saebench_core.conformance.context import KitContext
from saebench_core.conformance.subjects import PluginSubject
from saebench_core.conformance.worlds import planted_rows
from saebench_core.formats import Checkpoint
from saebench_core.interfaces.loaded import LoadedArchitecture
from saebench_core.sae import SparseAutoencoder


class LoadedSubject(PluginSubject):
    """An SAE that somebody trained, as the plugin loads it."""

    @property
    def architecture(self) -> LoadedArchitecture:
        """The architecture, built anew."""
        return cast(LoadedArchitecture, self.build())

    def load(self) -> Checkpoint:
        """Load the SAE."""
        return self.architecture.load(KitContext(self.new_folder(), catalog=self.catalog, role=self.plugin.name))

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The SAE, loaded once."""
        return self.load().sae

    def rows(self) -> Tensor:
        """Return activations of the SAE's width."""
        return planted_rows(100, self.sae.d_in)

    def exercise(self) -> object:
        """Read the header, the digests and the weights."""
        made = self.architecture
        return made.shape(), made.fingerprint(), self.load()


@check("read d_in and d_sae in `shape` from the header of the file that `load` reads")
def check_header_is_true(subject: LoadedSubject) -> None:
    """The sizes in the header are those of the SAE that is loaded."""
    shape = subject.architecture.shape()
    demand_equal("(d_in, d_sae)", (subject.sae.d_in, subject.sae.d_sae), tuple(shape))


@check("return the sha256 of every file that `load` reads")
def check_files_are_named(subject: LoadedSubject) -> None:
    """The certificate can name the files: there is a digest of one at least."""
    demand(bool(subject.architecture.fingerprint()), "no digest", "a digest for each file that is read")


@check("read the file as it is; draw nothing")
def check_loaded_twice(subject: LoadedSubject) -> None:
    """Loading a second time gives the same bits, finite and in fp32."""
    again = subject.load().sae
    for name, tensor in subject.sae.tensors.items():
        demand(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}", "torch.float32")
        demand(bool(torch.isfinite(tensor).all()), f"{name} is not finite", "finite tensors")
        demand_equal(f"{name}, loaded a second time", again.tensors[name], tensor)


@check("return an SAE whose rule selects each row of inference by itself")
def check_inference_ignores_batch_mates(subject: LoadedSubject) -> None:
    """In inference a row's codes do not depend on the other rows of the batch."""
    x = subject.rows()
    alone = torch.cat([subject.sae.encode(part).to_dense() for part in torch.split(x, 7)])
    demand_close("codes of rows in batches of 7", alone, subject.sae.encode(x).to_dense(), 1e-4, 1e-5)


@check("return an SAE whose rule can be exported, or give the plugins of its rule in `facts`")
def check_saved_again_is_the_same(subject: LoadedSubject) -> None:
    """The SAE that is published has the codes of the SAE that was loaded."""
    folder, x, facts = subject.new_folder(), subject.rows(), subject.load().facts
    subject.sae.save(folder, {**facts.plugins, "l0": facts.k if facts.plugins else 1.0})
    again = subject.catalog.load_sae(folder)
    demand_close("codes after saving", again.encode(x).to_dense(), subject.sae.encode(x).to_dense(), 1e-4, 1e-5)
