"""Fitted Dictionary: what classical methods find in the same activations, as a row beside the SAEs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saebench_core import (
    ActivationReader,
    BatchTopK,
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    InputError,
    Recipe,
    Role,
    Shape,
    SparseAutoencoder,
    derive_seed,
    hookimpl,
    tensor_sha256,
)
from saebench_plugins.constraints._pursuit import Pursuit

_LOGGER: Final = logging.getLogger(__name__)
_BATCH: Final = 4096
_ROUNDING: Final = 1e-5
"""Share of a column's largest value below which differences are those of rounding."""


class FittedDictionaryConfig(ConstraintConfig):
    """Configuration of `FittedDictionary`."""

    type: Literal["fitted_dictionary"] = "fitted_dictionary"
    method: Literal["pca", "ica", "dictionary_learning"] = Field("pca", description="How directions are found.")
    rows: PositiveInt = Field(16384, description="Calibration rows that they are found in.")
    iterations: PositiveInt | None = Field(
        None, description="ICA: most iterations (200); dictionary learning: passes over the rows (1)."
    )
    penalty: PositiveFloat = Field(
        0.1, description="Dictionary learning: weight of the codes' absolute values, at rows of mean-square norm one."
    )

    @model_validator(mode="after")
    def _read(self) -> FittedDictionaryConfig:
        fields = FittedDictionaryConfig.model_fields
        unread = {"pca": ("iterations", "penalty"), "ica": ("penalty",)}.get(self.method, ())
        for key in unread:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"method {self.method} does not read {key}; leave it out, or choose another method")
        return self


class Fitted(NamedTuple):
    """Directions, and what is projected on.

    Attributes:
        decoder: unit-norm rows.
        encoder: a row for each.
    """

    decoder: Float[Tensor, "found d_in"]
    encoder: Float[Tensor, "found d_in"]


class FittedDictionary(Constraint):
    """PCA, ICA or dictionary learning of scikit-learn, with codes at the target L0; no gradient step.

    PCA and ICA have two latents a component, one for each sign, and keep the largest projections; latents beyond that
    never fire and repeat directions, so that scores of directions count nothing new. Dictionary learning starts at the
    drawn directions, and its codes come from matching pursuit, as it has no encoder.
    """

    reference: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    def __init__(self, config: FittedDictionaryConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Give the rule codes that meet the target L0 without training."""
        recipe = replace(recipe, decoder_norm="unit", start_norm=1.0)
        if self.config.method == "dictionary_learning":
            return replace(recipe, rule=Pursuit(max(1, round(shape.l0))))
        if recipe.rule.meets_l0 or recipe.rule.calibrated() is not None:
            return recipe
        return replace(recipe, rule=BatchTopK(shape.l0))

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: of the draw nothing is kept."""
        return frozenset()

    def calibrate(
        self, sae: SparseAutoencoder, twin: SparseAutoencoder | None, rows: ActivationReader
    ) -> SparseAutoencoder:
        """Fit the directions to held-out rows."""
        x = _first(rows, self.config.rows).cpu().numpy()
        mean = x.mean(axis=0)
        centred = x - mean
        centred[:, np.abs(centred).max(axis=0) <= _ROUNDING * np.abs(x).max(axis=0)] = 0.0  # rounding is no variance
        if not centred.any():
            method = self.config.method
            raise InputError(f"{method} needs rows that vary; the {x.shape[0]} calibration rows are all the same")
        fit = {"pca": self._pca, "ica": self._ica, "dictionary_learning": self._learned}[self.config.method]
        found = _filled(fit(centred, sae), sae.d_sae)
        tensors = {
            "W_enc": found.encoder.T,
            "W_dec": found.decoder,
            "b_dec": torch.from_numpy(mean),
            sae.rule.encoder_bias: torch.zeros_like(sae.encoder_bias),
        }
        for name, tensor in tensors.items():
            sae.tensors[name] = tensor.to(sae.device, torch.float32, memory_format=torch.contiguous_format)
        return SparseAutoencoder(sae.tensors, sae.rule, "b_dec")

    def _pca(self, x: np.ndarray[Any, Any], sae: SparseAutoencoder) -> Fitted:
        from sklearn.decomposition import PCA

        count = min(max(1, sae.d_sae // 2), *x.shape)
        components = torch.from_numpy(_quietly(PCA(count, svd_solver="covariance_eigh").fit, x).components_)
        return _both_signs(Fitted(components, components))

    def _ica(self, x: np.ndarray[Any, Any], sae: SparseAutoencoder) -> Fitted:
        from sklearn.decomposition import FastICA

        count = min(max(1, sae.d_sae // 2), int(np.linalg.matrix_rank(x)))  # what has no variance cannot be whitened
        most = self.config.iterations or 200
        model = FastICA(count, whiten="unit-variance", max_iter=most, random_state=_seed(sae))
        fitted = _quietly(model.fit, x)
        mixing = torch.from_numpy(fitted.mixing_.T)
        norms = mixing.norm(dim=1, keepdim=True)
        return _both_signs(Fitted(mixing / norms, torch.from_numpy(fitted.components_) * norms))

    def _learned(self, x: np.ndarray[Any, Any], sae: SparseAutoencoder) -> Fitted:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        scale = float(np.sqrt(np.square(x).sum(axis=1).mean())) or 1.0
        model = MiniBatchDictionaryLearning(
            n_components=sae.d_sae,
            alpha=self.config.penalty,
            max_iter=self.config.iterations or 1,
            batch_size=256,
            fit_algorithm="cd",
            positive_code=True,
            dict_init=sae.w_dec.double().cpu().numpy(),
            random_state=_seed(sae),
        )
        atoms = torch.from_numpy(_quietly(model.fit, x.astype(np.float64) / scale).components_)
        atoms = torch.nn.functional.normalize(atoms, dim=1)
        return Fitted(atoms, atoms)


def _first(rows: ActivationReader, count: int) -> Float[Tensor, "rows d_in"]:
    parts, left = [], count
    for batch in rows.batches(_BATCH):
        parts.append(batch[:left])
        left -= batch.shape[0]
        if left <= 0:
            break
    return torch.cat(parts)


def _seed(sae: SparseAutoencoder) -> int:
    """Return a seed that the draw decides, so that twins of a seed share it."""
    return derive_seed("fitted dictionary", tensor_sha256(sae.w_dec)) % (1 << 32)


def _quietly(fit: Callable[[Any], Any], x: np.ndarray[Any, Any]) -> Any:
    """Fit; what did not converge within its iterations is compared as it is, like an SAE, and the log says so."""
    state = np.random.get_state()  # noqa: NPY002 - scikit-learn's coordinate descent draws a seed there, unused
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fitted = fit(x)
        for warning in told:
            _LOGGER.warning("%s", warning.message)
        return fitted
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _both_signs(found: Fitted) -> Fitted:
    return Fitted(torch.cat([found.decoder, -found.decoder]), torch.cat([found.encoder, -found.encoder]))


def _filled(found: Fitted, d_sae: int) -> Fitted:
    """Bring the directions to ``d_sae``: the surplus repeats directions and has no encoder, so it never fires."""
    count = found.decoder.shape[0]
    if count >= d_sae:
        return Fitted(found.decoder[:d_sae], found.encoder[:d_sae])
    repeated = torch.arange(d_sae - count, device="cpu") % count
    return Fitted(
        torch.cat([found.decoder, found.decoder[repeated]]),
        torch.cat([found.encoder, torch.zeros_like(found.encoder[repeated])]),
    )


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``fitted_dictionary``."""
    return [
        ConstraintSpec(
            config=FittedDictionaryConfig,
            build=FittedDictionary,
            summary="PCA, ICA or dictionary learning on the same activations, with codes at the target L0",
            source="scikit-learn",
            depends=("scikit-learn",),
        )
    ]
