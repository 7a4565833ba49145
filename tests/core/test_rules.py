"""Selection rules by hand: what is kept, with which values, and which gradients flow."""

from __future__ import annotations

import math

import pytest
import torch

from saebench_core.kernels import Codes, PreActivations, from_mask
from saebench_core.rules import BatchTopK, Gated, JumpReLU, ReLU, Rule, TopK
from tests.helpers.training import normal, random_sae

PRE = torch.tensor([[1.0, -2.0, 0.5, 0.0], [-1.0, 3.0, -0.5, 2.0], [-1.0, -2.0, -3.0, -4.0]])
RULES = {
    "relu": ReLU(),
    "topk": TopK(2),
    "batch_topk": BatchTopK(1.0),
    "jumprelu": JumpReLU(0.2, 0.6),
    "gated": Gated(),
}


def lazy(pre, dense=True):
    """Pre-activations with these values: inputs that an identity encodes."""
    return PreActivations(pre, torch.eye(pre.shape[1]), torch.zeros(pre.shape[1]), "fp32", dense)


def codes(rule, tensors, mode):
    selection, pre = getattr(rule, f"select_{mode}")(lazy(PRE), tensors)
    return Codes(selection, rule.activate(pre, selection, tensors))


def dense(rule, tensors=None, mode="training"):
    return codes(rule, tensors or {}, mode).to_dense().tolist()


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_relu_keeps_what_is_positive(mode):
    assert dense(ReLU(), mode=mode) == [[1, 0, 0.5, 0], [0, 3, 0, 2], [0, 0, 0, 0]]
    assert codes(ReLU(), {}, mode).values.numel() == 4


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_topk_keeps_k_of_each_row_and_zeroes_negative_ones(mode):
    assert dense(TopK(2), mode=mode) == [[1, 0, 0.5, 0], [0, 3, 0, 2], [0, 0, 0, 0]]
    found = codes(TopK(2), {}, mode)
    assert found.values.numel() == 6
    assert found.l0().tolist() == [2, 2, 0]


def test_batch_topk_shares_its_budget_over_the_batch_in_training():
    assert dense(BatchTopK(1.0)) == [[1, 0, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0]]
    assert dense(BatchTopK(2 / 3)) == [[0, 0, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0]]
    assert dense(BatchTopK(3.0)) == [[1, 0, 0.5, 0], [0, 3, 0, 2], [0, 0, 0, 0]]


def test_batch_topk_infers_strictly_above_one_threshold():
    tensors = {"threshold": torch.tensor(0.5)}
    assert dense(BatchTopK(1.0), tensors, "inference") == [[1, 0, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0]]


def test_jumprelu_infers_strictly_above_each_threshold():
    tensors = {"threshold": torch.tensor([1.0, 2.5, 0.4, 0.0])}
    assert dense(JumpReLU(), tensors, "inference") == [[0, 0, 0.5, 0], [0, 3, 0, 2], [0, 0, 0, 0]]


def test_jumprelu_never_infers_negative_codes():
    tensors = {"threshold": torch.full((4,), -5.0)}
    assert dense(JumpReLU(), tensors, "inference") == dense(ReLU())


def test_jumprelu_training_keeps_the_kernel_below_the_threshold_as_zeros():
    tensors = {"threshold": torch.full((4,), 0.55)}
    found = codes(JumpReLU(bandwidth=0.2), tensors, "training")
    assert sorted(zip(found.selection.rows.tolist(), found.selection.cols.tolist(), strict=True)) == [
        (0, 0),
        (0, 2),
        (1, 1),
        (1, 3),
    ]
    assert dense(JumpReLU(bandwidth=0.2), tensors) == [[1, 0, 0, 0], [0, 3, 0, 2], [0, 0, 0, 0]]


def jump_gradients(which):
    rule = JumpReLU(bandwidth=0.1)
    pre = torch.tensor([0.44, 0.52, 0.7, 0.47, -3.0]).requires_grad_()
    threshold = torch.tensor([0.5, 9.0]).requires_grad_()
    selection = from_mask(torch.tensor([[True, False]] * 5))
    out = getattr(rule, which)(pre, selection, {"threshold": threshold})
    out.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    return out.detach(), pre.grad, threshold.grad


def test_jumprelu_surrogate_of_the_values():
    values, to_pre, to_threshold = jump_gradients("activate")
    assert values.tolist() == pytest.approx([0, 0.52, 0.7, 0, 0])
    assert to_pre.tolist() == [0, 2, 3, 0, 0]
    # -(theta / epsilon) sum of upstream within the kernel: 0.52 and 0.47, one above and one below
    assert to_threshold.tolist() == pytest.approx([-(0.5 / 0.1) * (2 + 4), 0])


def test_jumprelu_surrogate_of_the_count():
    count, to_pre, to_threshold = jump_gradients("count")
    assert count.tolist() == [0, 1, 1, 0, 0]
    assert to_pre is None
    assert to_threshold.tolist() == pytest.approx([-(1 / 0.1) * (2 + 4), 0])


def test_jumprelu_thresholds_are_kept_at_zero_or_above():
    tensors = {"threshold": torch.tensor([-0.5, 0.0, 0.5])}
    JumpReLU().after_step(tensors)
    assert tensors["threshold"].tolist() == [0, 0, 0.5]


@pytest.mark.parametrize("name", RULES)
def test_selections_carry_no_gradient_and_values_do(name):
    rule, pre = RULES[name], normal(6, 9)
    starts = {"threshold": 0.1, "r_mag": 0.0, "b_mag": 0.1}
    tensors = {key: torch.tensor(starts[key]).expand(9 if info.shape else ()) for key, info in rule.tensors().items()}
    tensors |= {rule.encoder_bias: torch.zeros(9)}
    selection, selected = rule.select_training(lazy(pre), tensors)
    assert not selected.requires_grad
    at = selected.requires_grad_()
    values = rule.activate(at, selection, tensors)
    values.sum().backward()
    assert torch.equal(at.grad, (values.detach() > 0).float())


@pytest.mark.parametrize("name", RULES)
def test_inference_of_a_row_does_not_depend_on_the_others(name):
    rule, pre = RULES[name], normal(40, 24)
    tensors = random_sae(rule).tensors
    together = rule.select_inference(lazy(pre), tensors).selection
    for row in range(40):
        alone = rule.select_inference(lazy(pre[row : row + 1]), tensors).selection
        assert alone.cols.sort().values.tolist() == together.cols[together.rows == row].sort().values.tolist()


def test_what_rules_say_of_themselves():
    assert [name for name, rule in RULES.items() if rule.bias_is_threshold] == ["relu", "gated"]
    assert [name for name, rule in RULES.items() if rule.meets_l0] == ["topk"]
    calibrated = {name: rule.calibrated() for name, rule in RULES.items()}
    assert {name for name, found in calibrated.items() if found} == {"batch_topk"}
    assert (calibrated["batch_topk"].tensor, calibrated["batch_topk"].l0) == ("threshold", 1.0)
    infos = {name: dict(rule.tensors()) for name, rule in RULES.items()}
    assert infos["relu"] == infos["topk"] == {}
    assert infos["batch_topk"]["threshold"].estimated
    jump = infos["jumprelu"]["threshold"]
    assert (jump.role, jump.shape, jump.start, jump.scales, jump.estimated) == (
        "threshold",
        ("d_sae",),
        0.6,
        True,
        False,
    )


def test_forms_of_export():
    forms = {name: rule.export(random_sae(rule).tensors) for name, rule in RULES.items()}
    assert {name: form.architecture for name, form in forms.items()} == {
        "relu": "standard",
        "topk": "topk",
        "batch_topk": "jumprelu",
        "jumprelu": "jumprelu",
        "gated": "gated",
    }
    assert dict(forms["topk"].config) == {"k": 2, "rescale_acts_by_decoder_norm": False}
    assert forms["relu"].tensors == forms["topk"].tensors == {}
    batch = random_sae(RULES["batch_topk"]).tensors["threshold"]
    assert forms["batch_topk"].tensors["threshold"].tolist() == [float(batch)] * 24
    below = JumpReLU().export({"threshold": torch.tensor([-1.0, 0.25])})
    assert below.tensors["threshold"].tolist() == [0, 0.25]


def test_half_the_kernel_counts_what_is_above_alone():
    rule = JumpReLU(bandwidth=0.1, half_kernel=True)
    pre = torch.tensor([0.44, 0.52, 0.7, 0.47]).requires_grad_()
    threshold = torch.tensor([0.5]).requires_grad_()
    selection = from_mask(torch.tensor([[True]] * 4))
    count = rule.count(pre, selection, {"threshold": threshold})
    assert count.tolist() == [0, 1, 1, 0]
    count.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert threshold.grad.tolist() == pytest.approx([-(1 / 0.1) * 2])  # 0.47 is inside the kernel, but below


GATED = {
    "b_gate": torch.tensor([0.0, 1.0, 0.0, -1.0]),
    "b_mag": torch.tensor([0.5, -1.0, 0.0, 0.0]),
    "r_mag": torch.tensor([0.0, math.log(2.0), -math.inf, 0.0]),
}


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_gates_decide_which_and_magnitudes_how_much(mode):
    # open where p + b_gate = PRE > 0; p is PRE minus b_gate; row 0: p = 1 and 0.5, row 1: p = 2 and 3
    assert dense(Gated(), GATED, mode) == [[1.5, 0, 0, 0], [0, 3, 0, 3], [0, 0, 0, 0]]
    shut = GATED | {"b_mag": torch.full((4,), -9.0)}
    assert dense(Gated(), shut, mode) == [[0] * 4] * 3  # an open gate may let nothing through
    assert codes(Gated(), shut, mode).values.numel() == 4


def test_no_gradient_of_the_values_reaches_the_gate():
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in GATED.items()}
    selection = from_mask(torch.tensor([[True, True, False, False]]))
    product = torch.tensor([1.0, 2.0]).requires_grad_()
    pre = product + tensors["b_gate"][selection.cols]
    values = Gated().activate(pre, selection, tensors)
    assert values.tolist() == [1.5, 3.0]
    values.backward(torch.tensor([1.0, 10.0]))
    assert product.grad.tolist() == [1, 20]  # exp(r_mag) times what comes from above
    assert tensors["b_gate"].grad.tolist() == [0, 0, 0, 0]
    assert tensors["b_mag"].grad.tolist() == [1, 10, 0, 0]
    assert tensors["r_mag"].grad.tolist() == [1, 40, 0, 0]  # exp(r_mag) p


@pytest.mark.parametrize("name", RULES)
def test_codes_times_norms_are_the_codes_of_a_unit_decoder(name):
    rule, x = RULES[name], normal(50, 12, seed=9)
    sae = random_sae(rule)
    for place, key in enumerate(key for key in sae.tensors if sae.tensors[key].shape == (24,)):
        sae.tensors[key] += 0.1 * normal(24, seed=30 + place)
    norms = 0.3 + 2 * torch.rand(24, generator=torch.Generator().manual_seed(8))
    norms[3] = 0.0
    sae.tensors["W_dec"] *= norms[:, None]
    unit = sae.unit_decoder()
    if name == "topk":
        assert unit is sae
        return
    before, after = sae.encode(x), unit.encode(x)
    assert torch.equal(before.selection.cols, after.selection.cols)
    factors = torch.where(norms > 0, norms, torch.ones(24))[before.selection.cols]
    torch.testing.assert_close(before.values * factors, after.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(before), unit.decode(after), rtol=1e-5, atol=1e-5)
    assert unit.w_dec.norm(dim=1).tolist() == pytest.approx([float(norm > 0) for norm in norms], abs=1e-6)


def test_a_rule_that_says_nothing_of_scales_is_not_rescaled():
    assert TopK(2).rescaled({}, torch.ones(3)) is None
    assert Rule.rescaled(ReLU(), {}, torch.ones(3)) is None
