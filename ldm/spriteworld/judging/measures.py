"""Measures with known answers: what an edited sprite-world picture should be is known pixel by pixel.

Pictures are ``b 3 h w`` in [-1, 1], masks ``b 1 h w`` in [0, 1] (``subject_mask``); every function returns one figure
per picture, ``(b,)``, and ``bootstrap`` puts an interval around their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

CHANGED = 0.1  # of values in [-1, 1]: a pixel in which two true pictures differ
WINDOW = 9  # pixels a side: about a head
OLD_KEYS = 0.02  # mean step between neighbours (of values in [-1, 1], across and down): about that of a plain wall


def _lab(x: torch.Tensor) -> torch.Tensor:
    return rgb_to_lab(((x + 1) / 2).clamp(0, 1).float())


def _mean_inside(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.expand_as(values)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)


def _psnr(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of an error between pictures in [-1, 1], inside a mask; capped at 60 (equal pictures)."""
    return -10 * torch.log10((_mean_inside(error.square(), mask) / 4).clamp(min=1e-6))


def _outside(masks: Sequence[torch.Tensor], margin: int) -> torch.Tensor:
    """1 where no mask comes nearer than ``margin`` pixels."""
    inside = F.max_pool2d(torch.stack(tuple(masks)).amax(0), 2 * margin + 1, stride=1, padding=margin)
    return (inside < 0.02).float()


def edited_region(*masks: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """Return where an edit may change a picture, ``b 1 h w`` of 0 and 1: all masks, widened by ``margin`` pixels, the
    ground shadow's reach."""
    return 1 - _outside(masks, margin)


def masked_psnr(x: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the PSNR (dB, at most 60) against the true picture inside the mask: for a first stage's subjects."""
    return _psnr(x - truth, mask)


def nearer_to_truth(x: torch.Tensor, source: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return 1 where a picture is nearer to the true one than to the input, in the pixels in which those two differ."""
    changed = ((truth - source).abs().amax(1, keepdim=True) > CHANGED).float()
    return (masked_psnr(x, truth, changed) > masked_psnr(x, source, changed)).float()


def exact_psnr(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the PSNR (dB, at most 60) against the true picture: for edits of the whole picture."""
    return _psnr(x - truth, torch.ones_like(x[:, :1]))


def background_psnr(x: torch.Tensor, source: torch.Tensor, *masks: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """Return how well the background was kept: PSNR (dB, at most 60) against the input outside all masks.

    masks: the subject's before and after; they are widened by ``margin`` pixels, the ground shadow's reach.
    """
    return _psnr(x - source, _outside(masks, margin))


def background_l1(x: torch.Tensor, source: torch.Tensor, *masks: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """Return the mean absolute difference (of values in [0, 1]) from the input outside all masks, as
    ``background_psnr`` takes them."""
    return _mean_inside((x - source).abs() / 2, _outside(masks, margin))


def colour_distance(x: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the distance of the subject's mean colours in CIELAB (a difference of 2 is just visible)."""
    ours, theirs = _lab(x), _lab(truth)
    return torch.stack([_mean_inside((ours - theirs)[:, i : i + 1], mask) for i in range(3)]).norm(dim=0)


def pattern_distance(x: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean distance of the subject's pixels in CIELAB after 3x3 averaging: are the marks where they
    should be."""
    blurred = [F.avg_pool2d(_lab(p), 3, stride=1, padding=1) for p in (x, truth)]
    return _mean_inside((blurred[0] - blurred[1]).norm(dim=1, keepdim=True), mask)


def roughness(x: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the total variation over the true picture's: 1 is as clean, more is speckle or mosaic, less is blur."""
    mask = torch.ones_like(x[:, :1]) if mask is None else mask

    def total(p: torch.Tensor) -> torch.Tensor:
        across, down = _variation(p)
        return _mean_inside(across, mask[..., 1:]) + _mean_inside(down, mask[..., 1:, :])

    return total(x) / total(truth).clamp(min=1e-6)


def _variation(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (p[..., 1:] - p[..., :-1]).abs(), (p[..., 1:, :] - p[..., :-1, :]).abs()


def uncleanness(x: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return how far the total variation is from the true picture's, in either direction, window by window: the mean
    of ``|log|`` of their ratio in windows of ``WINDOW`` pixels around every pixel (inside the mask).

    0 is as clean as the truth; 0.1 is a tenth too rough or too smooth throughout. Blur here does not make up for
    speckle there, as it does in ``roughness``; every window's variation counts ``OLD_KEYS`` more, so flat ones do not
    decide.
    """
    mask = torch.ones_like(x[:, :1]) if mask is None else mask

    def local(p: torch.Tensor) -> torch.Tensor:
        across, down = (part.mean(1, keepdim=True) for part in _variation(p))
        both = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
        return OLD_KEYS + F.avg_pool2d(both, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)

    return _mean_inside((local(x) / local(truth)).log().abs(), mask)


def silhouette(x: torch.Tensor, backdrop: torch.Tensor, threshold: float = 12.0) -> torch.Tensor:
    """Return where a picture differs from its empty place, ``b 1 h w`` of 0 and 1 (CIELAB distance above threshold)."""
    blurred = [F.avg_pool2d(_lab(p), 3, stride=1, padding=1) for p in (x, backdrop)]
    return ((blurred[0] - blurred[1]).norm(dim=1, keepdim=True) > threshold).float()


def overlap(shape: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return intersection over union of a silhouette and a mask."""
    hard = (mask > 0.5).float()
    both = (shape * hard).flatten(1).sum(1)
    return both / torch.maximum(shape, hard).flatten(1).sum(1).clamp(min=1)


def incomplete(
    x: torch.Tensor, backdrop: torch.Tensor, source_mask: torch.Tensor, target_mask: torch.Tensor
) -> torch.Tensor:
    """Return 1 where an edit still has the source's shape: its silhouette fits the source's mask better than the
    true target's (a published failure: the parrot in the cat's colours)."""
    shape = silhouette(x, backdrop)
    return (overlap(shape, source_mask) > overlap(shape, target_mask)).float()


def second_subject(x: torch.Tensor, source: torch.Tensor, *masks: torch.Tensor, share: float = 0.02) -> torch.Tensor:
    """Return 1 where something new stands outside the subject's place: more than ``share`` of the picture has changed
    strongly in one connected patch there, its outermost pixels not counted (a published failure: a second dog)."""
    changed = silhouette(x, source, threshold=20.0) * _outside(masks, 4)
    solid = -F.max_pool2d(-changed, 3, stride=1, padding=1)  # thin bridges between patches go, too
    return (largest_patch(solid) > share).float()


def largest_patch(shape: torch.Tensor) -> torch.Tensor:
    """Return the share of the picture that the largest connected patch (also over corners) of a silhouette takes."""
    b, _, h, w = shape.shape
    numbers = torch.arange(1, h * w + 1, dtype=torch.float32, device=shape.device).view(1, 1, h, w) * shape
    while True:  # every pixel takes the highest number around it, until each patch has one number
        spread = F.max_pool2d(numbers, 3, stride=1, padding=1) * shape
        if torch.equal(spread, numbers):
            break
        numbers = spread
    flat = numbers.view(b, -1).long()
    counts = torch.zeros(b, h * w + 1, device=shape.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    return counts[:, 1:].amax(1) / (h * w)  # number 0 is what lies outside the silhouette


def training_background(
    x: torch.Tensor, source: torch.Tensor, photos: torch.Tensor, *masks: torch.Tensor, margin: int = 3
) -> torch.Tensor:
    """Return 1 where the background is nearer to some training photo's than to the input's own (a published failure:
    the wolf's wood becomes a living room). photos: ``n 3 h w``."""
    outside = _outside(masks, margin)
    own = _mean_inside((x - source).abs(), outside)
    others = torch.stack([_mean_inside((x - photo[None]).abs(), outside) for photo in photos])
    return (others.amin(0) < own).float()


def diversity(x: torch.Tensor, masks: torch.Tensor) -> float:
    """Return the spread of the subjects' mean colours over pictures: root mean square distance in CIELAB from their
    common mean. x: pictures that were asked for the same class."""
    lab = _lab(x)
    means = torch.stack([_mean_inside(lab[:, i : i + 1], masks) for i in range(3)], dim=1)
    return (means - means.mean(0)).square().sum(1).mean().sqrt().item()
