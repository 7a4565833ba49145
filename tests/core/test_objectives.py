"""Loss terms against hand numbers and slow references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saebench_core.kernels import from_mask
from saebench_core.objectives import (
    L1,
    AuxK,
    GateReconstruction,
    Objective,
    Orthogonality,
    PowerPenalty,
    PreActivationLoss,
    PrefixReconstruction,
    Reconstruction,
    Step,
    StepL0,
    TanhPenalty,
    TargetL0,
    WeightedTerm,
)
from saebench_core.rules import BatchTopK, Gated, JumpReLU, ReLU
from tests.helpers.training import D_IN, D_SAE, normal, random_sae


def number(loss):
    return float(loss.detach())


def hand_step(rule=None, **changes):
    """Two rows, two dimensions, three latents; the first row has codes (1, 0, 2), the second (0, 3, 0)."""
    rule = rule or ReLU()
    w_dec = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]).requires_grad_()
    values = torch.tensor([1.0, 2.0, 3.0]).requires_grad_()
    target = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    fields = {
        "x": target,
        "centred": target,
        "target": target,
        "tensors": {"W_dec": w_dec, "threshold": torch.full((3,), 1.5).requires_grad_()},
        "rule": rule,
        "selection": from_mask(torch.tensor([[True, False, True], [False, True, False]])),
        "pre": values,
        "values": values,
        "reconstruction": torch.tensor([[0.0, 4.0], [3.0, 4.0]]).requires_grad_(),
        "dead": torch.zeros(3, dtype=torch.bool),
    }
    return Step(**(fields | changes))


def test_reconstruction_is_summed_over_dimensions_and_averaged_over_rows():
    step = hand_step()
    loss = Reconstruction().loss(step)
    assert number(loss) == (1 + 4 + 0 + 1) / 2
    loss.backward()
    assert step.reconstruction.grad.tolist() == [[-1, 2], [0, -1]]  # 2 (x_hat - x) / rows


def test_l1_is_summed_over_latents_and_averaged_over_rows():
    step = hand_step()
    loss = L1().loss(step)
    assert number(loss) == (1 + 2 + 3) / 2
    loss.backward()
    assert step.values.grad.tolist() == [0.5, 0.5, 0.5]


def test_norm_weighted_l1_counts_decoder_norms():
    assert number(L1(norm_weighted=True).loss(hand_step())) == (1 * 1 + 2 * 5 + 3 * 2) / 2


def test_target_l0_is_the_squared_relative_miss():
    step = hand_step(JumpReLU(bandwidth=1.5))
    # two of the three entries are above 1.5, so the mean L0 is 1; 1.0 and 2.0 are within 0.75 of the threshold
    loss = TargetL0(4.0).loss(step)
    assert number(loss) == pytest.approx((1 / 4 - 1) ** 2)
    loss.backward()
    slope = 2 * (1 / 4 - 1) / 4 / 2  # d loss / d count
    assert step.tensors["threshold"].grad.tolist() == pytest.approx([-slope / 1.5, 0, -slope / 1.5])
    assert step.values.grad is None


def test_target_l0_is_zero_on_target():
    assert number(TargetL0(1.0).loss(hand_step(JumpReLU(bandwidth=0.1)))) == 0


@pytest.mark.parametrize("term", [TargetL0(1.0), StepL0()])
def test_what_counts_refuses_a_rule_that_cannot(term):
    with pytest.raises(TypeError, match=f"{term.name} .*ReLU"):
        term.loss(hand_step())


def test_step_l0_is_the_mean_number_above_threshold():
    step = hand_step(JumpReLU(bandwidth=1.5))
    loss = StepL0().loss(step)
    assert number(loss) == 1.0
    loss.backward()
    assert step.tensors["threshold"].grad.tolist() == pytest.approx([-1 / 1.5 / 2, 0, -1 / 1.5 / 2])
    assert step.values.grad is None


def test_gates_are_penalised_in_place_of_values():
    step = hand_step(pre=torch.tensor([0.5, 4.0, -1.0]).requires_grad_())
    loss = L1(of="pre").loss(step)
    assert number(loss) == (0.5 + 4.0) / 2
    loss.backward()
    assert step.pre.grad.tolist() == [0.5, 0.5, 0]
    assert step.values.grad is None


def test_tanh_saturates_and_sees_the_norms():
    step = hand_step()
    loss = TanhPenalty(0.25).loss(step)
    wanted = sum(math.tanh(0.25 * value * norm) for value, norm in ((1, 1), (2, 5), (3, 2))) / 2
    assert number(loss) == pytest.approx(wanted)
    loss.backward()
    slope = 0.25 * (1 - math.tanh(0.25) ** 2) / 2
    assert float(step.values.grad[0]) == pytest.approx(slope)
    assert float(step.tensors["W_dec"].grad[0, 0]) == pytest.approx(slope)  # z d||d||


def test_power_penalty_falls_from_one_in_equal_steps():
    term = PowerPenalty(end=0.2, changes=4, first=0.2, last=0.8)
    shares = [0.0, 0.19, 0.2, 0.39, 0.4, 0.6, 0.79, 0.8, 0.99]
    assert [term.stage(share) for share in shares] == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert [round(term.exponent(stage), 12) for stage in range(5)] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert [PowerPenalty(changes=1, first=0.5).stage(share) for share in (0.4, 0.5, 1.0)] == [0, 1, 1]


def test_power_penalty_by_hand():
    eps = 0.01
    term = PowerPenalty(end=0.5, changes=1, first=0.5, eps=eps)
    assert number(term.loss(hand_step(progress=0.4))) == pytest.approx(3.0)  # p = 1 is the L1 penalty
    step = hand_step(progress=0.5, values=torch.tensor([0.0, 2.0, 3.0]).requires_grad_())
    loss = term.loss(step)
    assert number(loss) == pytest.approx(((2 + eps) ** 0.5 + (3 + eps) ** 0.5 - 2 * eps**0.5) / 2)
    loss.backward()
    assert step.values.grad.tolist() == pytest.approx([0.5 * (z + eps) ** -0.5 / 2 for z in (0, 2, 3)], rel=1e-5)


def test_gates_reconstruct_without_moving_the_decoder():
    step = hand_step(
        pre=torch.tensor([1.0, 2.0, -3.0]).requires_grad_(),
        tensors={
            "W_dec": torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]).requires_grad_(),
            "b_dec": torch.tensor([1.0, -1.0]).requires_grad_(),
        },
    )
    loss = GateReconstruction().loss(step)
    # row 0: (1, 2) against 1 (1, 0) + 2 (3, 4) + (1, -1); row 1: (3, 5) against the bias alone
    assert number(loss) == ((1 - 8) ** 2 + (2 - 7) ** 2 + 2**2 + 6**2) / 2
    loss.backward()
    assert step.pre.grad.tolist() == [7, 7 * 3 + 5 * 4, 0]
    assert step.tensors["W_dec"].grad is None and step.tensors["b_dec"].grad is None


def jump_step(rows=40, dead=(1, 5)):
    sae = random_sae(JumpReLU(0.3), "none")
    sae.tensors["W_dec"] *= torch.linspace(0.5, 2, D_SAE)[:, None]
    for tensor in sae.tensors.values():
        tensor.requires_grad_()
    x, mask = normal(rows, D_IN, seed=3), torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(dead)] = True
    return sae, sae.training_step(x, x, mask)


@pytest.mark.parametrize("chunk", [1 << 22, 7 * D_SAE])
@pytest.mark.parametrize("latents", ["all", "dead"])
def test_pre_activation_loss_equals_the_dense_formula(latents, chunk, monkeypatch):
    monkeypatch.setattr("saebench_core.objectives.sparsity._CHUNK_ENTRIES", chunk)
    sae, step = jump_step()
    loss = PreActivationLoss(latents).loss(step)
    loss.backward()
    held = {name: tensor.detach().double().requires_grad_() for name, tensor in sae.tensors.items()}
    short = torch.relu(held["threshold"] - step.x.double() @ held["W_enc"] - held["b_enc"])
    weighted = short * held["W_dec"].norm(dim=1)
    wanted = (weighted if latents == "all" else weighted[:, step.dead]).sum() / step.n_rows
    wanted.backward()
    assert number(loss) == pytest.approx(number(wanted), rel=1e-5)
    for name in ("W_enc", "b_enc", "threshold", "W_dec"):
        torch.testing.assert_close(sae.tensors[name].grad.double(), held[name].grad, rtol=1e-4, atol=1e-5)


def test_pre_activation_loss_without_dead_latents_is_zero():
    _, step = jump_step(dead=())
    assert number(PreActivationLoss("dead").loss(step)) == 0


def test_pre_activation_loss_needs_thresholds():
    _, step = real_step([])
    with pytest.raises(TypeError, match="BatchTopK"):
        PreActivationLoss().loss(step)


@pytest.mark.parametrize("sizes", [(24,), (12, 7, 5), (1, 22, 1), (6, 6, 6, 6)])
def test_prefixes_reconstruct_on_their_own(sizes):
    sae, step = real_step([])
    sae.tensors["b_dec"].grad = None
    loss = PrefixReconstruction(sizes).loss(step)
    loss.backward()
    values = step.values.detach().double()
    w_dec, b_dec = (sae.tensors[name].detach().double().requires_grad_() for name in ("W_dec", "b_dec"))
    codes = step.selection.scatter(values).requires_grad_()
    wanted, end = 0.0, 0
    for size in sizes:
        end += size
        wanted = wanted + (step.x.double() - codes[:, :end] @ w_dec[:end] - b_dec).square().sum(1).mean() / len(sizes)
    wanted.backward()
    assert number(loss) == pytest.approx(number(wanted), rel=1e-5)
    torch.testing.assert_close(sae.w_dec.grad.double(), w_dec.grad, rtol=1e-4, atol=1e-5)
    again = real_step([])[1]
    (to_values,) = torch.autograd.grad(PrefixReconstruction(sizes).loss(again), again.values)
    at = again.selection
    torch.testing.assert_close(to_values.double(), codes.grad[at.rows, at.cols], rtol=1e-4, atol=1e-5)


def test_one_prefix_is_the_reconstruction():
    _, step = real_step([])
    assert number(PrefixReconstruction((D_SAE,)).loss(step)) == pytest.approx(number(Reconstruction().loss(step)))


def real_step(dead, rows=32, frozen=None):
    sae = random_sae(BatchTopK(3.0))
    for name in {"W_enc", "b_enc", "W_dec", "b_dec"} - {frozen}:
        sae.tensors[name].requires_grad_()
    x = normal(rows, D_IN, seed=21)
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[dead] = True
    return sae, sae.training_step(x, x, mask)


def slow_aux(sae, step, dead, k=None):
    """dictionary_learning's get_auxiliary_loss, row by row, in fp64."""
    w_enc, b_enc, w_dec = (sae.tensors[name].detach().double().requires_grad_() for name in ("W_enc", "b_enc", "W_dec"))
    centred = step.centred.double()
    residual = step.residual.detach().double()
    k = min(k or D_IN // 2, len(dead))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(step.n_rows):
        pre = torch.stack([torch.relu(centred[row] @ w_enc[:, latent] + b_enc[latent]) for latent in dead])
        best = sorted(range(len(dead)), key=lambda place: -number(pre[place]))[:k]
        back = sum(pre[place] * w_dec[dead[place]] for place in best)
        total = total + (residual[row] - back).square().sum()
    loss = total / (residual - residual.mean(0)).square().sum()
    loss.backward()
    return loss.detach(), {"W_enc": w_enc.grad, "b_enc": b_enc.grad, "W_dec": w_dec.grad}


@pytest.mark.parametrize("way", ["dense", "sparse", "parts"])
@pytest.mark.parametrize("dead", [[2], [0, 5, 7], list(range(3, 20))], ids=len)
def test_aux_k_equals_a_slow_reference(dead, way, monkeypatch):
    home = "saebench_core.objectives.reconstruction"
    monkeypatch.setattr(f"{home}.DENSE_SHARE", 2.0 if way == "sparse" else 0.0)
    monkeypatch.setattr(f"{home}._CHUNK_ENTRIES", 5 * len(dead) if way == "parts" else 1 << 20)
    sae, step = real_step(dead)
    loss = AuxK().loss(step)
    loss.backward()
    wanted, gradients = slow_aux(sae, step, dead)
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(sae.tensors[name].grad.double(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 40])
def test_aux_k_takes_as_many_as_it_is_told(k):
    dead = list(range(3, 20))
    sae, step = real_step(dead)
    wanted, _ = slow_aux(sae, step, dead, k)
    torch.testing.assert_close(AuxK(k).loss(step).detach().double(), wanted, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="1 or more"):
        AuxK(1 - k)
    assert k == D_IN // 2 or number(AuxK(k).loss(step)) != number(AuxK().loss(step))


@pytest.mark.parametrize("frozen", ["W_enc", "b_enc", "W_dec"])
def test_aux_k_leaves_frozen_tensors_alone(frozen):
    whole, parts = real_step([0, 5, 7]), real_step([0, 5, 7], frozen=frozen)
    for _, step in (whole, parts):
        AuxK().loss(step).backward()
    assert parts[0].tensors[frozen].grad is None
    for name in {"W_enc", "b_enc", "W_dec"} - {frozen}:
        assert torch.equal(parts[0].tensors[name].grad, whole[0].tensors[name].grad)


def test_aux_k_holds_nothing_of_the_batch_times_all_dead(monkeypatch):
    monkeypatch.setattr("saebench_core.objectives.reconstruction._CHUNK_ENTRIES", 64)
    _, step = real_step(list(range(D_SAE)), rows=200)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        loss = AuxK().loss(step)
    assert number(loss) > 0
    assert max(sizes) <= 200 * D_IN < 200 * D_SAE


def test_aux_k_moves_dead_latents_only():
    dead = [0, 5, 7]
    sae, step = real_step(dead)
    AuxK().loss(step).backward()
    alive = [latent for latent in range(D_SAE) if latent not in dead]
    assert float(sae.w_enc.grad[:, alive].abs().sum()) == 0
    assert float(sae.w_dec.grad[alive].abs().sum()) == 0
    assert float(sae.w_dec.grad[dead].abs().sum()) > 0
    assert sae.tensors["b_dec"].grad is None


def test_aux_k_is_zero_where_nothing_is_dead():
    _, step = real_step([])
    assert number(AuxK().loss(step)) == 0


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_aux_k_is_zero_where_the_residual_does_not_vary(shift):
    _, step = real_step([1, 2])
    target = step.reconstruction.detach() + shift
    flat = Step(**{name: getattr(step, name) for name in Step.__dataclass_fields__} | {"target": target})
    loss = AuxK().loss(flat)
    if shift == 0.0:
        assert number(loss) == 0
    assert bool(torch.isfinite(loss))


def test_aux_k_of_a_single_row_is_zero():
    _, step = real_step([1, 2], rows=1)
    assert number(AuxK().loss(step)) == 0


def test_aux_k_of_a_gated_sae_reads_the_gates():
    sae = random_sae(Gated())
    for tensor in sae.tensors.values():
        tensor.requires_grad_()
    x, dead = normal(32, D_IN, seed=21), torch.arange(D_SAE) < 5
    AuxK().loss(sae.training_step(x, x, dead)).backward()
    assert float(sae.tensors["b_gate"].grad.abs().sum()) > 0
    assert sae.tensors["r_mag"].grad is None


def objective():
    return Objective(
        (
            WeightedTerm(Reconstruction(), 2.0),
            WeightedTerm(L1(), 0.5, "warmup", controlled=True, l0=4.0),
            WeightedTerm(AuxK(), 1 / 32),
        )
    )


@pytest.mark.parametrize(
    ("warmup", "control", "wanted"),
    [(1.0, 1.0, 2 * 3 + 0.5 * 3), (0.0, 1.0, 2 * 3), (0.25, 1.0, 6 + 0.375), (1.0, 4.0, 6 + 6), (0.5, 4.0, 6 + 3)],
)
def test_weights_follow_their_schedules(warmup, control, wanted):
    loss, values = objective().loss(hand_step(), warmup, {"l1": control})
    assert number(loss) == pytest.approx(wanted)
    assert {name: float(value) for name, value in values.items()} == {"reconstruction": 3, "l1": 3, "aux_k": 0}
    assert not any(value.requires_grad for value in values.values())


def test_terms_are_left_out_by_name():
    left = objective().without("aux_k")
    assert [weighted.term.name for weighted in left.terms] == ["reconstruction", "l1"]
    assert [weighted.term.name for weighted in objective().terms] == ["reconstruction", "l1", "aux_k"]
    assert objective().without("no such term") == objective()
    assert objective().without("aux_k", "why").without("l1").dropped == (("aux_k", "why"), ("l1", ""))


def test_terms_that_frozen_tensors_alone_decide_are_left_out():
    decided = WeightedTerm(Orthogonality(), 0.25)
    both = replace(objective(), terms=(*objective().terms, decided))
    left = both.without_constants("decoder", "frozen")
    assert left.terms == objective().terms
    assert left.dropped == (("orthogonality", "frozen"),)
    assert both.without_constants("encoder", "frozen") == both


def test_the_controlled_term_is_found():
    assert objective().controlled().l0 == 4.0
    assert objective().without("l1").controlled() is None
