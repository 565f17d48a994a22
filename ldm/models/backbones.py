"""The backbones of the field's measures, with their preprocessing written out: the same pictures score otherwise with
another model or another crop.

Nothing is fetched: a backbone is a folder, or a name that the hub's cache already holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from ldm.checkpoint.read import read_checkpoint
from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.modules.text import tokenize

DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BICUBIC = Image.Resampling.BICUBIC


def prepare(images: Sequence[Image.Image], resize: int, crop: int, statistics: tuple) -> torch.Tensor:
    """Return pictures as a backbone wants them, ``n 3 crop crop``: the shorter side to ``resize`` pixels (bicubic), the
    middle ``crop`` pixels, then (value in [0, 1] - mean) / deviation."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in statistics)
    prepared = []
    for image in images:
        factor = resize / min(image.size)
        image = image.resize(tuple(max(resize, round(side * factor)) for side in image.size), BICUBIC)
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        x = to_tensor(image.crop((left, top, left + crop, top + crop)))[0]
        prepared.append(((x + 1) / 2 - mean) / deviation)
    return torch.stack(prepared)


def pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Return a transformers model with all of its weights, in evaluation mode.

    Raises OSError if it is not there, UserError if the files are another model's: transformers itself gives what it
    does not find random values.
    """
    try:
        model, info = kind.from_pretrained(name, local_files_only=True, output_loading_info=True, **options)
    except RuntimeError as error:
        raise UserError(f"its weights do not fit {kind.__name__}: {' '.join(str(error).split())[:200]}") from error
    except (SafetensorError, UnpicklingError, EOFError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"its weights cannot be read, half a download perhaps: {why}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise UserError(
            f"it lacks {len(missing)} weights of {kind.__name__}, like {missing[0]}: another model's folder?"
        )
    return model.eval()


class Dino:
    """DINO ViT-S/16: the class token of the last layer, as DreamBooth measures subjects."""

    def __init__(self, name: str = DINO, device: str | torch.device = "cpu"):
        """name: a folder, or a name in the hub's cache. Raises OSError or UserError, see ``pretrained``."""
        from transformers import ViTModel

        self.name = name
        self.model = pretrained(ViTModel, name, add_pooling_layer=False).to(device)
        self.crop = self.model.config.image_size
        self.resize = round(self.crop * 256 / 224)

    @property
    def preprocessing(self) -> str:
        """What is done to a picture first."""
        return f"shorter side {self.resize} px bicubic, middle {self.crop} px, ImageNet mean and deviation"

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit features, ``n d``."""
        x = prepare(images, self.resize, self.crop, IMAGENET).to(self.model.device)
        states = [self.model(part).last_hidden_state[:, 0] for part in x.split(32)]
        return F.normalize(torch.cat(states).float(), dim=1).cpu()


class Clip:
    """CLIP: pictures and sentences in one space."""

    def __init__(self, name: str = CLIP, device: str | torch.device = "cpu"):
        """name: a folder, or a name in the hub's cache. Raises OSError or UserError, see ``pretrained``."""
        from transformers import CLIPModel

        self.name = name
        self.model = pretrained(CLIPModel, name).to(device)
        self.crop = self.resize = self.model.config.vision_config.image_size

    @property
    def preprocessing(self) -> str:
        """What is done to a picture first."""
        return f"shorter side {self.resize} px bicubic, middle {self.crop} px, CLIP mean and deviation"

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit features, ``n d``."""
        x = prepare(images, self.resize, self.crop, CLIP_STATISTICS).to(self.model.device)
        model = self.model
        states = [model.visual_projection(model.vision_model(pixel_values=part).pooler_output) for part in x.split(32)]
        return F.normalize(torch.cat(states).float(), dim=1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit features of sentences, ``n d`` (CLIP's tokens, 77 at most)."""
        model, length = self.model, self.model.config.text_config.max_position_embeddings
        tokens = tokenize(list(texts), length).to(model.device)
        states = model.text_model(input_ids=tokens).last_hidden_state
        ends = (tokens == tokens.max()).int().argmax(1)  # the first end token sees the whole sentence
        pooled = states[torch.arange(len(tokens)), ends]
        return F.normalize(model.text_projection(pooled).float(), dim=1).cpu()


def named_clip(name: str, device: str | torch.device = "cpu") -> Clip:
    """Return the CLIP that a command line names. Raises UserError in one line if it cannot be loaded."""
    try:
        return Clip(name, device)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--clip '{name}' cannot be loaded: {error}") from error


class Lpips(nn.Module):
    """LPIPS with AlexNet (arXiv 1801.03924): a learned distance between pictures, 0 for the same."""

    LAYERS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
    KEYS = (0, 3, 6, 8, 10)  # of AlexNet's convolutions in ``features``

    def __init__(self, trunk: str | Path, linear: str | Path):
        """trunk: AlexNet's weights (``features.0.weight`` ...); linear: LPIPS's (``lin0.model.1.weight`` ...).

        Raises UserError for files that do not hold them.
        """
        super().__init__()
        self.name = f"{trunk}, {linear}"
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, k, s, p) for a, b, k, s, p in self.LAYERS)
        self.weights = nn.ParameterList(torch.zeros(1, b, 1, 1) for _, b, *_ in self.LAYERS)
        below, above = read_checkpoint(trunk).tensors, read_checkpoint(linear).tensors
        with torch.no_grad():
            for i, (key, layer) in enumerate(zip(self.KEYS, self.convolutions, strict=True)):
                parts = (
                    (layer.weight, below, trunk, f"features.{key}.weight"),
                    (layer.bias, below, trunk, f"features.{key}.bias"),
                    (self.weights[i], above, linear, f"lin{i}.model.1.weight"),
                )
                for target, tensors, path, name in parts:
                    if name not in tensors or tensors[name].shape != target.shape:
                        raise UserError(f"'{path}' has no {name} of shape {tuple(target.shape)}: not LPIPS's AlexNet")
                    target.copy_(tensors[name])
        self.eval().requires_grad_(False)

    preprocessing = "256 x 256, in [-1, 1], shifted and scaled as LPIPS does"

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the distance of every pair, ``(n,)``. x, y: ``n 3 h w`` in [-1, 1]."""
        shift = x.new_tensor((-0.030, -0.088, -0.188))[:, None, None]
        scale = x.new_tensor((0.458, 0.448, 0.450))[:, None, None]
        x, y = (x - shift) / scale, (y - shift) / scale
        total = x.new_zeros(len(x))
        for i, layer in enumerate(self.convolutions):
            if i in (1, 2):
                x, y = (F.max_pool2d(v, 3, 2) for v in (x, y))
            x, y = (F.relu(layer(v)) for v in (x, y))
            a, b = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
            total = total + ((a - b).square() * self.weights[i]).sum(1).mean((1, 2))
        return total


def backbones(
    dino: str | None, clip: str | None, lpips: Sequence[str] | None, device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the backbones that are there, and for those that are not why their columns are left out.

    dino, clip: a folder or a name, None for the field's own if the hub's cache has it. lpips: (trunk, linear). Raises
    UserError if one that was named cannot be loaded.
    """
    loaded: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for key, kind, name, usual in (("dino", Dino, dino, DINO), ("clip", Clip, clip, CLIP)):
        try:
            loaded[key] = kind(name or usual, device)
        except (OSError, ValueError, KeyError) as error:
            if name:
                raise UserError(f"--{key} '{name}' cannot be loaded: {error}") from error
            why = f"no '{usual}' in the hub's cache" if isinstance(error, OSError) else f"'{usual}': {error}"
            absent[key] = f"{why}; give --{key} FOLDER"
    if lpips:
        loaded["lpips"] = Lpips(*lpips)
    else:
        absent["lpips"] = "give --lpips ALEXNET LINEAR"
    return loaded, absent
