"""A small CLIP, trained here: open_clip's model class and loss, on the images of any source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saebench_core import Context, ImageSet, Json, Model, Progress, derive_seed, named_generator
from saebench_plugins.backbones._clip_models import ClipModel, VitSizes, captions, preprocessed

if TYPE_CHECKING:
    from open_clip import CLIP

__all__ = ["Contrastive", "Pairs", "build_clip", "load_contrastive", "shifted", "train_clip"]


class Contrastive(Model):
    """Sizes and training of the small CLIP. The defaults take about 40 s on two cores for scikit-learn's digits."""

    type: Literal["contrastive"] = "contrastive"
    image_size: PositiveInt = Field(32, description="Side of the images, pixels.")
    patch_size: PositiveInt = Field(8, description="Side of a patch, pixels.")
    width: PositiveInt = Field(128, description="Width of the image transformer: d_in.")
    layers: PositiveInt = Field(6, description="Blocks of the image transformer.")
    heads: PositiveInt = Field(4, description="Attention heads of the image transformer.")
    embed_dim: PositiveInt = Field(64, description="Width of the common space of images and texts.")
    text_width: PositiveInt = Field(64, description="Width of the text transformer.")
    text_layers: PositiveInt = Field(2, description="Blocks of the text transformer.")
    text_heads: PositiveInt = Field(4, description="Attention heads of the text transformer.")
    context_length: PositiveInt = Field(24, description="Longest caption, tokens; longer ones are cut.")
    steps: PositiveInt = Field(350, description="Optimiser steps.")
    batch_size: PositiveInt = Field(64, description="Image-text pairs of a step.")
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate (AdamW): linear warm-up, then a cosine to zero.")
    warmup_steps: NonNegativeInt = Field(25, description="Steps of the warm-up.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay of matrices.")
    shift: NonNegativeInt = Field(3, description="Largest random shift of a training image, pixels either way.")
    seed: int = Field(0, description="Seed of weights, batches and shifts.")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Contrastive:
        for whole, part in (("image_size", "patch_size"), ("width", "heads"), ("text_width", "text_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}")
        return self

    def sizes(self) -> VitSizes:
        """Return the sizes of the image transformer."""
        parameters = 12 * self.width**2 * self.layers + 12 * self.text_width**2 * self.text_layers
        parameters += self.text_width * 49408  # open_clip's vocabulary
        patches = (self.image_size // self.patch_size) ** 2
        return VitSizes(self.width, self.layers, patches, self.image_size, parameters)


class Pairs(NamedTuple):
    """What the model learns from.

    Attributes:
        images: preprocessed images, ``(images, 3, side, side)``.
        labels: class of each, ``(images,)``.
        captions: token ids of every class in every template, ``(templates, classes, length)``.
    """

    images: Float[Tensor, "images 3 side side"]
    labels: Int[Tensor, " images"]
    captions: Int[Tensor, "templates classes length"]


def build_clip(config: Contrastive) -> CLIP:
    """Return open_clip's CLIP in these sizes, with its own initialisation drawn from ``config.seed``."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=config.layers,
        width=config.width,
        head_width=config.width // config.heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context_length,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    with torch.random.fork_rng(devices=[]):  # modules draw from the global generator
        torch.manual_seed(derive_seed(config.seed, "contrastive", "weights"))
        return CLIP(config.embed_dim, vision, text)


def train_clip(model: CLIP, config: Contrastive, pairs: Pairs, device: torch.device, progress: Progress) -> None:
    """Train in place with the contrastive loss (CLIP: Radford et al. 2021, section 2), in fp32.

    A class has few captions, so a batch holds equal texts. The loss counts them as negatives; its minimum is then
    not zero, but the gradients still pull an image to its class.
    """
    from open_clip import ClipLoss

    loss_of, generator = ClipLoss(), named_generator(config.seed, "contrastive", "batches")
    model.to(device).train()
    optimiser, schedule = _optimiser(model, config)
    for step in range(config.steps):
        images, tokens = _batch(pairs, config, generator, device)
        texts, place = torch.unique(tokens, dim=0, return_inverse=True)  # equal captions are encoded once
        text_features = model.encode_text(texts, normalize=True)[place]
        loss = loss_of(model.encode_image(images, normalize=True), text_features, model.logit_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # the bound of CLIP's section 2.5
        progress("training a small CLIP", step + 1, config.steps)
    model.eval()


def _optimiser(model: CLIP, config: Contrastive) -> tuple[torch.optim.Optimizer, Any]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups: Sequence[dict[str, Any]] = (
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    )
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _batch(
    pairs: Pairs, config: Contrastive, generator: torch.Generator, device: torch.device
) -> tuple[Float[Tensor, "batch 3 side side"], Int[Tensor, "batch length"]]:
    size = min(config.batch_size, len(pairs.images))
    chosen = torch.randperm(len(pairs.images), generator=generator, device="cpu")[:size]
    template = torch.randint(len(pairs.captions), (size,), generator=generator, device="cpu")
    tokens = pairs.captions[template, pairs.labels[chosen]]
    offsets = torch.randint(2 * config.shift + 1, (2, size), generator=generator, device="cpu")
    images = shifted(pairs.images[chosen], offsets - config.shift)
    return images.to(device), tokens.to(device)


def shifted(
    images: Float[Tensor, "batch 3 side side"], offsets: Int[Tensor, "2 batch"]
) -> Float[Tensor, "batch 3 side side"]:
    """Return each image moved up and left by its own offset (pixels), its border repeated."""
    side = images.shape[-1]
    places = (torch.arange(side, device=images.device) + offsets[..., None]).clamp(0, side - 1)  # (2, batch, side)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, :, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)


def load_contrastive(
    config: Contrastive,
    images: ImageSet,
    templates: Sequence[str],
    train: Int[Tensor, " images"],
    key: Mapping[str, Json],
    context: Context,
) -> ClipModel:
    """Return the model from the store; it is trained on the images ``train`` if it is not there.

    Args:
        config: sizes and training.
        images: all images.
        templates: captions of a class.
        train: indices of the images to learn from.
        key: what the images, the templates and the choice of ``train`` depend on.
        context: gives store, device and progress.
    """
    import open_clip
    from safetensors.torch import load_file, save_file

    tokenise = open_clip.SimpleTokenizer(context_length=config.context_length)
    clip = ClipModel(build_clip(config), open_clip.image_transform(config.image_size, is_train=False), tokenise)

    def build(folder: Path) -> None:
        labels = torch.tensor(images.labels, device="cpu")[train]
        tokens = torch.stack([tokenise(texts) for texts in captions(images.class_names, templates)])
        pairs = Pairs(preprocessed(clip, images, train.tolist()), labels, tokens)
        train_clip(clip.model, config, pairs, context.device, context.progress)
        state = {name: tensor.cpu().contiguous() for name, tensor in clip.model.state_dict().items()}
        save_file(state, folder / "clip.safetensors")

    place = context.product({"contrastive": config.model_dump(mode="json"), **key}, build)
    clip.model.cpu().load_state_dict(load_file(place / "clip.safetensors"))
    return clip
