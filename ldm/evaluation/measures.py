"""The field's measures of edited pictures, and what a report says of every measure.

Every function returns one figure per picture, ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ldm.data.images import resize, to_tensor
from ldm.errors import UserError

LPIPS_SIZE = (256, 256)  # LPIPS depends on the scale: every method's pictures are compared at this one


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    about: what it says. better: "high", "low", or "one" (nearest to 1). digits: behind the point. backbone: whose
    features it is made of ("dino", "clip", "lpips"; "" for none). pairs: it compares each picture with all the others.
    prior: it is asked of plain class samples only. likeness: it compares with the subject's photos; of a photo itself,
    with the others. before: the column of ``MEASURES`` that it stands before, "" for the end.
    """

    about: str
    better: str = "high"
    digits: int = 2
    backbone: str = ""
    pairs: bool = False
    prior: bool = False
    likeness: bool = False
    before: str = ""


MEASURES: dict[str, Measure] = {
    "background kept (dB)": Measure("PSNR against the input outside the edited region", digits=1),
    "background L1": Measure("mean absolute difference from the input outside the edited region, 0 to 1", "low", 3),
    "background LPIPS": Measure(
        "LPIPS (AlexNet) against the input, the edited region blanked in both", "low", 3, backbone="lpips"
    ),
    "DINO": Measure(
        "cosine of DINO features to the subject's other photos, mean over them",
        digits=3,
        backbone="dino",
        likeness=True,
    ),
    "CLIP-I": Measure(
        "cosine of CLIP features to the subject's other photos, mean over them",
        digits=3,
        backbone="clip",
        likeness=True,
    ),
    "CLIP-T": Measure("cosine of CLIP features of the picture and its caption after", digits=3, backbone="clip"),
    "CLIP direction": Measure("cosine of the change in pictures and the change in captions", digits=3, backbone="clip"),
    "PRES": Measure(
        "DINO of plain class samples to the subject's photos: lower keeps the prior",
        "low",
        3,
        backbone="dino",
        prior=True,
        likeness=True,
    ),
    "DIV": Measure(
        "mean LPIPS between plain class samples: higher keeps the prior",
        digits=3,
        backbone="lpips",
        pairs=True,
        prior=True,
    ),
}


def with_columns(own: Mapping[str, Measure]) -> dict[str, Measure]:
    """Return ``MEASURES`` with a suite's own columns among them, each before the one that it names, or at the end."""
    merged: dict[str, Measure] = {}
    for name, measure in MEASURES.items():
        merged |= {key: other for key, other in own.items() if other.before == name}
        merged[name] = measure
    return {**merged, **own}


def similarity(features: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine of each picture's unit features ``n d`` to the photos' ``k d``."""
    return (features @ photos.T).mean(1)


def leave_one_out(photos: torch.Tensor) -> torch.Tensor:
    """Return each photo's mean cosine to the others: the upper bound of ``similarity``. Needs two photos."""
    k = len(photos)
    if k < 2:
        raise UserError("one photo has no others to be compared with")
    return ((photos @ photos.T).sum(1) - 1) / (k - 1)


def direction(after: torch.Tensor, before: torch.Tensor, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return CLIP's directional similarity: cosine of the change in picture features and in caption features.

    An unchanged picture has no direction and counts 0.
    """
    change, wish = after - before, target - source
    cosine = F.cosine_similarity(change, wish.expand_as(change), dim=1)
    return torch.where(change.norm(dim=1) < 1e-6, torch.zeros_like(cosine), cosine)


def background(x: torch.Tensor, source: torch.Tensor, region: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return PSNR (dB, at most 60) and L1 (of values in [0, 1]) against the input outside the edited region.

    x, source: ``n 3 h w`` in [-1, 1]; region: ``n 1 h w``, 1 where the edit belongs.
    """
    outside = (region < 0.5).float().expand_as(x)
    area = outside.flatten(1).sum(1)
    if bool((area == 0).any()):
        raise UserError("the mask covers the whole picture: no background is left to measure")
    error = (x - source) / 2 * outside
    square = error.square().flatten(1).sum(1) / area
    return {
        "background kept (dB)": -10 * torch.log10(square.clamp(min=1e-6)),
        "background L1": error.abs().flatten(1).sum(1) / area,
    }


def pair_distances(lpips: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return each picture's mean LPIPS to the others, ``(n,)``; all at ``LPIPS_SIZE``."""
    x = to_tensor([resize(image, LPIPS_SIZE) for image in images])
    if len(x) < 2:
        return torch.zeros(len(x))
    totals = torch.zeros(len(x))
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]])
        totals[i] = lpips(x[i : i + 1].expand_as(others), others).mean()
    return totals


def background_distance(
    lpips: Any, images: Sequence[Image.Image], inputs: Sequence[Image.Image], region: torch.Tensor
) -> torch.Tensor:
    """Return LPIPS against the input with the edited region blanked in both, ``(n,)``; at ``LPIPS_SIZE``.

    region: ``n 1 h w`` or ``1 1 h w``, 1 where the edit belongs.
    """
    outside = (F.adaptive_max_pool2d(region.float(), LPIPS_SIZE[::-1]) < 0.5).float()
    x, before = (to_tensor([resize(image, LPIPS_SIZE) for image in given]) for given in (images, inputs))
    return lpips(x * outside, before * outside)


def field_measures(
    models: dict[str, Any],
    images: Sequence[Image.Image],
    photos: Sequence[Image.Image],
    inputs: Sequence[Image.Image | None],
    captions: tuple[str, str] = ("", ""),
    prior: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the measures that backbones give for pictures of one case. inputs: what was edited; captions: of
    the picture before and after, "" if there is none; prior: these are plain class samples."""
    measures: dict[str, torch.Tensor] = {}
    if "dino" in models and photos:
        name = "PRES" if prior else "DINO"
        measures[name] = similarity(models["dino"].images(images), models["dino"].images(photos))
    if "clip" in models:
        features = models["clip"].images(images)
        if photos and not prior:
            measures["CLIP-I"] = similarity(features, models["clip"].images(photos))
        before_words, after_words = captions
        if after_words:
            wish = models["clip"].texts([after_words])
            measures["CLIP-T"] = (features @ wish.T)[:, 0]
            if before_words and all(image is not None for image in inputs):
                before = models["clip"].images([image for image in inputs if image is not None])
                measures["CLIP direction"] = direction(features, before, wish, models["clip"].texts([before_words]))
    if "lpips" in models and prior:
        measures["DIV"] = pair_distances(models["lpips"], images)
    return measures
