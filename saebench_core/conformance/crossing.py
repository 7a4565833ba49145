"""Every constraint on every architecture, strangers' included: what is frozen keeps its bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from saebench_core.catalog import Plugin
from saebench_core.conformance.bench import Made, Pair, raw_rows, settings
from saebench_core.conformance.checks import ConformanceError, NotCheckable, demand, demand_close, demand_equal
from saebench_core.conformance.strangers import FREE
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec
from saebench_core.interfaces.constraint import ConstraintConfig
from saebench_core.interfaces.entry import EntryConfig
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.certificate import frozen_after
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee

__all__ = ["demand_kept", "demand_roles", "demand_within", "free_pair", "hold", "hold_together", "pairs", "twin_of"]

STEPS = 10
_SHOWN = 3


def pairs(architectures: Mapping[Plugin, EntryConfig], constraints: Mapping[Plugin, EntryConfig]) -> list[Pair]:
    """Return every pair; an architecture that is loaded is not trained, and in none."""
    return [
        Pair(architecture, constraint, cast(ArchitectureConfig, entry), cast(ConstraintConfig, held))
        for architecture, entry in architectures.items()
        if isinstance(architecture.spec, ArchitectureSpec)
        for constraint, held in constraints.items()
    ]


def hold_together(listed: Sequence[Pair], folder: Callable[[], Path], left_out: Sequence[str] = ()) -> str:
    """Try pairs one after the other, and tell of all that do not hold.

    Args:
        listed: the pairs.
        folder: makes an empty one.
        left_out: names of plugins that were not tried.

    Returns:
        What was left out, in words; nothing where all was tried.

    Raises:
        ConformanceError: naming the pairs.
        NotCheckable: if there is no pair.
    """
    untried = f"not tried, as they need keys: {', '.join(left_out)}" if left_out else ""
    if not listed:
        raise NotCheckable(untried or "nothing is installed to try it with")
    broken: list[str] = []
    twins: dict[Plugin, SparseAutoencoder] = {}
    for pair in listed:
        try:
            if pair.architecture not in twins:
                twins[pair.architecture] = twin_of(pair)
            hold(pair, twins[pair.architecture], folder())
        except ConformanceError as error:
            broken.append(f"{pair.label}: {error.found} (allowed: {error.allowed})")
        except Exception as error:  # plugins may raise anything
            broken.append(f"{pair.label}: {type(error).__name__}: {' '.join(str(error).split())}")
    more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    allowed = f"what holds of all {len(listed)} pairs"
    demand(not broken, "; ".join(broken[:_SHOWN]) + more, f"{allowed}; {untried}" if untried else allowed)
    return untried


def free_pair(pair: Pair) -> Pair:
    """Return the pair's architecture without a constraint, but with its init."""
    free = FREE.spec.config.model_validate({"init": pair.held.init})
    return Pair(pair.architecture, FREE, pair.entry, cast(ConstraintConfig, free))


def twin_of(pair: Pair, training: TrainingSettings | None = None) -> SparseAutoencoder:
    """Return an SAE of the pair's architecture that was trained without any constraint."""
    training = training or settings(60)
    made = free_pair(pair).made(training)
    made.run(0, training.total_steps)
    return made.finish(None)


def hold(pair: Pair, twin: SparseAutoencoder, folder: Path) -> None:
    """Train a few steps of a pair, finish, save and load it.

    Raises:
        ConformanceError: for the first thing that does not hold.
    """
    made = pair.made(settings(STEPS, lr=0.02, weight_decay=0.5))
    trainee = made.trainee
    demand_roles(made)
    before = {name: tensor.detach().clone() for name, tensor in trainee.sae.tensors.items()}
    made.run(0, STEPS, demand_within)
    demand_kept(trainee, before, STEPS)
    for name, tensor in trainee.sae.tensors.items():
        demand(bool(torch.isfinite(tensor).all()), f"{name} is not finite", "finite tensors")
    certified, sae = made.end(twin if made.constraint.needs else None)
    demand_kept(trainee, before, STEPS, certified)
    pair.save(sae, folder)
    x = raw_rows()[:100]
    demand_close("codes after saving", pair.load(folder).encode(x).to_dense(), sae.encode(x).to_dense(), 1e-4, 1e-5)


def demand_kept(
    trainee: Trainee, before: Mapping[str, Tensor], steps: int, certified: SparseAutoencoder | None = None
) -> None:
    """Refuse frozen tensors that moved, in training or, where the ended SAE is given, on the way to it.

    Raises:
        ConformanceError: with the first of them.
    """
    where = f"after {steps} steps" if certified is None else "in the finished SAE"
    last = trainee.sae if certified is None else certified
    for name, now in frozen_after(trainee.sae, last, trainee.frozen).items():
        demand_equal(f"the frozen {name} {where}", now.detach(), before[name])


def demand_roles(made: Made) -> None:
    """Refuse names that no tensor has, and a role of which some tensors are frozen and others not.

    Raises:
        ConformanceError: with the names.
    """
    trainee = made.trainee
    roles = {name: info.role for name, info in trainee.sae.info.items()}
    frozen = made.constraint.frozen(roles, trainee.recipe)
    unknown = sorted(frozen - set(roles))
    demand(not unknown, f"frozen tensors that do not exist: {unknown}", f"names among {sorted(roles)}")
    for role in ("encoder", "decoder"):
        there = {name for name, other in roles.items() if other == role}
        left = sorted(there - frozen)
        demand(
            not (there & frozen and left),
            f"{sorted(there & frozen)} of role {role} are frozen, {left} are not",
            "all tensors of a role, or none",
        )


def demand_within(trainee: Trainee) -> None:
    """Refuse an SAE that a further projection would move: the last step has left it outside the allowed set.

    Raises:
        ConformanceError: with how far it moves.
    """
    with torch.no_grad():
        before = {name: tensor.detach().clone() for name, tensor in trainee.sae.tensors.items()}
        trainee.constraint.project(trainee.sae, trainee.start)
        for name, tensor in before.items():
            now = trainee.sae.tensors[name]
            demand_close(f"{name}, projected once more", now.detach(), tensor, 1e-5, 2e-6)
            now.copy_(tensor)
