"""A wider network that computes the same: a start for training it further (Chen et al. 2016, "Net2Net")."""

from __future__ import annotations

import torch
from torch import nn

from ldm.errors import UserError

SHORTCUT = "nin_shortcut.weight"  # of a residual block whose sides have unlike numbers of features
QUERY = (".q.weight", ".q.bias")
UNEVEN = 0.25  # how far from a half a copy's share of the outgoing weights may lie, so that copies learn apart


@torch.no_grad()
def net2wider(model: nn.Module, wider: nn.Module, seed: int = 0) -> None:
    """Give a convolutional network with more features a layer the weights of one with fewer, in place.

    Every feature becomes several copies side by side, and what reads it shares its weights among them, unevenly (by
    random shares, each weight its own), so that both networks compute the same and the copies learn apart. Exact where
    features are a whole multiple, and where group normalisation has as many groups in both. A residual block that needs
    a shortcut where it had none gets the identity. model, wider: modules with the same parameters' names otherwise, of
    convolutions, linear layers and normalisations. Raises UserError for names or shapes that do not fit.
    """
    old, new = model.state_dict(), wider.state_dict()
    for name in sorted(new.keys() - old.keys()):
        if name.endswith(SHORTCUT):
            features = new[name].shape[1]
            old[name] = torch.eye(features)[..., None, None]
            old[name.replace("weight", "bias")] = torch.zeros(features)
    if old.keys() != new.keys():
        raise UserError(f"the wider network has other layers: '{min(old.keys() ^ new.keys())}'")
    generator = torch.Generator().manual_seed(seed)
    for name, value in old.items():
        shape = new[name].shape
        if not value.ndim:
            new[name].copy_(value)
            continue
        fits = len(shape) == value.ndim and all(n % o == 0 for n, o in zip(shape[:2], value.shape[:2], strict=True))
        if not fits or shape[2:] != value.shape[2:]:
            shapes = f"'{name}' is {tuple(shape)}, {tuple(value.shape)} here"
            raise UserError(f"a layer of the wider network has no whole multiple of the features: {shapes}")
        copies = shape[0] // value.shape[0]
        value = value.repeat_interleave(copies, dim=0)
        if name.endswith(QUERY):  # attention's products are over copies, too, and divided by the root of their number
            value = value / copies**0.5
        if value.ndim > 1 and shape[1] > value.shape[1]:
            read = value.shape[1]
            copies = shape[1] // read
            value = value.repeat_interleave(copies, dim=1)
            shares = 1 + UNEVEN * (2 * torch.rand(value.shape, generator=generator) - 1)
            shares = shares.unflatten(1, (read, copies))
            value = value * (shares / shares.sum(2, keepdim=True)).flatten(1, 2)
        new[name].copy_(value)
