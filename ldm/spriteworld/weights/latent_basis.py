"""Other latents: a first stage with more channels, made white, or stretched by what each direction means to the
picture; and a trained diffusion model taken along to another first stage."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError

FLOOR = 1e-6  # of the largest variance: a direction below it carries nothing and is not blown up
ENOUGH = 200  # pictures, to see what the decoder makes of small steps
AT_LATENT = ("conv_out", "conv_in", "quant_conv", "post_quant_conv")  # layers whose shapes tell the latent's channels
NOISE = 0.05  # at most this much of a channel's deviation is the posterior's own noise


@torch.no_grad()
def latents_of(stage: Any, x: torch.Tensor, batch_size: int = 50) -> torch.Tensor:
    """Return a first stage's latents of pictures as ``n c`` in fp64, a row a position. x: ``b 3 H W`` in [-1, 1]."""
    parts = [stage.encode(part).mean.movedim(1, -1).flatten(0, -2) for part in x.split(batch_size)]
    return torch.cat(parts).double()


@torch.no_grad()
def widen(stage: Any, wider: Any) -> None:
    """Give a first stage of more latent channels the weights of one of fewer, in place: a start for training it.

    The wider one makes the same pictures by the latent's mean: its first channels are the old latent; of the others
    the encoder makes something (by ``wider``'s own random weights), the decoder nothing yet. stage, wider:
    ``AutoencoderKL`` that are alike but for ``embed_dim`` and ``z_channels``, which are equal. Raises UserError for
    any others.
    """
    c, more = stage.embed_dim, wider.embed_dim
    old, new = stage.state_dict(), wider.state_dict()
    for name in sorted(old.keys() | new.keys()):
        if (
            name not in new
            or name not in old
            or (name.split(".")[-2] not in AT_LATENT and new[name].shape != old[name].shape)
        ):
            raise UserError(f"a first stage of {c} channels cannot be widened to this one: '{name}' differs")
    if more <= c or any(m.post_quant_conv.out_channels != m.embed_dim for m in (stage, wider)):
        raise UserError(f"a first stage of {c} channels cannot be widened to one of {more}")
    state = {name: old[name] if value.shape == old[name].shape else value.clone() for name, value in new.items()}
    state["decoder.conv_in.weight"][:, :c] = old["decoder.conv_in.weight"]
    state["decoder.conv_in.weight"][:, c:] = 0
    for name in ("weight", "bias"):
        state[f"encoder.conv_out.{name}"][: 2 * c] = old[f"encoder.conv_out.{name}"]
    wider.load_state_dict(state)
    inward, outward = wider.quant_conv, wider.post_quant_conv
    for layer in (inward, outward):
        layer.weight.zero_()
        layer.bias.zero_()
    for first, part in ((0, slice(0, c)), (more, slice(c, 2 * c))):  # means, log-variances
        inward.weight[first : first + c, : 2 * c] = stage.quant_conv.weight[part]
        inward.bias[first : first + c] = stage.quant_conv.bias[part]
    rest = torch.eye(more - c)[..., None, None]
    inward.weight[c:more, 2 * c : more + c] = rest
    inward.bias[more + c :] = math.log(NOISE**2)
    outward.weight[:c, :c], outward.bias[:c] = stage.post_quant_conv.weight, stage.post_quant_conv.bias
    outward.weight[c:, c:] = rest


@torch.no_grad()
def whiten(stage: Any, x: torch.Tensor, power: float = 0.0) -> None:
    """Turn and stretch a first stage's latents in place, so that over ``x`` they have zero mean and no correlation
    between channels, and each channel's deviation is what it means to the picture, to this power.

    power 0: white, every channel of unit variance. 1: a step in any channel changes the picture as much as in any
    other, so that a squared error of latents is about one of pictures, and a channel that the decoder hardly looks at
    is hardly there. The change is linear and undone before decoding: reconstructions by the latent's mean stay what
    they were. The posterior's noise becomes 0.05 of each channel at most. stage: an ``AutoencoderKL``; x: ``b 3 H W``
    in [-1, 1]. Raises UserError for a power outside 0 to 1.
    """
    if not 0 <= power <= 1:
        raise UserError(f"power is {power}; 0 (white) to 1 is expected")
    z = latents_of(stage, x)
    mean, (variances, directions) = z.mean(0), torch.linalg.eigh(torch.cov(z.T))
    variances = variances.clamp(min=FLOOR * variances.max())
    _change(stage, x, mean, variances.rsqrt()[:, None] * directions.T, directions * variances.sqrt())
    if power:
        squares, directions = torch.linalg.eigh(responses(stage, x[:ENOUGH]))
        stretch = squares.clamp(min=FLOOR * squares.max()) ** (power / 2)
        stretch = stretch / stretch.square().mean().sqrt()
        _change(stage, x, 0 * mean, stretch[:, None] * directions.T, directions / stretch)


@torch.no_grad()
def responses(stage: Any, x: torch.Tensor, step: float = 0.1, batch_size: int = 50) -> torch.Tensor:
    """Return ``c c``: how a decoded picture answers to small steps in two channels of the latent together, per value of
    the picture: the mean of ``J^T J`` over pictures ``b 3 H W``, by differences, the steps' signs random over the
    positions."""
    generator, gram = torch.Generator().manual_seed(0), 0
    for part in x.split(batch_size):
        z = stage.encode(part).mean
        signs = torch.randint(0, 2, z[:, :1].shape, generator=generator).to(z) * 2 - 1
        picture, answers = stage.decode(z), []
        for channel in range(z.shape[1]):
            moved = z.clone()
            moved[:, channel : channel + 1] += step * signs
            answers.append(((stage.decode(moved) - picture) / step).flatten())
        answers = torch.stack(answers).double()
        gram = gram + answers @ answers.T
    return gram / x.numel()


def _change(stage: Any, x: torch.Tensor, mean: torch.Tensor, forth: torch.Tensor, back: torch.Tensor) -> None:
    """Make a first stage's latents ``forth (z - mean)``, in place."""
    parts = [stage.encode(part).logvar.exp().mean((0, 2, 3)) for part in x[:ENOUGH].split(50)]
    noise = torch.stack(parts).mean(0).double()
    c, inward, outward = len(mean), stage.quant_conv, stage.post_quant_conv
    size = torch.cov(forth @ (latents_of(stage, x) - mean).T).diagonal()
    weight, bias = inward.weight[:c, :, 0, 0].double(), inward.bias[:c].double()
    inward.weight[:c, :, 0, 0], inward.bias[:c] = (forth @ weight).float(), (forth @ (bias - mean)).float()
    inward.weight[c:] = 0
    inward.bias[c:] = torch.minimum(forth.square() @ noise, NOISE**2 * size).log().float()
    weight = outward.weight[:, :, 0, 0].double()
    outward.bias[:] = (outward.bias.double() + weight @ mean).float()
    outward.weight[:, :, 0, 0] = (weight @ back).float()


def affine(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the least-squares ``matrix`` and ``offset`` of ``y = matrix x + offset``, and the share of y's variance
    that they explain. x: ``n c``; y: ``n d``."""
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], 1), y).solution
    left = y - x @ solution[:-1] - solution[-1]
    return solution[:-1].T, solution[-1], 1 - (left.square().sum() / (y - y.mean(0)).square().sum()).item()


@torch.no_grad()
def follow(model: Any, stage: Any, scale_factor: float, x: torch.Tensor) -> tuple[float, float]:
    """Take a trained diffusion model along to another first stage, in place: a start for training it further.

    The old latents are written as an affine function of the new ones (and the other way round) by least squares over
    ``x``, and folded into the UNet's first and last convolution. Exact where the two first stages differ by a rotation;
    otherwise what the new latents hold besides is still to be learned, and noise has another size. model: a
    ``LatentDiffusion`` that predicts x0; stage: an ``AutoencoderKL``, also of another number of channels; x:
    ``b 3 H W``.

    Returns the shares of variance explained, old by new and new by old. Raises UserError for another prediction or
    latents of another size.
    """
    if model.parameterization != "x0":
        raise UserError(f"a model that predicts x0 can follow a first stage, not one of '{model.parameterization}'")
    if stage.downsampling != model.first_stage_model.downsampling:
        theirs, ours = stage.downsampling, model.first_stage_model.downsampling
        raise UserError(f"the first stage makes a latent of every {theirs} pixels, the model's of every {ours}")
    old, new = latents_of(model.first_stage_model, x) * model.scale_factor, latents_of(stage, x) * scale_factor
    inward, offset, known = affine(new, old)
    outward, shift, kept = affine(old, new)
    unet = model.model.diffusion_model
    first, last, c = unet.input_blocks[0][0], unet.out[2], len(offset)
    groups = first.weight.double().split(c, dim=1)  # the noisy latent, then the input picture's, if there is one
    first.bias += sum(g.sum((2, 3)) @ offset for g in groups).float()
    first.weight = _parameter(torch.cat([torch.einsum("oihw,ij->ojhw", g, inward) for g in groups], 1))
    last.bias = _parameter(outward @ last.bias.double() + shift)
    last.weight = _parameter(torch.einsum("ji,ichw->jchw", outward, last.weight.double()))
    unet.in_channels, unet.out_channels = first.in_channels, last.out_channels = first.weight.shape[1], len(shift)
    model.first_stage_model = stage
    model.scale_factor = scale_factor
    return known, kept


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.float().contiguous())
