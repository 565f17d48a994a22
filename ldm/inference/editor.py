"""ImageEditor: load a model once, edit many pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.data import images
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.guidance import GuidedDenoiser
from ldm.diffusion.samplers import get_sampler, noise_source
from ldm.diffusion.schedule import make_sigmas
from ldm.errors import NotFiniteError, UserError
from ldm.inference.masking import check_mask, composite, soft_mask
from ldm.inference.recipe import Provenance
from ldm.inference.settings import EditSettings
from ldm.models.build import load_for_use

logger = logging.getLogger(__name__)


def not_finite(precision: str) -> str:
    """Say that a result is not finite in a precision, and what to do."""
    advice = "the weights may be damaged" if precision == "fp32" else "use --precision fp32 (or bf16 on a newer GPU)"
    return f"is not finite in {precision}; {advice}"


class ImageEditor:
    """Edits pictures by instructions with one model.

    >>> editor = ImageEditor.from_checkpoint("instruct-pix2pix-00-22000.ckpt")
    >>> editor.edit(photo, "make it snow", seeds=[1])[0].save("snow.png")
    """

    def __init__(self, model: Any, precision: str = "fp32"):
        """model: a LatentDiffusion with conditioning_key hybrid, in evaluation mode. Raises UserError otherwise."""
        if not model.has_picture_input:
            raise UserError(
                "this checkpoint makes pictures from text alone, its network has no input for a picture; editing needs "
                "InstructPix2Pix weights, or a run that began with such"
            )
        self.model, self.precision = model, precision
        self.provenance = Provenance(precision=precision)
        self._states: dict[str, torch.Tensor] = {}

    @classmethod
    def from_checkpoint(
        cls,
        ckpt: str | Path | Checkpoint,
        config: Any = None,
        vae_ckpt: str | Path | None = None,
        weights: str = "auto",
        device: str = "auto",
        precision: str = "auto",
    ) -> ImageEditor:
        """Load a checkpoint (``.ckpt``, ``.safetensors``, diffusers folder); see ``load_model`` for the rest.

        Raises UserError with one line that says what was found.
        """
        checkpoint = ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt)
        model, precision = load_for_use(checkpoint, config, vae_ckpt, weights, device, precision)
        editor = cls(model, precision)
        editor.provenance = Provenance.of(checkpoint, config, vae_ckpt, weights, precision)
        return editor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def text_states(self, text: str) -> torch.Tensor:
        """Return the states of one text, ``1 77 d``; computed once for each text."""
        if text not in self._states:
            if len(self._states) > 64:
                self._states.clear()
            with torch.no_grad():
                self._states[text] = self.model.get_learned_conditioning([text])
        return self._states[text]

    @torch.no_grad()
    def edit(
        self,
        photos: Image.Image | Sequence[Image.Image],
        instruction: str | Sequence[str],
        settings: EditSettings | None = None,
        seeds: Sequence[int] = (0,),
        mask: Image.Image | None = None,
        progress: Callable[[], None] | None = None,
        condition: torch.Tensor | None = None,
    ) -> list[Image.Image]:
        """Return edited pictures, one for every photo, in one batch.

        photos: PIL pictures (a single one is repeated for every seed or instruction); instruction: one for all or
        one each; seeds: one each, or one for all, from which the others count up. mask: light where to edit; needs
        photos of its size. progress: called after each step. condition: see ``sample``. A picture depends on its own
        photo, instruction, seed and settings, not on the batch. Raises UserError for empty instructions, sizes and
        settings out of range.
        """
        settings = settings or EditSettings()
        photos, instructions, seeds = _aligned(photos, instruction, seeds)
        photos = [images.to_rgb(photo) for photo in photos]
        for photo in photos:
            images.check_aspect(photo.size)
        for photo in photos:
            check_mask(mask, photo.size)
        weights = None if mask is None else soft_mask(mask)
        inputs = [self.prepared(photo, settings) for photo in photos]
        if len({picture.size for picture in inputs}) > 1:
            raise UserError("pictures of different shapes cannot be edited in one batch; edit them one by one")
        x = self.sample(images.to_tensor(inputs), instructions, settings, seeds, progress, condition)
        edited = images.to_images(x)
        if settings.keep_size:
            edited = [images.resize(picture, photo.size) for picture, photo in zip(edited, photos, strict=True)]
        if weights is not None:
            below = photos if settings.keep_size else inputs
            if not settings.keep_size:
                weights = soft_mask(images.fit(mask, inputs[0].size))
            edited = [composite(photo, picture, weights) for photo, picture in zip(below, edited, strict=True)]
        return edited

    def prepared(self, photo: Image.Image, settings: EditSettings) -> Image.Image:
        """Return a photo at the working size, on the model's grid."""
        grid = self.model.grid()
        if settings.keep_size:
            return images.resize(photo, images.working_size(photo.size, settings.resolution, grid))
        return images.fit(photo, images.upstream_size(photo.size, settings.resolution, grid))

    @torch.no_grad()
    def sample(
        self,
        x: torch.Tensor,
        instructions: Sequence[str],
        settings: EditSettings,
        seeds: Sequence[int],
        progress: Callable[[], None] | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return edited pictures ``b 3 h w`` (about [-1, 1]) of input pictures in [-1, 1] on the model's grid.

        condition: ``picture_condition`` of the input pictures, ``b 4 h w``, for one who edits them several times.
        Raises NotFiniteError if the result is not finite.
        """
        z = self.sample_latents(x, instructions, settings, seeds, progress, condition)
        edited = self.model.decode_first_stage(z).float()
        if not edited.isfinite().all():
            raise NotFiniteError(f"the edit {not_finite(self.precision)}")
        return edited

    @torch.no_grad()
    def sample_latents(
        self,
        x: torch.Tensor,
        instructions: Sequence[str],
        settings: EditSettings,
        seeds: Sequence[int],
        progress: Callable[[], None] | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what ``sample`` decodes: the scaled latents ``b c h w`` of edited pictures.

        The random numbers are upstream's: ``manual_seed(seed)`` on the model's device, one draw for the start, one
        per ancestral step.
        """
        device = self.device
        c_concat = (self.model.picture_condition(x.to(device)) if condition is None else condition).float()
        crossattn = torch.cat([self.text_states(text) for text in instructions])
        denoise = GuidedDenoiser(
            self.model.denoiser(),
            Conditioning(crossattn, c_concat),
            self.text_states(settings.negative),
            settings.text_scale,
            settings.image_scale,
            settings.guidance_interval,
        )
        sigmas = make_sigmas(self.model.schedule, settings.steps, settings.noise_spacing).to(device)
        noise = noise_source(c_concat, [torch.Generator(device).manual_seed(seed) for seed in seeds])
        callback = None if progress is None else (lambda *_: progress())
        return get_sampler(settings.sampler)(denoise, noise() * sigmas[0], sigmas, noise, callback)


def _aligned(photos: Any, instruction: Any, seeds: Sequence[int]) -> tuple[list, list[str], list[int]]:
    """Repeat single photos, instructions and seeds to one common length; check them."""
    photos = [photos] if isinstance(photos, Image.Image) else list(photos)
    instructions = [instruction] if isinstance(instruction, str) else list(instruction)
    seeds = list(seeds)
    n = max(len(photos), len(instructions), len(seeds))
    for name, values in (("photos", photos), ("instructions", instructions), ("seeds", seeds)):
        if len(values) not in (1, n):
            raise UserError(f"{len(values)} {name} for a batch of {n}; give 1 or {n}")
    if any(not text.strip() for text in instructions):
        raise UserError("the instruction is empty; say what to change, like 'make it night'")
    if len(seeds) == 1:
        seeds = [seeds[0] + i for i in range(n)]
    return photos * (n // len(photos)), instructions * (n // len(instructions)), seeds
