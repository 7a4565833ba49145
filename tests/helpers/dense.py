"""Training as the papers write it, in plain dense fp32: what the sparse steps are compared with.

Nothing here uses kernels, rules or loss terms of the core; the schedule and the controllers are shared, for they
are no part of a step's arithmetic.
"""

from __future__ import annotations

import math

import torch

from saebench_core.objectives import PowerPenalty
from saebench_core.training.controllers import L0Controller

TOPK_FAMILY = ("topk", "batch_topk", "matryoshka", "ortsae")
TRIM = 0.06
GAINS = {"jumprelu": 10.0, "p_anneal": 4.0}


class _Threshold(torch.autograd.Function):
    """``[pre > theta]`` for counts, ``pre [pre > theta]`` for values, with the rectangle kernel."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth, count):
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth, ctx.count = bandwidth, count
        return (pre > theta).float() if count else pre * (pre > theta)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        window = ((pre - theta).abs() < ctx.bandwidth / 2).float() / ctx.bandwidth
        if ctx.count:
            return None, -(grad * window).sum(0), None, None
        return grad * (pre > theta), -(grad * theta * window).sum(0), None, None


class DenseSAE:
    """One SAE of a named architecture with its defaults, trained without sparsity tricks."""

    def __init__(self, architecture, w_dec, b_dec, l0, settings):
        self.architecture, self.l0, self.settings = architecture, l0, settings
        self.w_dec, self.w_enc, self.b_dec = w_dec.clone(), w_dec.T.clone(), b_dec.clone()
        d_sae = w_dec.shape[0]
        self.bias = torch.zeros(d_sae)
        trained = {"w_enc": self.w_enc, "bias": self.bias, "w_dec": self.w_dec, "b_dec": self.b_dec}
        if architecture == "jumprelu":
            self.theta = trained["theta"] = torch.full((d_sae,), 0.001)
        if architecture == "gated":
            self.b_mag = trained["b_mag"] = torch.zeros(d_sae)
            self.r_mag = trained["r_mag"] = torch.zeros(d_sae)
        self.trained = [tensor.requires_grad_() for tensor in trained.values()]
        decay = [{"params": [t for t in self.trained if (t.ndim == 2) == flag], "weight_decay": wd}
                 for flag, wd in ((True, settings.weight_decay), (False, 0.0))]  # fmt: skip
        self.optimiser = torch.optim.AdamW(decay, lr=settings.lr, betas=settings.betas)
        steered = L0Controller(l0, settings.total_steps, GAINS.get(architecture, 1.0))
        self.controller = None if architecture in TOPK_FAMILY else steered
        self.power = PowerPenalty()
        self.continuity, self.recent = 1.0, []
        self.silent = torch.zeros(d_sae, dtype=torch.int64)

    def pre(self, x):
        return (x if self.architecture == "jumprelu" else x - self.b_dec) @ self.w_enc + self.bias

    def codes(self, x):
        """Return dense codes of training mode, and the pre-activations."""
        pre = self.pre(x)
        if self.architecture == "topk":
            kept = torch.zeros_like(pre).scatter(1, pre.topk(int(self.l0), dim=1).indices, 1.0)
            return torch.relu(pre) * kept, pre
        if self.architecture in TOPK_FAMILY:
            positive = torch.relu(pre)
            least = positive.flatten().topk(round(self.l0 * x.shape[0])).values[-1]
            return positive * (positive >= least), pre
        if self.architecture == "jumprelu":
            return _Threshold.apply(pre, self.theta, 0.001, False), pre
        if self.architecture == "gated":
            magnitudes = torch.relu((pre - self.bias) * self.r_mag.exp() + self.b_mag)
            return magnitudes * (pre > 0), pre
        return torch.relu(pre), pre

    def loss(self, x, number):
        z, pre = self.codes(x)
        back = z @ self.w_dec + self.b_dec
        total = (x - back).square().sum(1).mean()
        warm = self.settings.sparsity_factor(number)
        weight = warm * (self.controller.multiplier if self.controller else 1.0)
        if self.architecture == "relu":
            total = total + 0.1 * weight * z.sum(1).mean()
        elif self.architecture == "p_anneal":
            stage = self.power.stage(number / self.settings.total_steps)
            total = total + 0.1 * weight * self.continuity * self._power(z, stage)
        elif self.architecture == "jumprelu":
            l0 = _Threshold.apply(pre, self.theta, 0.001, True).sum(1).mean()
            total = total + warm * (l0 / self.l0 - 1).square() + TRIM / self.l0 * weight * l0
        elif self.architecture == "gated":
            gate = torch.relu(pre)
            from_gate = gate @ self.w_dec.detach() + self.b_dec.detach()
            total = total + 0.1 * weight * gate.sum(1).mean() + (x - from_gate).square().sum(1).mean()
        elif self.architecture == "matryoshka":
            total = self._prefixes(x, z)
        elif self.architecture == "ortsae":
            directions = torch.nn.functional.normalize(self.w_dec, dim=1)
            cosines = directions @ directions.T - 2 * torch.eye(len(directions))
            total = total + 0.25 * cosines.amax(1).relu().square().mean()
        if self.architecture in TOPK_FAMILY:
            total = total + self._aux(x - back, pre) / 32
        return total, z

    def _power(self, z, stage):
        p, eps = self.power.exponent(stage), self.power.eps
        return ((z + eps).pow(p) - eps**p).sum(1).mean()

    def _prefixes(self, x, z):
        d_sae = z.shape[1]
        ends = [round(0.5 * d_sae), round(0.5 * d_sae) + round(0.3 * d_sae), d_sae]
        errors = [x - z[:, :end] @ self.w_dec[:end] - self.b_dec for end in ends]
        return sum(error.square().sum(1).mean() for error in errors) / 3

    def _aux(self, error, pre):
        dead = self.silent >= self.settings.dead_window
        count = int(dead.sum())
        if not count:
            return torch.zeros(())
        error = error.detach()
        k = min(error.shape[1] // 2, count)
        positive = torch.relu(pre[:, dead])
        kept = torch.zeros_like(positive).scatter(1, positive.topk(k, dim=1).indices, 1.0)
        missing = error - (positive * kept) @ self.w_dec[dead]
        return missing.square().sum(1).mean() / (error - error.mean(0)).square().sum(1).mean()

    def step(self, x, number):
        loss, z = self.loss(x, number)
        self.optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            along = (self.w_dec.grad * self.w_dec).sum(1, keepdim=True)
            self.w_dec.grad -= along * self.w_dec
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * self.settings.lr_factor(number)
        self.optimiser.step()
        with torch.no_grad():
            self.w_dec /= self.w_dec.norm(dim=1, keepdim=True)
            if self.architecture == "jumprelu":
                self.theta.clamp_(min=0)
            self.silent += x.shape[0]
            self.silent[(z > 0).any(0)] = 0
            self._steer(z, number)

    def _steer(self, z, number):
        if self.architecture == "p_anneal":
            self._continue(z, number)
        if self.controller:
            self.controller.update(number, float((z > 0).sum()) / z.shape[0])

    def _continue(self, z, number):
        """At a change of p, keep the penalty's value, by the ten steps before it."""
        steps = self.settings.total_steps
        stage, near, upcoming = (self.power.stage((number + ahead) / steps) for ahead in (0, 10, 1))
        if near == stage:
            return
        self.recent.append([float(self._power(z, form)) for form in (stage, stage + 1)])
        if upcoming != stage:
            present, after = (math.fsum(pair[place] for pair in self.recent) for place in (0, 1))
            self.continuity *= present / after
            self.recent = []

    @torch.no_grad()
    def explained_variance(self, x):
        z, _ = self.codes(x)
        error = x - z @ self.w_dec - self.b_dec
        return 1 - float(error.double().square().sum() / (x - x.mean(0)).double().square().sum())
