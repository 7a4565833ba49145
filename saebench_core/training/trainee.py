"""One SAE in training: its tensors, optimiser, controller and counters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core.errors import SaebenchError
from saebench_core.interfaces.architecture import Recipe, Shape
from saebench_core.interfaces.constraint import Constraint, Start
from saebench_core.kernels import DenseSwitch, fast_screen
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.controllers import Steering
from saebench_core.training.optimiser import Stepper, blocks, in_memory_order, make_optimiser
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.tally import Tally

__all__ = ["Trainee", "TrainingDivergedError"]

_PART_ENTRIES: Final = 1 << 25
"""Entries of a part of a batch while dense matrices are made of it."""
_THRESHOLD_FROM: Final = 0.1
"""Share of the steps after which the running threshold estimate starts."""


class TrainingDivergedError(SaebenchError):
    """A loss is no finite number any more."""


@final
@dataclass
class StepReport:
    """Numbers of the last step, for curves."""

    loss: float = float("nan")
    l0: float = float("nan")
    grad_norm: float = float("nan")
    explained_variance: float = float("nan")
    dead_share: float = 0.0


@final
class Trainee:
    """One SAE with all that its training changes.

    Attributes:
        sae: tensors in training space; those that are trained want gradients.
        start: weights as they were drawn.
        frozen: names of the tensors that stay out of the optimiser.
        steering: controllers of the weights of penalties.
        screen: format that finds candidates of selections.
        report: numbers of the last step.
        threshold_average: running estimate of the inference threshold, None before it starts.
    """

    def __init__(
        self,
        recipe: Recipe,
        constraint: Constraint,
        start: Start,
        b_dec: Tensor,
        settings: TrainingSettings,
        shape: Shape,
    ) -> None:
        self.recipe = recipe
        self.constraint = constraint
        self.settings = settings
        self.shape = shape
        self.start = start
        weights = (start.w_enc, start.w_dec)
        w_enc, w_dec = (weight * recipe.start_norm if recipe.start_norm != 1 else weight for weight in weights)
        self.sae = SparseAutoencoder.start(w_enc, w_dec, b_dec, recipe.rule, recipe.centring)
        roles = {name: info.role for name, info in self.sae.info.items()}
        estimated = {name for name, info in self.sae.info.items() if info.estimated}
        self.frozen = constraint.frozen(roles, recipe) & set(roles) - estimated
        if settings.encoder_gain != 1 and constraint.trains and "W_enc" not in self.frozen:
            self.sae.w_enc.mul_(settings.encoder_gain)  # a frozen one would never get its length back
            self.start = Start(start.w_enc * settings.encoder_gain, start.w_dec)
        self._trained = {
            name: tensor.requires_grad_()
            for name, tensor in self.sae.tensors.items()
            if constraint.trains and name not in self.frozen | estimated
        }
        self._steppers = [Stepper.of(tensor) for tensor in self._trained.values()]
        self._optimiser = make_optimiser([s.view for s in self._steppers], settings) if constraint.trains else None
        self.steering = Steering(recipe.objective, settings.total_steps)
        self._silent_rows = torch.zeros(shape.d_sae, dtype=torch.int64, device=b_dec.device)
        self._dense = DenseSwitch()
        self.screen = fast_screen(b_dec.device.type)
        self.report = StepReport()
        self.threshold_average: float | None = None

    @property
    def trains_decoder(self) -> bool:
        """Whether the decoder's directions move."""
        return "W_dec" in self._trained

    @property
    def unit_decoder(self) -> bool:
        """Whether the decoder's rows are brought back to norm one after a step."""
        return self.trains_decoder and self.recipe.decoder_norm == "unit"

    @property
    def folds_norms(self) -> bool:
        """Whether the decoder's norms go into the codes at the end; a frozen encoder keeps its bits."""
        return self.recipe.decoder_norm == "free" and "W_enc" not in self.frozen

    def step(self, x: Float[Tensor, "rows d_in"], number: int) -> None:
        """Take one optimiser step on a scaled batch.

        Args:
            x: activations in training space.
            number: step, counted from 0.

        Raises:
            TrainingDivergedError: if the loss or its gradient is not finite.
        """
        if self._optimiser is None:
            return
        tally = self._accumulate(x, number)
        if not math.isfinite(tally.loss):
            raise TrainingDivergedError(f"the loss became {tally.loss} at step {number}; try a smaller learning rate")
        grad_norm = self._shape_gradients()
        if not math.isfinite(grad_norm):  # a step with it would spoil every tensor, and no later loss may tell
            raise TrainingDivergedError(
                f"the gradient became {grad_norm} at step {number}; try a smaller learning rate"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.lr * self.settings.lr_factor(number)
        for stepper in self._steppers:
            stepper.hand_over()
        self._optimiser.step()
        with torch.no_grad():
            self._after_step(tally, number)
            self._note(tally, x, grad_norm)

    def _parts(self, x: Float[Tensor, "rows d_in"]) -> Sequence[Tensor]:
        """Cut a batch where a large share of its entries is selected, so that nothing dense of all of it is held."""
        if not (self._dense.now and self.recipe.rule.by_row and self.recipe.objective.by_row):
            return [x]
        return torch.split(x, max(1, _PART_ENTRIES // self.shape.d_sae))

    def _accumulate(self, x: Float[Tensor, "rows d_in"], number: int) -> Tally:
        """Add up the gradients of the loss over the parts of a batch."""
        dead = self._silent_rows >= self.settings.dead_window
        progress, objective, tally = number / self.settings.total_steps, self.recipe.objective, Tally()
        warmup, multipliers = self.settings.sparsity_factor(number), self.steering.multipliers()
        for tensor in self._trained.values():
            tensor.grad = None
        parts = self._parts(x)
        whole = self._mean_l0(parts) if len(parts) > 1 and objective.reads_batch_l0 else None
        for part in parts:
            view = self.sae.training_step(part, part, dead, self.screen, self._dense.now, progress, number, whole)
            loss, _ = objective.loss(view, warmup, multipliers)
            (loss * (view.n_rows / x.shape[0])).backward()  # type: ignore[no-untyped-call]
            tally.add(view, float(loss.detach()))
        return tally

    @torch.no_grad()
    def _mean_l0(self, parts: Sequence[Tensor]) -> float:
        never, tally = torch.zeros_like(self._silent_rows, dtype=torch.bool), Tally()
        for part in parts:
            tally.add(self.sae.training_step(part, part, never, self.screen, self._dense.now), 0.0)
        return tally.l0

    def _shape_gradients(self) -> float:
        """Make the decoder's gradient tangential, then clip; return the norm before clipping."""
        if self.unit_decoder and self.sae.w_dec.grad is not None:
            for gradient, rows in blocks(self.sae.w_dec.grad, self.sae.w_dec.detach()):
                gradient.addcmul_(torch.linalg.vecdot(gradient, rows)[:, None], rows, value=-1)
        gradients = [tensor.grad for tensor in self._trained.values() if tensor.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self.settings.clip_norm, norm)
        return float(norm)

    def _after_step(self, tally: Tally, number: int) -> None:
        self.recipe.rule.after_step(self.sae.tensors)
        if self.unit_decoder:
            for (rows,) in blocks(self.sae.w_dec):
                rows.div_(rows.norm(dim=1, keepdim=True).clamp(min=1e-12))
        self.constraint.project(self.sae, self.start)
        self._silent_rows += tally.rows
        if tally.last is not None and tally.fired is not None:
            self._silent_rows[tally.fired] = 0
            self.steering.update(number, tally.last, tally.l0)
        self._dense.update(tally.density)
        self._average_threshold(tally.smallest, number)

    def _average_threshold(self, smallest: float, number: int) -> None:
        """Follow the smallest kept activation, as dictionary_learning does."""
        calibrated = self.recipe.rule.calibrated()
        if calibrated is None or not math.isfinite(smallest) or number < _THRESHOLD_FROM * self.settings.total_steps:
            return
        before, decay = self.threshold_average, calibrated.average
        self.threshold_average = smallest if before is None else decay * before + (1 - decay) * smallest

    def _note(self, tally: Tally, x: Float[Tensor, "rows d_in"], grad_norm: float) -> None:
        spread = float((x - x.mean(0)).square().sum())
        self.report = StepReport(
            loss=tally.loss,
            l0=tally.l0,
            grad_norm=grad_norm,
            explained_variance=1 - tally.error / spread if spread > 0 else float("nan"),
            dead_share=float(tally.last.dead.double().mean()) if tally.last is not None else 0.0,
        )

    @property
    def alive(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have fired within the window."""
        return self._silent_rows < self.settings.dead_window

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors and numbers that training changes; the tensors are views, good until the next step.

        Tensors are given in memory order: an encoder has its latents first.
        """
        tensors = {f"sae.{name}": in_memory_order(tensor.detach()) for name, tensor in self.sae.tensors.items()}
        tensors["silent_rows"] = self._silent_rows
        for name, moments in self._moments().items():
            tensors |= {f"moments.{name}.{key}": value for key, value in moments.items()}
        plain = {
            "steering": self.steering.state(),
            "dense": self._dense.now,
            "threshold_average": self.threshold_average,
        }
        return {name: tensor.to("cpu") for name, tensor in tensors.items()}, plain

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from what `state` has returned."""
        for name, tensor in self.sae.tensors.items():
            in_memory_order(tensor).copy_(tensors[f"sae.{name}"])
        self._silent_rows.copy_(tensors["silent_rows"])
        for name, stepper in zip(self._trained, self._steppers, strict=True):
            start = f"moments.{name}."
            kept = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if self._optimiser is not None and kept:
                moments = {key: value.to(self._silent_rows.device, copy=True) for key, value in kept.items()}
                self._optimiser.state[stepper.view] = moments
        self.steering.load_state(plain["steering"])
        self._dense.now = bool(plain["dense"])
        self.threshold_average = plain["threshold_average"]

    def _moments(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the optimiser's state by the tensor's name."""
        state = self._optimiser.state if self._optimiser is not None else {}
        named = zip(self._trained, self._steppers, strict=True)
        return {name: state[stepper.view] for name, stepper in named if stepper.view in state}

    def release(self) -> None:
        """Let go of gradients and moments: there are no more steps."""
        self._optimiser = None
        for tensor in self.sae.tensors.values():
            tensor.grad = None
        for stepper in self._steppers:
            stepper.view.grad = None

    @torch.no_grad()
    def heldout_variance(self, x: Float[Tensor, "rows d_in"]) -> float:
        """Return the share of variance explained on a scaled batch, in training mode."""
        never, error = torch.zeros_like(self._silent_rows, dtype=torch.bool), 0.0
        for part in self._parts(x):
            view = self.sae.training_step(part, part, never, self.screen, self._dense.now)
            error += float(view.residual.double().square().sum())
        return 1 - error / float((x - x.mean(0)).double().square().sum())
