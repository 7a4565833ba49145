"""The one sparse autoencoder: tensors and a selection rule; saved as SAELens reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core._version import __version__
from saebench_core.errors import InputError
from saebench_core.kernels import Codes, PreActivations, Screen, Selection, decode, encode_at
from saebench_core.objectives import Step
from saebench_core.rules import Role, Rule, TensorInfo
from saebench_core.sae_files import inference_rule, read_config, read_tensors, write_sae

__all__ = ["Centring", "SparseAutoencoder", "inference_rule", "read_config"]

Centring = Literal["b_dec", "fixed", "none"]
"""What is subtracted before encoding: ``b_dec``, a vector that is not trained, or nothing."""

_CHUNK_ENTRIES = 1 << 25
_BASE: dict[str, TensorInfo] = {
    "W_enc": TensorInfo("encoder", ("d_in", "d_sae"), scales=False),
    "W_dec": TensorInfo("decoder", ("d_sae", "d_in"), scales=False),
    "b_dec": TensorInfo("bias", ("d_in",)),
}
_ENCODER_BIAS: Final = TensorInfo("bias", ("d_sae",))
_CENTRE = TensorInfo("other", ("d_in",), estimated=True)


def base_tensors(rule: Rule) -> dict[str, TensorInfo]:
    """Name the tensors that every SAE has; the encoder bias goes by the rule's name for it."""
    return {**_BASE, rule.encoder_bias: _ENCODER_BIAS}


@final
class SparseAutoencoder:
    """``z = rule((x - centre) W_enc + b_enc)``, ``x_hat = z W_dec + b_dec`` (paper eq. 2).

    Attributes:
        tensors: ``W_enc (d_in, d_sae)``, the encoder bias (``b_enc``), ``W_dec (d_sae, d_in)``, ``b_dec``, those of
            the rule, and ``centre (d_in,)`` where the centring is ``fixed``.
        rule: how pre-activations become codes.
        centring: what is subtracted before encoding.
    """

    def __init__(self, tensors: Mapping[str, Tensor], rule: Rule, centring: Centring = "b_dec") -> None:
        own = {**rule.tensors(), **({"centre": _CENTRE} if centring == "fixed" else {})}
        expected = {**base_tensors(rule), **own}
        if set(tensors) != set(expected):
            raise InputError(
                f"an SAE with {type(rule).__name__} has the tensors {sorted(expected)}, not {sorted(tensors)}"
            )
        self.info: Mapping[str, TensorInfo] = expected
        self.tensors = dict(tensors)
        self.rule = rule
        self.centring = centring
        self._check_shapes()

    def _check_shapes(self) -> None:
        if self.tensors["W_enc"].ndim != 2:
            raise InputError(f"W_enc has the shape {tuple(self.tensors['W_enc'].shape)}, expected (d_in, d_sae)")
        sizes = dict(zip(("d_in", "d_sae"), self.tensors["W_enc"].shape, strict=True))
        for name, info in self.info.items():
            shape = tuple(sizes[letter] for letter in info.shape)
            if tuple(self.tensors[name].shape) != shape:
                raise InputError(f"{name} has the shape {tuple(self.tensors[name].shape)}, expected {shape}")

    @classmethod
    def start(
        cls,
        w_enc: Float[Tensor, "d_in d_sae"],
        w_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        rule: Rule,
        centring: Centring,
    ) -> SparseAutoencoder:
        """Return an SAE with these weights, zero ``b_enc`` and the rule's own starting values.

        The encoder is copied so that one latent's vector lies together in memory.
        """
        d_sae, d_in = w_dec.shape
        tensors = {
            "W_enc": w_enc.T.clone(memory_format=torch.contiguous_format).T,
            rule.encoder_bias: w_dec.new_zeros(d_sae),
            "W_dec": w_dec.clone(memory_format=torch.contiguous_format),
            "b_dec": b_dec.clone(),
        }
        for name, info in rule.tensors().items():
            shape = [{"d_in": d_in, "d_sae": d_sae}[letter] for letter in info.shape]
            tensors[name] = w_dec.new_full(shape, info.start)
        if centring == "fixed":
            tensors["centre"] = b_dec.clone()
        return cls(tensors, rule, centring)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.tensors["W_enc"].shape[0])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.tensors["W_enc"].shape[1])

    @property
    def w_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder."""
        return self.tensors["W_enc"]

    @property
    def w_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder."""
        return self.tensors["W_dec"]

    @property
    def encoder_bias(self) -> Float[Tensor, " d_sae"]:
        """What is added to the pre-activations that entries are selected by."""
        return self.tensors[self.rule.encoder_bias]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tensors["W_dec"].device

    def role(self, name: str) -> Role:
        """Return the role of a tensor."""
        return self.info[name].role

    def centre(self) -> Float[Tensor, " d_in"]:
        """Return what is subtracted before encoding."""
        if self.centring == "none":
            return torch.zeros_like(self.tensors["b_dec"])
        return self.tensors["b_dec" if self.centring == "b_dec" else "centre"]

    def to(self, device: torch.device) -> SparseAutoencoder:
        """Return the SAE on that device; tensors that are there already are shared."""
        return SparseAutoencoder({k: v.to(device) for k, v in self.tensors.items()}, self.rule, self.centring)

    def pre_activations(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Return the dense pre-activations, without gradients; for a few rows at a time."""
        with torch.no_grad():
            return torch.addmm(self.encoder_bias, x - self.centre(), self.w_enc)

    def chunks(self, x: Float[Tensor, "rows d_in"]) -> Iterator[Float[Tensor, "part d_in"]]:
        """Cut a batch so that dense pre-activations stay small."""
        yield from torch.split(x, max(1, _CHUNK_ENTRIES // self.d_sae))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        """Return the codes of raw activations in inference mode, without gradients."""
        rows, cols, values, seen = [], [], [], 0
        for part in self.chunks(x):
            pre = PreActivations(part - self.centre(), self.w_enc, self.encoder_bias, dense=True)
            selection, at = self.rule.select_inference(pre, self.tensors)
            values.append(self.rule.activate(at, selection, self.tensors))
            rows.append(selection.rows + seen)
            cols.append(selection.cols)
            seen += part.shape[0]
        return Codes(Selection(torch.cat(rows), torch.cat(cols), seen, self.d_sae), torch.cat(values))

    def decode(self, codes: Codes) -> Float[Tensor, "rows d_in"]:
        """Return the reconstruction of codes; gradients flow to their values."""
        return decode(codes.values, self.w_dec, codes.selection) + self.tensors["b_dec"]

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Return ``decode(encode(x))``."""
        return self.decode(self.encode(x))

    def training_step(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_in"],
        dead: Bool[Tensor, " d_sae"],
        screen: Screen = "fp32",
        dense: bool = True,
        progress: float = 0.0,
        number: int = 0,
        batch_l0: float | None = None,
    ) -> Step:
        """Run the SAE in training mode, with gradients to every tensor that wants one.

        Args:
            x: activations in training space.
            target: what is to be reconstructed.
            dead: latents that have not fired within the window.
            screen: format that finds candidates for the selection; it changes the speed alone.
            dense: select from plain fp32 products, for selections of a large share.
            progress: share of the training that has passed, for terms that change with it.
            number: the step's, for terms that draw at random.
            batch_l0: mean L0 of the whole batch, where ``x`` is a part of it.
        """
        tensors = self.tensors
        with torch.no_grad():
            centred = x - self.centre()
            pre = PreActivations(centred, tensors["W_enc"], self.encoder_bias, screen, dense)
            selected = self.rule.select_training(pre, tensors)
        selection = selected.selection
        at = encode_at(x, self.centre(), tensors["W_enc"], self.encoder_bias, selected)
        values = self.rule.activate(at, selection, tensors)
        reconstruction = decode(values, tensors["W_dec"], selection) + tensors["b_dec"]
        return Step(
            x,
            centred,
            target,
            tensors,
            self.rule,
            selection,
            at,
            values,
            reconstruction,
            dead,
            progress,
            number,
            batch_l0,
        )

    def folded(self, scale: float) -> SparseAutoencoder:
        """Return the same SAE acting on raw activations, for one trained on activations divided by ``scale``.

        Biases and thresholds are multiplied; a fixed centre goes into ``b_enc``.
        """
        with torch.no_grad():
            tensors = {
                name: (tensor * scale if self.info[name].scales else tensor).detach().clone()
                for name, tensor in self.tensors.items()
            }
            if self.centring != "fixed":
                return SparseAutoencoder(tensors, self.rule, self.centring)
            centre = tensors.pop("centre")
            offset = -(centre @ tensors["W_enc"])
            own = self.rule.shifted(tensors, offset)
            bias = {self.rule.encoder_bias: tensors[self.rule.encoder_bias] + offset}
            return SparseAutoencoder({**tensors, **bias, **own}, self.rule, "none")

    @torch.no_grad()
    def unit_decoder(self) -> SparseAutoencoder:
        """Return the same function with decoder rows of norm one, the codes multiplied by the norms.

        It is this SAE itself where the rule has no form for that: `TopK` compares latents, so their scale matters.
        """
        norms = self.w_dec.norm(dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        found = self.rule.rescaled(self.tensors, norms)
        if found is None:
            return self
        rule, own = found
        kept = {name: tensor for name, tensor in self.tensors.items() if name not in self.rule.tensors()}
        scaled = {"W_enc": self.w_enc * norms, "W_dec": self.w_dec / norms[:, None]}
        scaled[self.rule.encoder_bias] = self.encoder_bias * norms
        return SparseAutoencoder(kept | scaled | dict(own), rule, self.centring)

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` as SAELens (6) reads them.

        Args:
            path: folder, made if it is missing.
            metadata: kept under ``metadata`` in the configuration.
        """
        if self.centring == "fixed":
            raise InputError("fold the SAE before saving it: a fixed centre has no place in the file format")
        export = self.rule.export(self.tensors)
        config = {
            "architecture": export.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "apply_b_dec_to_input": self.centring == "b_dec",
            **export.config,
            "metadata": {"saebench_version": __version__, **metadata},
        }
        write_sae(path, config, {name: self.tensors[name] for name in base_tensors(self.rule)} | dict(export.tensors))

    @classmethod
    def load(cls, path: Path, rule: Rule | None = None, device: str = "cpu") -> SparseAutoencoder:
        """Read an SAE that was written by `save`, or by SAELens in the same format.

        Args:
            path: folder with both files.
            rule: the selection rule; by default the one that the configuration's architecture names.
            device: where to put the tensors.

        Raises:
            InputError: if a file is missing or damaged, or the architecture needs a plugin's rule.
        """
        config = read_config(path)
        tensors = read_tensors(path, config, device)
        centring: Centring = "b_dec" if config.get("apply_b_dec_to_input", True) else "none"
        return cls(tensors, rule or inference_rule(config), centring)
