"""Checks of backbones that are models: reading and patching of language and vision models."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from saebench_core.conformance.backbones import BackboneSubject
from saebench_core.conformance.checks import NotCheckable, check, demand, demand_close, demand_equal
from saebench_core.interfaces.backbone import EditableModel, LanguageModel, TokenBatch, VisionModel
from saebench_core.interfaces.context import Split


def _language(subject: BackboneSubject) -> LanguageModel:
    if not isinstance(subject.backbone, LanguageModel):
        raise NotCheckable("the backbone does not offer LanguageModel")
    return subject.backbone


def _vision(subject: BackboneSubject) -> VisionModel:
    if not isinstance(subject.backbone, VisionModel):
        raise NotCheckable("the backbone does not offer VisionModel")
    return subject.backbone


def _demand_batch(what: str, tokens: TokenBatch, count: int) -> None:
    shapes = [tuple(tensor.shape) for tensor in tokens]
    demand(len(set(shapes)) == 1, f"{what}: shapes {shapes}", "one shape for ids, attention and kept")
    demand_equal(f"{what}: sequences", shapes[0][0], count)
    demand(bool((tokens.attention | ~tokens.kept).all()), f"{what}: padding is kept", "kept tokens among the attended")
    padded_right = bool((tokens.attention.int().diff(dim=1) <= 0).all())
    demand(padded_right, f"{what}: padding on the left", "padding on the right")


@check("return TokenBatch(ids, attention, kept), padded on the right; keep no padding and no special token")
def check_tokens(subject: BackboneSubject) -> None:
    """Sequences and texts become tokens of one shape, padded on the right, cut where asked."""
    model = _language(subject)
    for split in get_args(Split):
        _demand_batch(f"sequences of {split}", model.sequences(split, 0, 2), 2)
    short, long = "one two", "one two three four five six seven eight nine ten " * 3
    tokens = model.tokenise([short, long], 8)
    _demand_batch("texts", tokens, 2)
    demand(tokens.ids.shape[1] <= 8, f"{tokens.ids.shape[1]} tokens of a text", "at most the 8 that were asked for")


@check("return from `read` one fp32 row for each kept token, sequence by sequence, whatever else is in the batch")
def check_tokens_are_read(subject: BackboneSubject) -> None:
    """Each kept token has its row, and a text's rows do not depend on the texts beside it."""
    model, site = _language(subject), subject.site
    tokens = model.sequences("evaluation", 0, 3)
    x = model.read(tokens, site)
    width = subject.backbone.describe().sites[site]
    demand_equal("shape of what is read", tuple(x.shape), (int(tokens.kept.sum()), width))
    demand(x.dtype == torch.float32, f"{x.dtype}", "torch.float32")
    parts = [TokenBatch(*(tensor[place : place + 1] for tensor in tokens)) for place in range(len(tokens.ids))]
    alone = torch.cat([model.read(part, site) for part in parts])
    demand_close("sequences read one by one", alone, x, 1e-3, 1e-3 * float(x.abs().max()))


@check("replace the kept tokens' activations at the site by what the patch returns, and nothing else")
def check_logits_are_patched(subject: BackboneSubject) -> None:
    """Logits see the patch: the same activations change nothing, zeros do, and the patch is given what is read."""
    model, site = _language(subject), subject.site
    tokens = model.sequences("evaluation", 0, 2)
    seen: list[Tensor] = []

    def keep(activations: Tensor) -> Tensor:
        seen.append(activations.detach().clone())
        return activations

    clean = model.logits(tokens, site, None)
    demand_equal("sequences and length of the logits", tuple(clean.shape[:2]), tuple(tokens.ids.shape))
    demand(clean.dtype == torch.float32, f"{clean.dtype}", "torch.float32")
    slack = 1e-3 * float(clean.abs().max())
    attended = tokens.attention
    same = model.logits(tokens, site, keep)
    demand_close("logits under a patch that keeps", same[attended], clean[attended], 1e-3, slack)
    x = model.read(tokens, site)
    demand(bool(seen), "the patch is never called", "a call with the activations of the site")
    demand_close("what the patch is given", torch.cat(seen), x, 1e-3, 1e-3 * float(x.abs().max()))
    zero = model.logits(tokens, site, torch.zeros_like)
    demand(not torch.allclose(zero, clean, atol=slack), "zeros at the site leave the logits alone", "other logits")


@check("go on from `states` as if from the start, see what was edited, and answer with the likeliest token")
def check_editing_goes_on(subject: BackboneSubject) -> None:
    """States are what is read; logits from them are those of a whole pass; the first word is the likeliest one."""
    model, site = _language(subject), subject.site
    if not isinstance(model, EditableModel):
        raise NotCheckable("the backbone does not offer EditableModel")
    tokens = model.sequences("evaluation", 0, 3)
    states = model.states(tokens, site)
    x = model.read(tokens, site)
    demand_close("states of kept tokens", states[tokens.kept].float(), x, 1e-3, 1e-3 * float(x.abs().max()))
    clean = model.logits(tokens, site, None)
    slack = 1e-3 * float(clean.abs().max())
    attended = tokens.attention
    demand_close("logits from states", model.logits_from(tokens, site, states)[attended], clean[attended], 1e-3, slack)
    last = clean[torch.arange(len(clean), device=clean.device), attended.sum(1) - 1]
    resumed = model.resume(tokens, site, states)
    demand_close("logits after each last token", resumed, last, 1e-3, slack)
    nothing = torch.zeros_like(states)
    for name, found, before in (
        ("logits_from", model.logits_from(tokens, site, nothing)[attended], clean[attended]),
        ("resume", model.resume(tokens, site, nothing), last),
    ):
        demand(not torch.allclose(found, before, atol=slack), f"zeros leave the logits of {name} alone", "other logits")
    own = torch.ones_like(tokens.ids[:, 0])
    edited = torch.cat([states[:, :1], nothing[:, 1:]], dim=1)
    after = model.resume(tokens, site, edited, own)
    demand_close("logits after a beginning of the model's own", after, model.resume(tokens, site, edited), 1e-3, slack)
    first = model.generate(tokens, 2, site, states, own)
    demand_equal("shape of what is generated", tuple(first.shape), (len(last), 2))
    chosen = resumed.gather(1, first[:, :1].to(resumed.device))[:, 0]
    demand_close("logits of the first token generated", chosen, resumed.max(1).values, 1e-3, slack)


@check("count, label and name what `images` returns")
def check_images_have_labels(subject: BackboneSubject) -> None:
    """Each split has images, each with a class that has a name."""
    model = _vision(subject)
    classes = len(model.class_names())
    for split in get_args(Split):
        count, labels = model.image_count(split), model.labels(split)
        demand(count > 0, f"{split}: {count} images", "at least one")
        demand_equal(f"{split}: number of labels", tuple(labels.shape), (count,))
        inside = bool(((labels >= 0) & (labels < classes)).all())
        demand(inside, f"{split}: labels up to {int(labels.max())}", f"0 to {classes - 1}")
        images = model.images(split, 0, 3)
        demand(images.ndim == 4, f"{split}: images of shape {tuple(images.shape)}", "(images, channels, height, width)")
        demand_close(f"{split}: an image by itself", model.images(split, 1, 1), images[1:2], 1e-5)


@check("replace at the site what `read_images` returns by what the patch returns, and nothing else")
def check_classes_are_patched(subject: BackboneSubject) -> None:
    """Zero-shot logits see the patch, and images are read as they are streamed."""
    model, site = _vision(subject), subject.site
    images = model.images("evaluation", 0, 4)
    tokens = model.read_images(images, site)
    width = subject.backbone.describe().sites[site]
    demand(tokens.ndim == 3 and tokens.shape[2] == width, f"shape {tuple(tokens.shape)}", f"(4, tokens, {width})")
    flat, scale = tokens.flatten(0, 1), float(tokens.abs().max())
    streamed = subject.rows("evaluation", 0, len(flat))
    if len(streamed) == len(flat):
        demand_close("rows that are streamed", streamed, flat, 1e-3, 1e-3 * scale)
    clean = model.zero_shot_logits(images, site, None)
    demand_equal("shape of the logits", tuple(clean.shape), (4, len(model.class_names())))
    slack = 1e-3 * float(clean.abs().max())
    same = model.zero_shot_logits(images, site, lambda activations: activations)
    demand_close("logits under a patch that keeps", same, clean, 1e-3, slack)
    zero = model.zero_shot_logits(images, site, torch.zeros_like)
    demand(not torch.allclose(zero, clean, atol=slack), "zeros at the site leave the logits alone", "other logits")
