"""open_clip's models by name: sizes without importing the library, loading, random weights."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core import Context, ImageSet, InputError, Patch, PluginError, derive_seed, locate, nearest

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "HUB",
    "LOCAL",
    "ClipModel",
    "Patched",
    "VitSizes",
    "captions",
    "checkpoint_path",
    "encode_classes",
    "encode_images",
    "load_named",
    "local_files",
    "preprocessed",
    "read_block",
    "redraw",
    "vit_sizes",
]

LOCAL: Final = "local-dir:"
HUB: Final = "hf-hub:"
_CHECKPOINTS: Final = (".bin", ".pt", ".pth", ".safetensors")


class VitSizes(NamedTuple):
    """Sizes of an image transformer; ``parameters`` is an estimate for both towers."""

    width: int
    layers: int
    patches: int
    image_size: int
    parameters: int


class ClipModel(NamedTuple):
    """A loaded model, fp32 on the CPU, and what goes with it.

    Attributes:
        model: open_clip's CLIP, CustomTextCLIP or CoCa.
        preprocess: turns a PIL image into ``(3, side, side)``.
        tokenise: turns texts into token ids ``(texts, length)``.
    """

    model: Any
    preprocess: Callable[[Image.Image], Float[Tensor, "3 side side"]]
    tokenise: Callable[[list[str]], Tensor]


class Patched(NamedTuple):
    """Where a patch acts: after block number ``block``, on the tokens ``used`` (class token first)."""

    block: int
    used: slice
    patch: Patch


def vit_sizes(name: str) -> VitSizes:
    """Return the sizes that a model's configuration states; reads JSON only, and the network for a hub's name.

    Raises:
        InputError: if there is no such model, or its image tower is not open_clip's own vision transformer.
    """
    config = _configuration(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers = vision.get("layers", 12)  # absent keys have the defaults of open_clip.CLIPVisionCfg
    if vision.get("timm_model_name") or not isinstance(layers, int):
        kind = vision.get("timm_model_name") or "a ResNet"
        raise InputError(
            f"open_clip model {name!r} has {kind} as image tower; "
            "`visual.blocks` needs open_clip's own vision transformer, as in ViT-B-32, ViT-B-16, ViT-L-14"
        )
    width = vision.get("width", 768)
    sides, patch = _pair(vision.get("image_size", 224)), _pair(vision.get("patch_size", 16))
    text_width = text.get("width", 512)
    parameters = 12 * width**2 * layers + 12 * text_width**2 * text.get("layers", 12)
    parameters += text_width * text.get("vocab_size", 49408)
    return VitSizes(width, layers, (sides[0] // patch[0]) * (sides[1] // patch[1]), sides[0], parameters)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _configuration(name: str) -> Mapping[str, Any]:
    if name.startswith(LOCAL):
        place = locate(name.removeprefix(LOCAL) + "/open_clip_config.json")
        found = json.loads(place.read_text(encoding="utf-8"))
        return dict(found.get("model_cfg", found))
    built_in = _built_in()
    known = built_in.get(name.replace("/", "-"))
    if known is not None:
        return dict(json.loads(known.read_text(encoding="utf-8")))
    import open_clip  # models that the user added to open_clip, and hub names: the only ones that need the import

    config = open_clip.get_model_config(name)
    if config is None:
        raise InputError(f"open_clip has no model {name!r}{nearest(name, built_in) or '; see open_clip.list_models()'}")
    return dict(config)


def _built_in() -> dict[str, Path]:
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return {path.stem: path for folder in folders or () for path in Path(folder, "model_configs").glob("*.json")}


def checkpoint_path(pretrained: str) -> Path | None:
    """Return the file that ``pretrained`` names, or None if it is a tag.

    Raises:
        InputError: if it looks like a file and is none.
    """
    looks_like_file = any(mark in pretrained for mark in ("/", "\\", "package:")) or pretrained.endswith(_CHECKPOINTS)
    return locate(pretrained) if looks_like_file or Path(pretrained).is_file() else None


def local_files(name: str) -> tuple[str, ...]:
    """Return the files that a ``local-dir:`` model is made of, without their folder's path."""
    folder = locate(name.removeprefix(LOCAL))
    return tuple(path.name for path in sorted(folder.iterdir()) if path.suffix in {*_CHECKPOINTS, ".json"})


def load_named(name: str, pretrained: str | None, seed: int) -> ClipModel:
    """Load a model of open_clip; without ``pretrained`` and schema, its own random initialisation by the seed.

    Raises:
        InputError: if the tag is unknown, cannot be fetched, or the checkpoint does not fit the model.
    """
    import open_clip

    scheme = name.startswith((LOCAL, HUB))
    name = f"{LOCAL}{locate(name.removeprefix(LOCAL))}" if name.startswith(LOCAL) else name
    path = checkpoint_path(pretrained) if pretrained else None
    quick_gelu = bool(pretrained and path is None and _tag_uses_quick_gelu(name, pretrained))
    with _quiet_root_logger(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "open_clip", "weights"))  # modules draw from the global generator
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=str(path) if path else pretrained,
                force_quick_gelu=quick_gelu,
                pretrained_text=bool(pretrained or scheme),  # else a download for text towers of transformers
                weights_only=True,
            )
            tokenise = open_clip.get_tokenizer(name)
        except Exception as error:  # what can go wrong here is open_clip's, torch's, or the network's
            given = f"pretrained {pretrained!r}" if pretrained else "its weights"
            raise InputError(f"open_clip model {name!r} cannot be loaded with {given}: {error}") from error
    return ClipModel(model.eval(), preprocess, tokenise)


def _tag_uses_quick_gelu(name: str, tag: str) -> bool:
    """Say whether a tag was trained with QuickGELU: open_clip would only warn, and compute with another function."""
    import open_clip

    cfg = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    if not cfg:
        tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
        hint = nearest(tag, tags)
        raise InputError(
            f"open_clip model {name!r} has no pretrained tag {tag!r}{hint}; "
            f"its tags are {', '.join(tags) or 'none'}; or give the path of a checkpoint"
        )
    if (open_clip.get_model_config(name.replace("/", "-")) or {}).get("quick_gelu") and not cfg.get("quick_gelu"):
        raise InputError(f"tag {tag!r} was not trained with QuickGELU; take model {name.removesuffix('-quickgelu')!r}")
    return bool(cfg.get("quick_gelu"))


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Give the root logger a handler for a while: open_clip's logging calls would else install one for good."""
    handler = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def redraw(model: torch.nn.Module, generator: Callable[[str], torch.Generator]) -> None:
    """Replace every parameter, in place, by a normal draw with its mean and standard deviation.

    Args:
        model: on the CPU, fp32.
        generator: returns the generator of a parameter's name.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.to(torch.float64)
            draw = torch.randn(parameter.shape, generator=generator(name), device="cpu")
            std = values.std(correction=0)  # a scalar, such as the logit scale, stays what it is
            parameter.copy_(values.mean() + std * draw.to(torch.float64))


def preprocessed(clip: ClipModel, images: ImageSet, chosen: Sequence[int]) -> Float[Tensor, "images 3 height width"]:
    """Return these images as the model takes them, fp32 on the CPU."""
    return torch.stack([clip.preprocess(images.image(index)) for index in chosen])


def captions(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the caption of every class, template by template."""
    return [[template.replace("{}", name) for name in names] for template in templates]


def encode_classes(clip: ClipModel, texts: Sequence[list[str]], context: Context) -> Float[Tensor, "classes embed"]:
    """Return the normalised mean over templates of each class's normalised text features.

    Source: CLIP (Radford et al. 2021), section 3.1.4; open_clip.build_zero_shot_classifier.
    """
    encoded = []
    with torch.no_grad():
        for done, template in enumerate(texts, start=1):
            parts = torch.split(clip.tokenise(template).to(context.device), 256)  # bounds memory for many classes
            encoded.append(torch.cat([clip.model.encode_text(part, normalize=True) for part in parts]))
            context.progress("encoding class texts", done, len(texts))
    return torch.nn.functional.normalize(torch.stack(encoded).mean(dim=0), dim=-1)


def read_block(
    clip: ClipModel, images: Float[Tensor, "images 3 height width"], index: int
) -> Float[Tensor, "images tokens d_in"]:
    """Return the residual stream after a block, class token first; later blocks do not run."""
    with torch.no_grad():
        found = clip.model.visual.forward_intermediates(
            images,
            indices=[index],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
    return torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)


def encode_images(
    clip: ClipModel, images: Float[Tensor, "images 3 height width"], place: Patched | None
) -> Float[Tensor, "images embed"]:
    """Return image features, fp32, not normalised.

    Raises:
        PluginError: if the patch returns another shape than it was given.
    """
    if place is None:
        return clip.model.encode_image(images, normalize=False).to(torch.float32)  # type: ignore[no-any-return]
    transformer = clip.model.visual.transformer

    def replace(module: torch.nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = output if transformer.batch_first else output.transpose(0, 1)
        rows = tokens[:, place.used].flatten(0, 1).to(torch.float32)
        new = place.patch(rows)
        if new.shape != rows.shape:
            raise PluginError(f"a patch returned shape {tuple(new.shape)} for rows of shape {tuple(rows.shape)}")
        first, stop, _ = place.used.indices(tokens.shape[1])
        new = new.reshape(len(tokens), stop - first, -1).to(tokens.dtype)
        tokens = torch.cat([tokens[:, :first], new, tokens[:, stop:]], dim=1)  # not in place: gradients may flow
        return tokens if transformer.batch_first else tokens.transpose(0, 1)

    handle = transformer.resblocks[place.block].register_forward_hook(replace)
    try:
        return clip.model.encode_image(images, normalize=False).to(torch.float32)  # type: ignore[no-any-return]
    finally:
        handle.remove()
