"""ImageGenerator: pictures from text alone, by Stable Diffusion or a DreamBooth of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.data.images import to_images
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.guidance import GuidedDenoiser
from ldm.diffusion.samplers import get_sampler, noise_source
from ldm.diffusion.schedule import make_sigmas
from ldm.errors import NotFiniteError, UserError
from ldm.inference.editor import not_finite
from ldm.inference.recipe import Provenance
from ldm.inference.settings import TextSettings
from ldm.models.build import load_for_use


class ImageGenerator:
    """Makes pictures from sentences with one model.

    >>> generator = ImageGenerator.from_checkpoint("sd-v1-4.ckpt")
    >>> generator.generate(["a sks dog on the beach"], seeds=[1])[0].save("beach.png")
    """

    def __init__(self, model: Any, precision: str = "fp32"):
        """model: a LatentDiffusion with conditioning_key crossattn. Raises UserError for an editor."""
        if model.has_picture_input:
            raise UserError(
                "this checkpoint edits pictures; pictures from text need one without a picture's input, such as Stable "
                "Diffusion (or the small data/spriteworld/text-to-image.safetensors)"
            )
        self.model, self.precision = model, precision
        self.provenance = Provenance(precision=precision)

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
        checkpoint = ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt)
        model, precision = load_for_use(checkpoint, config, vae_ckpt, weights, device, precision)
        generator = cls(model, precision)
        generator.provenance = Provenance.of(checkpoint, config, vae_ckpt, weights, precision)
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

        seeds: one for each, or one from which they count up. Raises UserError for empty texts and settings out of
        range, NotFiniteError if a result is not finite.
        """
        model, texts, seeds = self.model, list(texts), list(seeds)
        settings = settings or TextSettings()
        settings.check_grid(model.grid())
        if not texts or any(not text.strip() for text in texts):
            raise UserError("the text is empty; say what to draw, like 'a sks dog on the beach'")
        if len(seeds) == 1:
            seeds = [seeds[0] + i for i in range(len(texts))]
        if len(seeds) != len(texts):
            raise UserError(f"{len(seeds)} seeds for {len(texts)} texts; give 1 or {len(texts)}")
        states = torch.cat([model.get_learned_conditioning([text]) for text in texts])
        null = model.get_learned_conditioning([settings.negative])
        denoise = GuidedDenoiser(model.denoiser(), Conditioning(states), null, settings.scale)
        f = model.first_stage_model.downsampling
        start = torch.zeros(
            len(texts), model.latent_channels, settings.height // f, settings.width // f, device=model.device
        )
        sigmas = make_sigmas(model.schedule, settings.steps, settings.noise_spacing).to(model.device)
        noise = noise_source(start, [torch.Generator(model.device).manual_seed(seed) for seed in seeds])
        callback = None if progress is None else (lambda *_: progress())
        z = get_sampler(settings.sampler)(denoise, noise() * sigmas[0], sigmas, noise, callback)
        pictures = model.decode_first_stage(z).float()
        if not pictures.isfinite().all():
            raise NotFiniteError(f"the picture {not_finite(self.precision)}")
        return to_images(pictures)
