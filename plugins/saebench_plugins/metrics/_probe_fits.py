"""How features are chosen and probes fitted: the paper's protocol, and that of sae-probes."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Literal, NamedTuple, final

import torch
from jaxtyping import Bool
from torch import Tensor

from saebench_core import named_generator
from saebench_plugins.metrics._probes import Probe, Sizes

__all__ = ["Features", "Fit", "Protocol", "ProtocolName", "protocol_of"]

ProtocolName = Literal["paper", "sae_probes", "sae_probes_l1"]
_STEPS: Final = 1000


class Fit(NamedTuple):
    """Test accuracy, area under the ROC curve and weighted F1; whether the optimiser ended by itself."""

    accuracy: float
    auc: float
    f1: float
    converged: bool


class Features(NamedTuple):
    """Features of a probe's items: arrays ``(items, features)`` of numpy, or scipy's sparse ones in rows."""

    train: Any
    test: Any

    @classmethod
    def of(cls, every: Any, probe: Probe) -> Features:
        """Take a probe's items out of all."""
        return cls(*(_rows(every, items) for items in (probe.train, probe.test)))

    def columns(self, features: Sequence[int]) -> Features:
        """Return a few features, dense."""
        return Features(*(_dense(part[:, list(features)]) for part in self))


def _rows(every: Any, items: Tensor) -> Any:
    part = every[items.numpy()]
    if hasattr(part, "indptr"):  # solvers with an L1 penalty take no longer indices
        part.indices, part.indptr = part.indices.astype("int32"), part.indptr.astype("int32")
    return part


def _dense(part: Any) -> Any:
    return part.toarray() if hasattr(part, "toarray") else part


class Protocol(ABC):
    """One way to make features of tokens, to choose among them and to fit.

    Attributes:
        train_size: training items of a probe.
        test_size: test items of a probe.
        max_tokens: tokens of a text that are read.
        last_token: an item is its last token, of a text cut on the left; else the mean over its tokens.
    """

    train_size: ClassVar[int]
    test_size: ClassVar[int]
    max_tokens: ClassVar[int]
    last_token: ClassVar[bool]

    @abstractmethod
    def scale(self, train: Any) -> Any:
        """Return what each feature is divided by before means are compared."""

    @abstractmethod
    def fit(self, features: Features, labels: Any, truth: Any, generator: torch.Generator) -> Fit:
        """Fit ``labels`` to the training items, and test against ``truth``."""

    @abstractmethod
    def tested(self, count: int, sizes: Sizes) -> int:
        """Return how many of a class's ``count`` items are kept for tests."""

    def ranked(self, train: Any, labels: Bool[Tensor, " train"], count: int) -> list[int]:
        """Return the features with the largest absolute difference of means; of equal ones the first."""
        positive = labels.to(torch.float64)
        weights = positive / positive.sum() - (1 - positive) / (1 - positive).sum()
        size = abs(train.T @ weights.numpy()) / self.scale(train)
        return torch.from_numpy(size).sort(descending=True, stable=True).indices[:count].tolist()

    def fitted(self, features: Features, probe: Probe, labels: Bool[Tensor, " train"], seed: int) -> Fit:
        """Fit a probe, with its own labels or one order of its permuted ones."""
        generator = named_generator(seed, "sparse_probing validation", probe.task, probe.label)
        return self.fit(features, labels.numpy(), probe.test_labels.numpy(), generator)

    def fit_selected(
        self, features: Features, probe: Probe, labels: Bool[Tensor, " train"], k: Sequence[int], seed: int
    ) -> tuple[list[Fit], int]:
        """Select features by these labels, and fit a probe for each number of them; also return the first feature."""
        rank = self.ranked(features.train, labels, max(k))
        return [self.fitted(features.columns(rank[:count]), probe, labels, seed) for count in k], rank[0]


@final
class _Paper(Protocol):
    """Mean over tokens, raw differences, logistic regression with L2 and C = 1 (paper section 4.2; SAEBench)."""

    train_size = 4000
    test_size = 1000
    max_tokens = 128
    last_token = False

    def tested(self, count: int, sizes: Sizes) -> int:
        return round(count * sizes.test / (sizes.train + sizes.test))

    def scale(self, train: Any) -> Any:
        return 1.0

    def fit(self, features: Features, labels: Any, truth: Any, generator: torch.Generator) -> Fit:
        return _tested(_regression(features.train, labels, 1.0, "l2"), features.test, truth)


class _SaeProbes(Protocol):
    """Last token, differences in units of a latent's mean activity, C chosen by AUC on a part of the training set.

    The part is the last fifth, at most 100, of the training items in random order; below 128 items six folds, below 13
    every pair (Kantamneni et al. 2025; the package sae-probes).
    """

    train_size = 1024
    test_size = 5000
    max_tokens = 1024
    last_token = True
    penalty: ClassVar[Literal["l1", "l2"]]
    strengths: ClassVar = tuple(10 ** (5 - 10 * step / 9) for step in range(10))
    fewest_tested: ClassVar = 50

    def tested(self, count: int, sizes: Sizes) -> int:
        """Leave to tests what training does not need, at least 50 items or half."""
        needed = math.ceil(sizes.train * max(sizes.positive_share, 1 - sizes.positive_share))
        return max(count - needed, min(self.fewest_tested, count // 2))

    def scale(self, train: Any) -> Any:
        active = (train != 0).sum(axis=0)
        return abs(train).sum(axis=0) / active.clip(min=1) + 1e-6

    def fit(self, features: Features, labels: Any, truth: Any, generator: torch.Generator) -> Fit:
        order = torch.randperm(len(labels), generator=generator, device="cpu").numpy()
        train, labels = features.train[order], labels[order]
        strength = self._best(train, labels) if len(labels) > 3 else 1.0
        return _tested(_regression(train, labels, strength, self.penalty), features.test, truth)

    def _best(self, train: Any, labels: Any) -> float:
        """Return the strength with the largest mean AUC over the validation parts; of equal ones the largest."""
        splits = list(_validation(labels))
        scores = [sum(self._auc(train, labels, split, strength) for split in splits) for strength in self.strengths]
        return self.strengths[scores.index(max(scores))]

    def _auc(self, train: Any, labels: Any, split: tuple[Any, Any], strength: float) -> float:
        learn, check = split
        if len(set(labels[learn].tolist())) < 2:
            return 0.5
        return _area(_regression(train[learn], labels[learn], strength, self.penalty), train[check], labels[check])


@final
class _SaeProbesL2(_SaeProbes):
    penalty = "l2"


@final
class _SaeProbesL1(_SaeProbes):
    penalty = "l1"


def protocol_of(name: ProtocolName) -> Protocol:
    """Return a protocol by its name."""
    return _PROTOCOLS[name]


_PROTOCOLS: Final[Mapping[ProtocolName, Protocol]] = {
    "paper": _Paper(),
    "sae_probes": _SaeProbesL2(),
    "sae_probes_l1": _SaeProbesL1(),
}


def _validation(labels: Any) -> Iterator[tuple[Any, Any]]:
    """Yield training and validation places; only such with both classes to validate on."""
    from sklearn.model_selection import LeavePOut, StratifiedKFold

    count = len(labels)
    if count >= 128:
        size = min(count // 5, 100)
        yield slice(0, count - size), slice(count - size, count)
        return
    folds = LeavePOut(2) if count <= 12 else StratifiedKFold(6, shuffle=True, random_state=0)
    with _quiet():
        for learn, check in folds.split(labels, labels):
            if len(set(labels[check].tolist())) == 2:
                yield learn, check


def _regression(train: Any, labels: Any, strength: float, penalty: Literal["l1", "l2"]) -> Any:
    """Fit scikit-learn's logistic regression, at most 1000 steps."""
    from sklearn.linear_model import LogisticRegression

    if penalty == "l1":
        model = LogisticRegression(C=strength, l1_ratio=1.0, solver="saga", random_state=0, max_iter=_STEPS)
    else:
        model = LogisticRegression(C=strength, max_iter=_STEPS)
    with _quiet():
        return model.fit(train, labels)


def _tested(model: Any, test: Any, truth: Any) -> Fit:
    from sklearn.metrics import f1_score

    found = model.predict(test)
    f1 = float(f1_score(truth, found, average="weighted", zero_division=0))
    converged = bool(model.n_iter_.max() < _STEPS)
    return Fit(float((found == truth).mean()), _area(model, test, truth), f1, converged)


def _area(model: Any, test: Any, truth: Any) -> float:
    """Return the area under the ROC curve; one half where there is one class only."""
    from sklearn.metrics import roc_auc_score

    if truth.all() or not truth.any():
        return 0.5
    return float(roc_auc_score(truth, model.decision_function(test)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings of the optimiser, which `Fit.converged` tells, and of classes with fewer items than folds."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield
