"""Loss recovered, against a slow reference with hooks and loops."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from saebench_plugins.backbones.hf_lm import HfLm, HfLmConfig
from saebench_plugins.metrics.loss_recovered import LossRecovered, LossRecoveredConfig, compare

from saebench_core import NotApplicable, SparseAutoencoder, Subject, TopK
from tests.helpers.contexts import FakeContext
from tests.helpers.plain import Plain
from tests.helpers.tiny_lm import save_tiny_llama, write_corpus

SITE = "layers.1"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = tmp_path_factory.mktemp("loss")
    corpus = {"type": "text_files", "paths": [str(write_corpus(root / "corpus.txt"))], "document": "line"}
    config = HfLmConfig(model=str(save_tiny_llama(root / "llama")), corpus=corpus, context=12, holdout=0.2)
    made = FakeContext(root / "store", HfLm(config), SITE)
    speak_as_the_model(made.backbone)
    return made


def speak_as_the_model(backbone):
    """Replace the evaluation tokens by what a random model itself would say, so that it has something to lose."""
    ids = backbone.sequences("evaluation", 0, 10).ids
    for place in range(3, ids.shape[1]):
        with torch.no_grad():
            ids[:, place] = backbone._model(input_ids=ids[:, :place]).logits[:, -1, 3:].argmax(1) + 3
    kept = torch.tensor([backbone._tokens.packing.kept(row) for row in ids.tolist()])
    lengths = torch.full((len(ids),), ids.shape[1])
    backbone._corpora["evaluation"] = type(backbone._corpora["train"])(ids.flatten(), lengths, kept)


@pytest.fixture(scope="module")
def metric():
    return LossRecovered(LossRecoveredConfig(sequences=10, tokens=10))


def sae_with(w_enc, w_dec, b_dec=None, k=None):
    d_sae, d_in = w_dec.shape
    b_dec = torch.zeros(d_in) if b_dec is None else b_dec
    return SparseAutoencoder.start(w_enc, w_dec, b_dec, TopK(k or d_sae), "none")


def identity_sae(d_in=16):
    """Exactly ``x = relu(x) - relu(-x)``."""
    eye = torch.eye(d_in)
    return sae_with(torch.cat([eye, -eye], 1), torch.cat([eye, -eye]))


def random_sae(seed=0, d_in=16, d_sae=40, k=6):
    draw = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=draw), dim=1)
    return sae_with(w_dec.T.clone(), w_dec, k=k)


def zero_sae(d_in=16):
    return sae_with(torch.eye(d_in), torch.zeros(d_in, d_in))


def scored(metric, context, sae):
    subject = Subject(sae, lambda: sae.w_dec)
    return metric.score(subject, metric.prepare(context), context)


class ImageModel(Plain):
    """Zero-shot logits are a linear map of the mean token; a token's activation is the image's pixel pair."""

    def __init__(self):
        self.pixels = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(3))
        self.classes = torch.randn(2, 3, generator=torch.Generator().manual_seed(4)) * 3
        self.targets = self.zero_shot_logits(self.pixels, "s", None).argmax(1)
        self.targets[4] = (self.targets[4] + 1) % 3

    def image_count(self, split):
        return len(self.targets)

    def images(self, split, start, count):
        return self.pixels[start : start + count]

    def labels(self, split):
        return self.targets

    def class_names(self):
        return ["a", "b", "c"]

    def read_images(self, images, site):
        return images[:, 0]

    def zero_shot_logits(self, images, site, patch):
        tokens = images[:, 0]
        if patch is not None:
            tokens = patch(tokens.reshape(-1, 2)).view(tokens.shape)
        return tokens.mean(1) @ self.classes


def slow_reference(context, metric, change):
    """CE and KL of every sequence by an explicit hook and loops over positions."""
    backbone = context.backbone
    model, layer = backbone._model, backbone._model.model.layers[1]
    ce, kl, count = [], [], []
    for number in range(metric.config.sequences):
        tokens = backbone.sequences("evaluation", number, 1)
        length = min(metric.config.tokens, tokens.ids.shape[1])
        ids, kept = tokens.ids[:, :length], tokens.kept[0, :length]

        def hook(module, inputs, output, kept=kept):
            output = output.clone()
            for position in range(len(kept)):
                if kept[position] or metric.config.replaced == "all":
                    output[0, position] = change(output[0, position][None])[0]
            return output

        with torch.no_grad():
            clean = model(input_ids=ids).logits[0].double()
            handle = layer.register_forward_hook(hook)
            new = model(input_ids=ids).logits[0].double()
            handle.remove()
        sums = [0.0, 0.0, 0]
        for position in range(length - 1):
            if kept[position]:
                p, q = clean[position].softmax(0), new[position].softmax(0)
                sums[0] -= math.log(q[ids[0, position + 1]])
                sums[1] += float((p * (p / q).log()).sum())
                sums[2] += 1
        ce.append(sums[0])
        kl.append(sums[1])
        count.append(sums[2])
    return sum(ce) / sum(count), sum(kl) / sum(count), sum(count), ce


@pytest.mark.parametrize("replaced", ["kept", "all"])
def test_scores_equal_a_slow_reference(replaced, metric, context):
    metric = LossRecovered(metric.config.model_copy(update={"replaced": replaced}))
    sae = random_sae()
    result = scored(metric, context, sae)
    ce_clean, _, n, _ = slow_reference(context, metric, lambda x: x)
    ce_zero, kl_zero, _, _ = slow_reference(context, metric, torch.zeros_like)
    ce_sae, kl_sae, _, per_sequence = slow_reference(context, metric, sae.reconstruct)
    expected = {
        "ce": (ce_zero - ce_sae) / (ce_zero - ce_clean),
        "kl": (kl_zero - kl_sae) / kl_zero,
        "ce_clean": ce_clean,
        "ce_zero": ce_zero,
        "ce_sae": ce_sae,
    }
    assert set(result.scores) == set(metric.scores())
    for name, value in expected.items():
        assert result.scores[name].value == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert result.scores[name].n == n
    assert isinstance(result.scores["top1"], NotApplicable)
    items = result.items
    assert len({len(column) for column in items.values()}) == 1
    totals = [mean * positions for mean, positions in zip(items["ce_sae"], items["positions"], strict=True)]
    assert totals == pytest.approx([total for total in per_sequence if total], rel=1e-5)


def test_an_identity_recovers_all_and_zeros_nothing(metric, context):
    full = scored(metric, context, identity_sae()).scores
    assert full["ce"].value == pytest.approx(1, abs=1e-6)
    assert full["kl"].value == pytest.approx(1, abs=1e-6)
    none = scored(metric, context, zero_sae()).scores
    assert none["ce"].value == pytest.approx(0, abs=1e-6)
    assert none["kl"].value == pytest.approx(0, abs=1e-6)


def test_floors_ceilings_and_repeated_calls(metric, context):
    prepared = metric.prepare(context)
    assert prepared.floors == {"ce": 0.0, "kl": 0.0}
    assert prepared.ceilings == {"ce": 1.0, "kl": 1.0}
    assert scored(metric, context, random_sae()) == scored(metric, context, random_sae())


def test_compare_by_hand():
    clean = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    patched = torch.tensor([[[math.log(3), 0.0], [5.0, 0.0]]])
    losses = compare(clean, patched, torch.tensor([[0, 1]]), torch.tensor([[True, False]]))
    assert losses.mean("ce") == pytest.approx(-math.log(0.75))
    assert losses.mean("kl") == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert losses.mean("right") == 1.0
    assert losses.positions.tolist() == [1.0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layers_up_to_the_site_are_not_computed_for_an_sae_and_scores_are_those_of_whole_passes(
    metric, context, monkeypatch, dtype
):
    model = context.backbone._model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    prepared, subject = metric.prepare(context), Subject(random_sae(), lambda: None)
    computed = []
    first = context.backbone._layers[0].self_attn
    handle = first.register_forward_hook(
        lambda module, inputs, kwargs, output: computed.append(output[0].shape[:-1].numel()), with_kwargs=True
    )
    found = metric.score(subject, prepared, context).scores
    handle.remove()
    assert max(computed) == 1  # one token tells what a layer returns
    monkeypatch.setattr("saebench_plugins.metrics.loss_recovered.EditableModel", Never)
    whole = metric.score(subject, metric.prepare(context), context).scores
    model.to(torch.float32)
    assert found == whole


class Never:
    """What nothing is an instance of."""


def test_impossible_logits_stay_finite_in_kl():
    clean = torch.tensor([[[0.0, -200.0]]])
    losses = compare(clean, clean.flip(-1), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
    assert losses.mean("kl") == pytest.approx(200.0)


def test_nothing_to_recover_is_no_score(metric, context, monkeypatch):
    monkeypatch.setattr(
        type(context.backbone), "logits_from", lambda self, tokens, site, states: torch.zeros(*tokens.ids.shape, 9)
    )
    monkeypatch.setattr(
        "saebench_plugins.metrics.loss_recovered.compare", lambda *args: compare(*args[:2], args[2] % 9, args[3])
    )
    scores = scored(metric, context, random_sae()).scores
    assert isinstance(scores["ce"], NotApplicable)
    assert "nothing to recover" in scores["kl"].reason
    assert scores["ce_sae"].value == pytest.approx(math.log(9))


def test_images(tmp_path):
    model = ImageModel()
    context = FakeContext(tmp_path, model)
    metric = LossRecovered(LossRecoveredConfig(images=5))
    prepared = metric.prepare(context)
    assert prepared.ceilings["top1"] == pytest.approx(0.8)
    assert prepared.floors["top1"] == pytest.approx((model.targets[:5] == 0).float().mean().item())  # equal logits
    scores = scored(metric, context, identity_sae(2)).scores
    assert scores["ce"].value == pytest.approx(1, abs=1e-6)
    assert scores["top1"].value == prepared.ceilings["top1"]
    assert scores["ce_zero"].value == pytest.approx(math.log(3))
    assert scores["ce"].n == 5
    sae = random_sae(1, 2, 6, 1)
    patched = model.zero_shot_logits(model.pixels[:5], "s", sae.reconstruct)
    assert scored(metric, context, sae).scores["ce_sae"].value == pytest.approx(
        torch.nn.functional.cross_entropy(patched, model.targets[:5]).item(), rel=1e-5
    )


def test_backbones_without_logits():
    reason = LossRecovered(LossRecoveredConfig()).applicable(Plain())
    assert isinstance(reason, NotApplicable)
    assert "no logits" in reason.reason
    assert LossRecovered(LossRecoveredConfig()).applicable(ImageModel()) is None


def test_importing_the_plugin_is_light():
    code = (
        "import sys, saebench_plugins.metrics.loss_recovered\n"
        "heavy = {'transformers', 'gguf', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
