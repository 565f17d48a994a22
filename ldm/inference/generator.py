"""ImageGenerator: pictures from text alone, by Stable Diffusion or a DreamBooth of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint import Checkpoint, fingerprint, read_checkpoint
from ldm.data.images import to_images
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.guidance import GuidedDenoiser
from ldm.diffusion.samplers import get_sampler, noise_source
from ldm.diffusion.schedule import SPACINGS, make_sigmas
from ldm.inference.editor import BEST_SPACING, MAX_RESOLUTION, check_steps, checked_defaults, not_finite
from ldm.inference.recipe import told_of
from ldm.models.build import load_for_use


@dataclass(frozen=True)
class TextSettings:
    """How to make pictures from text. scale: of guidance; negative: text that takes the place of the empty one; width
    and height in pixels."""

    scale: float = 7.5
    steps: int = 50
    sampler: str = "ddim"
    spacing: str = "auto"
    width: int = 512
    height: int = 512
    negative: str = ""

    @classmethod
    def of_checkpoint(cls, metadata: dict[str, Any], **chosen: Any) -> TextSettings:
        """Return the settings that a checkpoint's file recommends (``text_defaults``), with those chosen over them.

        chosen: None means not chosen. Raises ValueError if the file recommends something unknown.
        """
        recommended = checked_defaults(cls(), metadata.get("text_defaults") or {}, "text_defaults")
        cls(**recommended).checked(1)
        return cls(**{**recommended, **{k: v for k, v in chosen.items() if v is not None}})

    def checked(self, grid: int) -> TextSettings:
        """Return the settings with "auto" resolved; raise ValueError for what makes no sense."""
        get_sampler(self.sampler)
        check_steps(self.steps)
        if not 0 <= self.scale <= 100:
            raise ValueError(f"scale is {self.scale}; 0 to 100 is expected")
        for name in ("width", "height"):
            if not grid <= getattr(self, name) <= MAX_RESOLUTION or getattr(self, name) % grid:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; a multiple of {grid} of at most {MAX_RESOLUTION} is needed"
                )
        if self.spacing not in ("auto", *SPACINGS):
            raise ValueError(f"unknown spacing '{self.spacing}'; known: auto, {', '.join(SPACINGS)}")
        spacing = BEST_SPACING.get(self.sampler, "uniform") if self.spacing == "auto" else self.spacing
        return TextSettings(**{**self.__dict__, "spacing": spacing})


class ImageGenerator:
    """Makes pictures from sentences with one model.

    >>> generator = ImageGenerator.from_checkpoint("sd-v1-4.ckpt")
    >>> generator.generate(["a sks dog on the beach"], seeds=[1])[0].save("beach.png")
    """

    def __init__(self, model: Any, precision: str = "fp32"):
        """model: a LatentDiffusion with conditioning_key crossattn. Raises ValueError for an editor."""
        if model.has_picture_input:
            raise ValueError(
                "this checkpoint edits pictures (8 input channels); pictures from text need one of 4, such as "
                "Stable Diffusion"
            )
        self.model, self.precision = model, precision
        self.checkpoint, self.checkpoint_hash, self.weights, self.vae_hash, self.config = "", "", "", "", ""

    @classmethod
    def from_checkpoint(
        cls,
        ckpt: str | Path | Checkpoint,
        config: Any = None,
        vae_ckpt: str | Path | None = None,
        weights: str = "auto",
        device: str = "auto",
        precision: str = "auto",
    ) -> ImageGenerator:
        """Load a checkpoint as ``ImageEditor.from_checkpoint`` does."""
        ckpt = ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt)
        generator = cls(*load_for_use(ckpt, config, vae_ckpt, weights, device, precision))
        path = ckpt.path
        generator.checkpoint, generator.weights = str(path), weights
        generator.checkpoint_hash, generator.config = fingerprint(path), told_of(config)
        generator.vae_hash = "" if vae_ckpt is None else fingerprint(vae_ckpt)
        return generator

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str],
        settings: TextSettings | None = None,
        seeds: Sequence[int] = (0,),
        progress: Callable[[], None] | None = None,
    ) -> list[Image.Image]:
        """Return one picture for each text, in one batch; a picture depends on its own text, seed and settings.

        seeds: one for each, or one from which they count up. Raises ValueError for empty texts and settings out of
        range, FloatingPointError if a result is not finite.
        """
        model, texts, seeds = self.model, list(texts), list(seeds)
        settings = (settings or TextSettings()).checked(model.grid())
        if not texts or any(not text.strip() for text in texts):
            raise ValueError("the text is empty; say what to draw, like 'a sks dog on the beach'")
        if len(seeds) == 1:
            seeds = [seeds[0] + i for i in range(len(texts))]
        if len(seeds) != len(texts):
            raise ValueError(f"{len(seeds)} seeds for {len(texts)} texts; give 1 or {len(texts)}")
        states = torch.cat([model.get_learned_conditioning([text]) for text in texts])
        null = model.get_learned_conditioning([settings.negative])
        denoise = GuidedDenoiser(model.denoiser(), Conditioning(states), null, settings.scale)
        f = model.first_stage_model.downsampling
        start = torch.zeros(
            len(texts), model.latent_channels, settings.height // f, settings.width // f, device=model.device
        )
        sigmas = make_sigmas(model.schedule, settings.steps, settings.spacing).to(model.device)
        noise = noise_source(start, [torch.Generator(model.device).manual_seed(seed) for seed in seeds])
        callback = None if progress is None else (lambda *_: progress())
        z = get_sampler(settings.sampler)(denoise, noise() * sigmas[0], sigmas, noise, callback)
        pictures = model.decode_first_stage(z).float()
        if not pictures.isfinite().all():
            raise FloatingPointError(f"the picture {not_finite(self.precision)}")
        return to_images(pictures)
