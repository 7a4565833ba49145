"""A letter's main latents, and what other latents carry of its direction where these do not."""

from __future__ import annotations

from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core import Codes, SparseAutoencoder

__all__ = ["absorbed", "letter_latents"]

_PENALTY: Final = 0.01
_UNPENALISED: Final = 100.0  # liblinear shrinks its intercept too, by one over this
_OTHERS: Final = 3
_LEAST_COSINE: Final = 0.1
_LEAST_COSINE_FULL: Final = 0.025
_LEAST_SHARE: Final = 0.4


def letter_latents(
    codes: Codes, labels: Bool[Tensor, " words"], tested: Bool[Tensor, " words"], max_k: int, min_rise: float
) -> tuple[list[int], float]:
    """Return the latents that stand for a letter, and the F1 of a probe on them.

    Latents that speak for the letter are taken by their weight in a regression with an L1 penalty, one more as long as
    F1 on the test words rises by more than ``min_rise``. Classes weigh alike, and codes are taken in units of their
    root mean square, so that the unit of the activations is of no account.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    features = _in_own_units(codes)
    learn, check = (~tested).numpy(), tested.numpy()
    truth = labels.numpy()
    ranked = _speaking_for(features[learn], truth[learn], max_k)
    best = 0.0
    main: list[int] = ranked[:1]
    for k in range(1, len(ranked) + 1):
        columns = features[:, ranked[:k]].toarray()
        model = LogisticRegression(max_iter=1000, class_weight="balanced").fit(columns[learn], truth[learn])
        f1 = float(f1_score(truth[check], model.predict(columns[check]), zero_division=0))
        if k > 1 and f1 <= best + min_rise:
            break
        main, best = ranked[:k], f1
    return main, best


def _in_own_units(codes: Codes) -> Any:
    """Return codes as a matrix of scipy, over their root mean square."""
    from scipy.sparse import csr_array

    selection = codes.selection
    values = codes.values.to("cpu", torch.float64)
    size = float(values.square().mean().sqrt()) if len(values) else 0.0
    parts = ((values / (size or 1.0)).numpy(), selection.cols.cpu().numpy(), selection.bounds.cpu().numpy())
    return csr_array(parts, shape=(selection.n_rows, selection.d_sae))


def _speaking_for(features: Any, truth: Any, most: int) -> list[int]:
    """Return latents by falling weight: the first in any case, others while their weight is above zero.

    The loss is the mean over words, where words with the letter weigh as much as all others, plus 0.01 of the weights'
    absolute sum (SAEBench's).
    """
    from sklearn.linear_model import LogisticRegression

    features.indices, features.indptr = features.indices.astype("int32"), features.indptr.astype("int32")
    model = LogisticRegression(
        C=1 / (_PENALTY * len(truth)),
        class_weight={False: 1.0, True: (~truth).sum() / truth.sum()},
        intercept_scaling=_UNPENALISED,
        l1_ratio=1.0,
        solver="liblinear",  # takes no longer indices
        random_state=0,
        max_iter=1000,
    )
    weights = torch.from_numpy(model.fit(features, truth).coef_[0])
    ranked = weights.sort(descending=True, stable=True)
    count = max(1, min(most, int((weights > 0).sum())))
    return [int(latent) for latent in ranked.indices[:count]]


def absorbed(
    sae: SparseAutoencoder,
    codes: Codes,
    rows: Float[Tensor, "words d_in"],
    main: list[int],
    direction: Float[Tensor, " d_in"],
    words: Int[Tensor, " some"],
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
    """Return for some words the share that is absorbed, and whether all of it is (Chanin et al. 2024).

    A latent's part of the direction w is its code times ``cos(d_j, w)``. Nothing is absorbed where the main latents
    carry as much as the activation has (``x w``), or where the three largest others, of cosine 0.1 and more, carry
    less than 40 % of it.
    """
    cosines = torch.nn.functional.cosine_similarity(sae.w_dec.cpu(), direction[None], dim=1)
    is_main = torch.zeros(sae.d_sae, dtype=torch.bool, device="cpu")
    is_main[torch.tensor(main, dtype=torch.int64, device="cpu")] = True
    bounds, cols, values = codes.selection.bounds.cpu(), codes.selection.cols.cpu(), codes.values.cpu()
    shares, full = [], []
    for word in words.tolist():
        own = slice(int(bounds[word]), int(bounds[word + 1]))
        fires = values[own] > 0
        latents, parts = cols[own][fires], (values[own] * cosines[cols[own]])[fires]
        whole = float(rows[word].to(torch.float32) @ direction)
        carried = float(parts[is_main[latents]].sum())
        others = parts[~is_main[latents] & (cosines[latents] >= _LEAST_COSINE) & (parts > 0)]
        largest = float(others.sort(descending=True).values[:_OTHERS].sum())
        if carried >= whole or largest < _LEAST_SHARE * whole:
            shares.append(0.0)
        elif carried <= 0:
            shares.append(1.0)
        else:
            taken = min(largest, whole - carried)
            shares.append(taken / (taken + carried))
        silent = not bool(is_main[latents].any())
        one = parts[cosines[latents] >= _LEAST_COSINE_FULL]
        full.append(float(silent and len(one) > 0 and float(one.max()) >= _LEAST_SHARE * whole and whole > 0))
    return torch.tensor(shares, device="cpu"), torch.tensor(full, device="cpu")
