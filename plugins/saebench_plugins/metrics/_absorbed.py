"""A letter's main latents, and what other latents carry of its direction where these do not."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core import Codes, SparseAutoencoder

__all__ = ["absorbed", "letter_latents"]

_PENALTY: Final = 1.0
_OTHERS: Final = 3
_LEAST_COSINE: Final = 0.1
_LEAST_COSINE_FULL: Final = 0.025
_LEAST_SHARE: Final = 0.4


def letter_latents(
    codes: Codes, labels: Bool[Tensor, " words"], tested: Bool[Tensor, " words"], max_k: int, min_rise: float
) -> tuple[list[int], float]:
    """Return the latents that stand for a letter, and the F1 of a probe on them.

    Latents are taken by the size of their weight in a regression with an L1 penalty, one more as long as F1 on the
    test words rises by more than ``min_rise``.
    """
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    selection = codes.selection
    parts = (
        codes.values.to("cpu", torch.float64).numpy(),
        selection.cols.cpu().numpy(),
        selection.bounds.cpu().numpy(),
    )
    features = csr_array(parts, shape=(selection.n_rows, selection.d_sae))
    learn, check = (~tested).numpy(), tested.numpy()
    truth = labels.numpy()
    sparse = LogisticRegression(C=_PENALTY, l1_ratio=1.0, solver="liblinear", random_state=0, max_iter=1000)
    learned = features[learn]
    learned.indices, learned.indptr = learned.indices.astype("int32"), learned.indptr.astype("int32")
    weights = torch.from_numpy(sparse.fit(learned, truth[learn]).coef_[0])  # liblinear takes no longer ones
    ranked = weights.abs().sort(descending=True, stable=True).indices[:max_k].tolist()
    best = 0.0
    main: list[int] = ranked[:1]
    for k in range(1, len(ranked) + 1):
        columns = features[:, ranked[:k]].toarray()
        model = LogisticRegression(max_iter=1000).fit(columns[learn], truth[learn])
        f1 = float(f1_score(truth[check], model.predict(columns[check]), zero_division=0))
        if k > 1 and f1 <= best + min_rise:
            break
        main, best = ranked[:k], f1
    return main, best


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
