"""The open_clip backbone: streams, patches, splits, training and weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.backbones._contrastive import shifted
from saebench_plugins.backbones._split_images import draw_splits
from saebench_plugins.backbones.open_clip import OpenClip, OpenClipConfig, register_backbones

from saebench_core.errors import InputError, PluginError
from saebench_core.interfaces.backbone import VisionModel
from tests.helpers.contexts import FakeContext

TINY = {
    "type": "contrastive", "image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "embed_dim": 16,
    "text_width": 16, "text_layers": 1, "text_heads": 2, "steps": 60, "batch_size": 64, "lr": 5e-3, "warmup_steps": 6,
    "shift": 1,
}  # fmt: skip
SITE = "visual.blocks.1"
TOKENS = 5  # 2x2 patches and the class token


def make(**changes) -> OpenClip:
    return OpenClip(OpenClipConfig.model_validate({"model": TINY, "images": {"type": "digits"}, **changes}))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def context(store) -> FakeContext:
    return FakeContext(store)


@pytest.fixture(scope="module")
def backbone(context) -> OpenClip:
    prepared = make()
    prepared.prepare(context)
    return prepared


@pytest.fixture(scope="module")
def tiny_name(tmp_path_factory) -> str:
    """A tiny model that open_clip knows by name."""
    import open_clip

    folder = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-test-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "tiny-test-vit"


def rows_of(backbone, start, rows, split="evaluation", site=SITE):
    return torch.cat([batch.inputs for batch in backbone.stream(site, split, start, rows)])


def block_calls(backbone) -> tuple[list[int], list]:
    calls: list[int] = []
    blocks = backbone._loaded.clip.model.visual.transformer.resblocks
    handles = [
        block.register_forward_hook(lambda *_, index=index: calls.append(index)) for index, block in enumerate(blocks)
    ]
    return calls, handles


def accuracy(backbone, split="evaluation") -> float:
    images = backbone.images(split, 0, backbone.image_count(split))
    logits = backbone.zero_shot_logits(images, SITE, None)
    return (logits.argmax(1) == backbone.labels(split)).float().mean().item()


def test_description_needs_no_weights():
    description = make().describe()
    assert description.sites == {f"visual.blocks.{index}": 32 for index in range(3)}
    assert description.modality == "vision"
    assert description.facts["tokens_per_image"] == TOKENS
    assert description.memory_bytes > 0


def test_it_is_a_vision_model(backbone):
    assert isinstance(backbone, VisionModel)
    assert backbone.class_names()[3] == "three"


def test_use_before_prepare_is_refused():
    with pytest.raises(PluginError, match="prepare"):
        make().rows_available(SITE, "train")


@pytest.mark.parametrize("cut", [1, 7, TOKENS * 32, 333])
def test_rows_are_bit_equal_for_any_cut(backbone, cut):
    total = 400
    whole = rows_of(backbone, 11, total)
    assert whole.dtype == torch.float32
    parts = torch.cat([rows_of(backbone, 11 + low, min(cut, total - low)) for low in range(0, total, cut)])
    assert torch.equal(whole, parts)


def test_batches_can_be_changed_by_their_reader(backbone):
    whole = rows_of(backbone, 0, 50)
    for batch in backbone.stream(SITE, "evaluation", 0, 50):
        batch.inputs.zero_()
    assert torch.equal(rows_of(backbone, 0, 50), whole)


def test_the_stream_ends_with_the_split(backbone):
    available = backbone.rows_available(SITE, "calibration")
    assert available == backbone.image_count("calibration") * TOKENS
    assert len(rows_of(backbone, 0, available + 100, "calibration")) == available
    assert list(backbone.stream(SITE, "calibration", available + 3, 5)) == []


def test_token_modes_select_class_token_first_then_patches(backbone, context):
    everything = backbone.read_images(backbone.images("evaluation", 0, 3), SITE)
    assert everything.shape == (3, TOKENS, 32)
    assert torch.equal(rows_of(backbone, 0, TOKENS), rows_of(backbone, 0, 32 * TOKENS)[:TOKENS])
    for mode, kept in (("cls", slice(0, 1)), ("patches", slice(1, None))):
        other = make(tokens=mode)
        other.prepare(context)
        read = other.read_images(other.images("evaluation", 0, 3), SITE)
        assert torch.equal(read, everything[:, kept])
        assert other.rows_available(SITE, "evaluation") == read.shape[1] * other.image_count("evaluation")
        torch.testing.assert_close(rows_of(other, 0, read.shape[1]), read[0])


def test_sites_are_the_residual_stream_after_the_block(backbone):
    seen = {}
    blocks = backbone._loaded.clip.model.visual.transformer.resblocks
    handle = blocks[1].register_forward_hook(lambda module, given, output: seen.update(output=output))
    images = backbone.images("evaluation", 0, 2)
    backbone.zero_shot_logits(images, SITE, None)
    handle.remove()
    assert torch.equal(seen["output"], backbone.read_images(images, SITE))


def test_reading_stops_after_the_site(backbone):
    calls, handles = block_calls(backbone)
    backbone.read_images(backbone.images("evaluation", 0, 2), SITE)
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]


def test_identity_patch_changes_nothing_and_zero_patch_does(backbone):
    images = backbone.images("evaluation", 0, 40)
    clean = backbone.zero_shot_logits(images, SITE, None)
    assert clean.shape == (40, 10)
    assert clean.dtype == torch.float32
    assert torch.equal(backbone.zero_shot_logits(images, SITE, lambda rows: rows), clean)
    assert not torch.allclose(backbone.zero_shot_logits(images, SITE, torch.zeros_like), clean, atol=0.1)
    assert torch.equal(backbone.zero_shot_logits(images, SITE, None), clean)  # no hook is left


def test_patch_sees_what_read_images_gives(backbone):
    images = backbone.images("evaluation", 0, 4)
    seen = []
    backbone.zero_shot_logits(images, SITE, lambda rows: seen.append(rows) or rows)
    assert torch.equal(torch.cat(seen), backbone.read_images(images, SITE).flatten(0, 1))


def test_patch_of_patches_leaves_the_class_token(context):
    patches = make(tokens="patches")
    patches.prepare(context)
    images = patches.images("evaluation", 0, 4)
    last = "visual.blocks.2"  # nothing mixes tokens after it, and the class token alone is pooled
    clean = patches.zero_shot_logits(images, last, None)
    assert torch.equal(patches.zero_shot_logits(images, last, torch.zeros_like), clean)


def test_gradients_flow_through_a_patch(backbone):
    scale = torch.ones(32, requires_grad=True)
    images = backbone.images("evaluation", 0, 2)
    backbone.zero_shot_logits(images, SITE, lambda rows: rows * scale).sum().backward()
    assert scale.grad.abs().sum() > 0
    assert not backbone.read_images(images, SITE).requires_grad


def test_both_layouts_of_open_clip_are_read_and_patched_alike(backbone, context):
    images = backbone.images("evaluation", 0, 4)
    other = make()
    other.prepare(context)
    transformer = other._loaded.clip.model.visual.transformer
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False

    def patch(rows):
        return rows * torch.linspace(0, 1, len(rows))[:, None]

    torch.testing.assert_close(other.read_images(images, SITE), backbone.read_images(images, SITE))
    torch.testing.assert_close(
        other.zero_shot_logits(images, SITE, patch), backbone.zero_shot_logits(images, SITE, patch)
    )


def test_a_patch_of_another_shape_is_refused(backbone):
    with pytest.raises(PluginError, match=r"\(5, 32\)"):
        backbone.zero_shot_logits(backbone.images("evaluation", 0, 1), SITE, lambda rows: rows[:1])


def test_splits_are_disjoint_and_cover_all_images(backbone):
    splits = backbone._loaded.images.splits
    everything = torch.cat([splits[name] for name in ("train", "calibration", "evaluation")])
    assert sorted(everything.tolist()) == list(range(1797))
    assert len(splits["train"]) == 1797 - round(0.2 * 1797)
    other = draw_splits(1797, 0.2, seed=1)
    assert not torch.equal(other["train"], splits["train"])


def test_labels_follow_the_order_of_the_images(backbone):
    order = backbone._loaded.images.splits["evaluation"].tolist()
    labels = backbone._loaded.images.everything.labels
    assert backbone.labels("evaluation").tolist() == [labels[index] for index in order]


def test_contrastive_training_beats_chance_on_held_out_images(backbone):
    assert accuracy(backbone) > 0.4


def test_contrastive_training_is_the_same_for_the_same_seed(tmp_path):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        fresh = FakeContext(tmp_path / str(number))
        short = make(model={**TINY, "steps": 6, "seed": seed})
        short.prepare(fresh)
        assert len(fresh.built) == 1
        assert ("training a small CLIP", 6, 6) in fresh.reports
        states.append(short._loaded.clip.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["visual.proj"], states[2]["visual.proj"])


def test_contrastive_training_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    short = make(model={**TINY, "steps": 1, "seed": 5})
    short.prepare(FakeContext(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trained_model_comes_from_the_store(backbone, store):
    fresh = FakeContext(store)
    make().prepare(fresh)
    assert fresh.built == []


def test_training_sees_only_the_train_split(tmp_path, monkeypatch):
    from saebench_plugins.backbones import _contrastive

    seen = []
    true = _contrastive.preprocessed
    monkeypatch.setattr(_contrastive, "preprocessed", lambda *given: seen.extend(given[2]) or true(*given))
    short = make(model={**TINY, "steps": 1})
    short.prepare(FakeContext(tmp_path))
    assert sorted(seen) == sorted(short._loaded.images.splits["train"].tolist())


def test_random_weights_match_moments_and_seed(backbone, context, store):
    twin, again = make(weights="random"), make(weights="random")
    other = make(weights="random")
    twin.prepare(context)
    again.prepare(context)
    other.prepare(FakeContext(store, seed=1))
    trained = dict(backbone._loaded.clip.model.named_parameters())
    for name, drawn in twin._loaded.clip.model.named_parameters():
        value = trained[name]
        spread = value.std(correction=0)
        bound = 6 * spread / value.numel() ** 0.5 + 1e-6
        assert (drawn.mean() - value.mean()).abs() <= bound, name
        assert (drawn.std(correction=0) - spread).abs() <= bound, name
        assert torch.equal(drawn, again._loaded.clip.model.get_parameter(name)), name
    weight = "visual.conv1.weight"
    assert not torch.equal(twin._loaded.clip.model.get_parameter(weight), trained[weight])
    assert not torch.equal(
        twin._loaded.clip.model.get_parameter(weight), other._loaded.clip.model.get_parameter(weight)
    )
    assert accuracy(twin) < accuracy(backbone)


def test_bf16_gives_fp32_rows_close_to_fp32(backbone, context):
    half = make(dtype="bf16")
    half.prepare(context)
    rows, wanted = rows_of(half, 0, 200), rows_of(backbone, 0, 200)
    assert rows.dtype == torch.float32
    assert ((rows - wanted).norm() / wanted.norm()).item() < 0.02
    images = half.images("evaluation", 0, 8)
    clean = half.zero_shot_logits(images, SITE, None)
    assert torch.equal(half.zero_shot_logits(images, SITE, lambda rows: rows), clean)
    assert half._loaded.logit_scale == backbone._loaded.logit_scale


def test_class_texts_are_the_normalised_mean_over_templates(backbone):
    loaded, names = backbone._loaded, backbone.class_names()
    encoded = [
        loaded.clip.model.encode_text(loaded.clip.tokenise([template.format(name) for name in names]), normalize=True)
        for template in backbone.config.images.templates
    ]
    wanted = torch.nn.functional.normalize(torch.stack(encoded).mean(0), dim=-1)
    torch.testing.assert_close(loaded.class_texts, wanted)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_local_checkpoints_are_loaded(tiny_name, tmp_path, suffix):
    import open_clip
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.CLIP(**open_clip.get_model_config(tiny_name)).eval()
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    loaded = make(model=tiny_name, pretrained=str(path))
    assert loaded.describe().sites[SITE] == 32
    assert len(loaded.fingerprint()["pretrained"]) == 64
    loaded.prepare(FakeContext(tmp_path / "store"))
    images = loaded.images("evaluation", 0, 3)
    clean = loaded.zero_shot_logits(images, SITE, None)
    features = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
    wanted = model.logit_scale.exp() * features @ loaded._loaded.class_texts.T
    torch.testing.assert_close(clean, wanted.detach())


@pytest.mark.uses_global_rng(reason="open_clip draws a model's weights from the global generator")
def test_a_folder_with_configuration_and_weights_is_a_model(tiny_name, tmp_path):
    import open_clip

    config = open_clip.get_model_config(tiny_name)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    local = make(model=f"local-dir:{tmp_path}")
    assert local.describe().sites[SITE] == 32
    assert set(local.fingerprint()["model"]) == {"open_clip_config.json", "open_clip_pytorch_model.bin"}
    local.prepare(FakeContext(tmp_path / "store"))
    assert rows_of(local, 0, 7).shape == (7, 32)


def test_a_name_with_random_weights_is_seeded(tiny_name, tmp_path):
    rows = []
    for seed in (0, 0, 1):
        named = make(model=tiny_name, weights="random", seed=seed)
        named.prepare(FakeContext(tmp_path, seed=seed))
        rows.append(named.read_images(torch.ones(1, 3, 16, 16), SITE))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_vit_b_32_with_random_weights(tmp_path):
    large = make(model="ViT-B-32", weights="random", images={"type": "digits", "templates": ["{}"]})
    description = large.describe()
    assert description.sites == {f"visual.blocks.{index}": 768 for index in range(12)}
    large.prepare(FakeContext(tmp_path))
    batch = large.read_images(large.images("evaluation", 0, 1), "visual.blocks.5")
    assert batch.shape == (1, 50, 768)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "RN50", "weights": "random"}, "ResNet"),
        ({"model": "ViT-B-16-SigLIP", "weights": "random"}, "vit_base"),
        ({"model": "ViT-B-33", "weights": "random"}, "did you mean"),
        ({"model": "ViT-B-32", "pretrained": "no/such/file.pt"}, r"file\.pt"),
        ({"sites": ["visual.blocks.3"]}, r"visual\.blocks\.0 to visual\.blocks\.2"),
        ({"sites": ["layers.1"]}, r"layers\.1"),
        ({"images": {"type": "image_folder", "path": "no/such/folder"}}, "folder"),
    ],
)
def test_description_names_what_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes).describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-B-32"}, "pretrained"),
        ({"pretrained": "openai"}, "leave it out"),
        ({"model": {**TINY, "patch_size": 5}}, "multiple"),
        ({"holdout": 1.0}, "holdout"),
        ({"tokens": "some"}, "tokens"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        make(**changes)


def test_unknown_tags_are_refused_with_those_that_exist(tmp_path):
    with pytest.raises(InputError, match="laion2b_s34b_b79k"):
        make(model="ViT-B-32", pretrained="laion2b_s34b_b79").prepare(FakeContext(tmp_path))


def test_quick_gelu_follows_the_tag():
    from saebench_plugins.backbones._clip_models import _tag_uses_quick_gelu

    assert _tag_uses_quick_gelu("ViT-B-32", "openai")
    assert not _tag_uses_quick_gelu("ViT-B-32", "laion2b_s34b_b79k")


def test_a_checkpoint_that_does_not_fit_is_refused(tiny_name, tmp_path):
    torch.save({"visual.proj": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="cannot be loaded"):
        make(model=tiny_name, pretrained=str(tmp_path / "other.pt")).prepare(FakeContext(tmp_path / "store"))


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="leave a split empty"):
        draw_splits(4, 0.2, seed=0)


def test_shift_moves_up_and_left_and_repeats_the_border():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(1, 3, 3, 3)
    moved = shifted(image, torch.tensor([[1], [-1]]))
    assert moved[0, 0].tolist() == [[3, 3, 4], [6, 6, 7], [6, 6, 7]]


def test_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, saebench_plugins.backbones.open_clip as plugin\n"
        "plugin.register_backbones()\n"
        "config = plugin.OpenClipConfig(model='ViT-B-32', weights='random', images={'type': 'digits'})\n"
        "plugin.OpenClip(config).describe()\n"
        "heavy = {'open_clip', 'timm', 'transformers', 'PIL', 'torchvision', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_hook_offers_the_backbone():
    (spec,) = register_backbones()
    assert spec.config is OpenClipConfig
    assert spec.build is OpenClip
