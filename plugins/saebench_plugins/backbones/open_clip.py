"""Backbone: the image transformer of a CLIP, by name, by checkpoint, or trained here on the images given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from saebench_core import (
    ActivationBatch,
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Context,
    ImageSource,
    InputError,
    Json,
    Patch,
    PluginError,
    Split,
    file_sha256,
    hookimpl,
    locate,
)
from saebench_plugins.backbones._clip_models import (
    HUB,
    LOCAL,
    ClipModel,
    Patched,
    VitSizes,
    captions,
    checkpoint_path,
    encode_classes,
    encode_images,
    load_named,
    local_files,
    preprocessed,
    read_block,
    redraw,
    vit_sizes,
)
from saebench_plugins.backbones._contrastive import Contrastive, load_contrastive
from saebench_plugins.backbones._split_images import SplitImages, draw_splits

PREFIX: Final = "visual.blocks."
USED: Final = {"cls": slice(0, 1), "patches": slice(1, None), "all": slice(None)}
DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
FLOPS: Final = 1e11
"""Assumed speed, for the plan's estimates only: between small and large models on two CPU cores."""


def _brings_weights(model: str | Contrastive) -> bool:
    return isinstance(model, Contrastive) or model.startswith((LOCAL, HUB))


class OpenClipConfig(BackboneConfig):
    """Configuration of `OpenClip`."""

    type: Literal["open_clip"] = "open_clip"
    model: str | Contrastive = Field(
        description="Name in open_clip, such as ViT-B-32 (ViT-B-32-quickgelu for OpenAI's weights in a local file), "
        "hf-hub:NAME, local-dir:FOLDER, or a small CLIP that is trained here: {type: contrastive}."
    )
    pretrained: str | None = Field(None, description="Tag of open_clip (a hub), or path of a checkpoint.")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained",
        description="random: every parameter redrawn with the mean and deviation that it has; for a name without "
        "`pretrained`, open_clip's own initialisation.",
    )
    tokens: Literal["cls", "patches", "all"] = Field("all", description="Tokens whose activations are used.")
    images: ImageSource = Field(description="Where images, labels and names of classes come from.")
    forward_batch: PositiveInt = Field(32, description="Images of one forward pass.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of images never trained on.")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="Number format; auto: the runtime's.")

    @model_validator(mode="after")
    def _weights_are_given(self) -> OpenClipConfig:
        complete = _brings_weights(self.model)
        if complete and self.pretrained is not None:
            raise ValueError("`pretrained` is not allowed with a model that brings its own weights; leave it out")
        if not complete and self.pretrained is None and self.weights == "pretrained":
            raise ValueError(
                "`pretrained` is missing: give a tag of open_clip or the path of a checkpoint, or set weights: random, "
                "or train a small model with model: {type: contrastive}"
            )
        return self


@dataclass(frozen=True)
class _Loaded:
    clip: ClipModel
    images: SplitImages
    class_texts: Float[Tensor, "classes embed"]
    logit_scale: float
    device: torch.device
    dtype: torch.dtype


class OpenClip(Backbone):
    """Residual stream after the blocks of CLIP's image transformer; offers `VisionModel`.

    Rows are images times tokens in use: class token first, then patches row by row. The images of a split stand
    in an order drawn by the backbone's seed, and pass the model in fixed groups of ``forward_batch``, so that rows
    are bit-equal for any cut.
    """

    def __init__(self, config: OpenClipConfig) -> None:
        self.config = config
        self._state: _Loaded | None = None
        self._sizes: VitSizes | None = None
        self._last: tuple[tuple[str, str, int], Float[Tensor, "rows d_in"]] | None = None

    def describe(self) -> BackboneDescription:
        """Return ``visual.blocks.N`` for every block.

        Raises:
            InputError: if there is no such model, or a file is missing, or a wanted site does not exist.
        """
        sizes, tokens = self._vit(), self._tokens()
        if self.config.pretrained is not None:
            checkpoint_path(self.config.pretrained)
        if self.config.images.type == "image_folder":
            locate(self.config.images.path)
        sites = {f"{PREFIX}{index}": sizes.width for index in range(sizes.layers)}
        for site in self.config.sites or ():
            self._block(site)
        per_row = 24 * sizes.width**2 * sizes.layers * (sizes.patches + 1) / tokens
        facts: dict[str, Json] = {"blocks": sizes.layers, "tokens_per_image": tokens, "image_size": sizes.image_size}
        return BackboneDescription(
            modality="vision",
            sites=sites,
            memory_bytes=4 * sizes.parameters,
            disk_bytes=4 * sizes.parameters if isinstance(self.config.model, Contrastive) else 0,
            seconds_per_row=per_row / FLOPS,
            flops_per_row=per_row,
            facts=facts,
        )

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the images and of local weights."""
        found: dict[str, Json] = {"images": self.config.images.fingerprint()}
        model = self.config.model
        if isinstance(model, str) and model.startswith(LOCAL):
            folder = locate(model.removeprefix(LOCAL))
            found["model"] = {name: file_sha256(folder / name) for name in local_files(model)}
        path = checkpoint_path(self.config.pretrained) if self.config.pretrained else None
        if path is not None:
            found["pretrained"] = file_sha256(path)
        return found

    def prepare(self, context: Context) -> None:
        """Load or train the model, open the images, encode the classes' captions.

        Raises:
            InputError: if images or weights cannot be read.
        """
        images, templates = self.config.images.open(), self.config.images.templates
        splits = draw_splits(len(images), self.config.holdout, self.config.seed)
        model = self.config.model
        if isinstance(model, Contrastive):
            clip = load_contrastive(model, images, templates, splits["train"], self._training_key(), context)
        else:
            clip = load_named(model, self.config.pretrained, self.config.seed)
        if self.config.weights == "random" and (self.config.pretrained or _brings_weights(model)):
            redraw(clip.model, lambda name: context.generator(f"random weights: {name}"))
        clip.model.eval().requires_grad_(False)
        scale = float(clip.model.logit_scale.detach().exp())  # before bf16, which would move it by up to 1 %
        clip.model.to(context.device)
        texts = encode_classes(clip, captions(images.class_names, templates), context)
        dtype = context.backbone_dtype if self.config.dtype == "auto" else DTYPES[self.config.dtype]
        clip.model.to(dtype)
        self._state = _Loaded(clip, SplitImages(images, splits), texts, scale, context.device, dtype)

    def rows_available(self, site: str, split: Split) -> int:
        """Return images times tokens in use."""
        self._block(site)
        return self.image_count(split) * self._tokens()

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield rows group by group; bit-equal for any cut."""
        stop = min(start + rows, self.rows_available(site, split))
        size = self.config.forward_batch * self._tokens()
        for group in range(start // size, -(-stop // size) if start < stop else 0):
            low = group * size
            values = self._group(site, split, group)
            piece = values[max(start - low, 0) : stop - low]
            self._last = None
            if low + len(values) > stop:  # the next call goes on inside this group
                self._last, piece = ((site, split, group), values), piece.clone()
            yield ActivationBatch(piece, piece)

    def image_count(self, split: Split) -> int:
        """Return the number of images of a split."""
        return self._loaded.images.count(split)

    def images(self, split: Split, start: int, count: int) -> Float[Tensor, "images channels height width"]:
        """Return preprocessed images, fewer than ``count`` if the split ends."""
        loaded = self._loaded
        chosen = loaded.images.chosen(split, start, count)
        return preprocessed(loaded.clip, loaded.images.everything, chosen).to(loaded.device)

    def labels(self, split: Split) -> Int[Tensor, " images"]:
        """Return every image's class, in the split's order."""
        return self._loaded.images.labels(split, self._loaded.device)

    def class_names(self) -> Sequence[str]:
        """Return the names of the classes."""
        return tuple(self._loaded.images.everything.class_names)

    def read_images(self, images: Tensor, site: str) -> Float[Tensor, "images tokens d_in"]:
        """Return the activations of the tokens in use, fp32; the forward pass ends after the site's block."""
        index, loaded = self._block(site), self._loaded
        used, read = USED[self.config.tokens], []
        for group in torch.split(images, self.config.forward_batch):
            tokens = read_block(loaded.clip, group.to(loaded.device, loaded.dtype), index)
            read.append(tokens[:, used].to(torch.float32))
        return torch.cat(read)

    def zero_shot_logits(self, images: Tensor, site: str, patch: Patch | None) -> Float[Tensor, "images classes"]:
        """Return ``exp(logit_scale)`` times the cosines to the class texts, fp32.

        Gradients flow through what ``patch`` returns; ``patch`` sees ``forward_batch`` images at a time.
        """
        index, loaded = self._block(site), self._loaded
        place = None if patch is None else Patched(index, USED[self.config.tokens], patch)
        features = [
            encode_images(loaded.clip, group.to(loaded.device, loaded.dtype), place)
            for group in torch.split(images, self.config.forward_batch)
        ]
        unit = torch.nn.functional.normalize(torch.cat(features), dim=-1)
        return loaded.logit_scale * unit @ loaded.class_texts.T

    @property
    def _loaded(self) -> _Loaded:
        if self._state is None:
            raise PluginError("open_clip: call prepare(context) first")
        return self._state

    def _vit(self) -> VitSizes:
        if self._sizes is None:
            model = self.config.model
            self._sizes = model.sizes() if isinstance(model, Contrastive) else vit_sizes(model)
        return self._sizes

    def _tokens(self) -> int:
        patches = self._vit().patches
        return {"cls": 1, "patches": patches, "all": patches + 1}[self.config.tokens]

    def _block(self, site: str) -> int:
        layers = self._vit().layers
        index = site.removeprefix(PREFIX)
        if not site.startswith(PREFIX) or not index.isdecimal() or int(index) >= layers:
            raise InputError(f"site {site!r} does not exist; this model has {PREFIX}0 to {PREFIX}{layers - 1}")
        return int(index)

    def _training_key(self) -> dict[str, Json]:
        """Return what a model that is trained here depends on beside its own settings."""
        return {
            "images": self.config.images.model_dump(mode="json", exclude={"path"}),
            "contents": self.config.images.fingerprint(),
            "split": {"seed": self.config.seed, "holdout": self.config.holdout},
        }

    def _group(self, site: str, split: Split, group: int) -> Float[Tensor, "rows d_in"]:
        if self._last is not None and self._last[0] == (site, split, group):
            return self._last[1]
        size = self.config.forward_batch
        return self.read_images(self.images(split, group * size, size), site).flatten(0, 1)


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """Offer `OpenClip`."""
    return [
        BackboneSpec(
            config=OpenClipConfig,
            build=OpenClip,
            summary="Image transformer of a CLIP: by name, from a checkpoint, or a small one trained here",
            source="open_clip (Ilharco et al. 2021); paper appendix G",
            depends=("open_clip_torch", "torchvision"),
        )
    ]
