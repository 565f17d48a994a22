"""ImageEditor: load a model once, edit many pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint import Checkpoint, fingerprint, read_checkpoint
from ldm.data import images
from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.guidance import GuidedDenoiser, check_interval
from ldm.diffusion.samplers import get_sampler, noise_source
from ldm.diffusion.schedule import SPACINGS, make_sigmas
from ldm.inference.masking import check_mask, composite, soft_mask
from ldm.inference.recipe import told_of
from ldm.models.build import load_for_use

logger = logging.getLogger(__name__)

# The spacing each sampler is at its best with; upstream's Euler-ancestral takes uniform time indices.
BEST_SPACING = {"dpmpp_2m": "karras", "dpmpp_2m_sde": "karras", "heun": "karras", "unipc": "karras"}

MAX_RESOLUTION = 16384  # pixels; far beyond what any memory edits at, and Pillow fills the memory far above it
MAX_STEPS = 10_000


def checked_defaults(plain: Any, recommended: Any, name: str) -> dict[str, Any]:
    """Return what a checkpoint's file recommends if it is settings of ``plain``'s kind, each of the type there.

    name: of the entry in the file. Raises ValueError for anything else.
    """
    if not isinstance(recommended, dict):
        raise ValueError(f"the checkpoint's {name} are no settings: {recommended!r}"[:200])
    for key, value in recommended.items():
        own = getattr(plain, key, None)
        fits = isinstance(value, (int, float)) if isinstance(own, float) else type(value) is type(own)
        if key not in type(plain).__dataclass_fields__ or own is None or not fits:
            raise ValueError(f"the checkpoint's {name} hold {key}: {value!r}, which is no such setting"[:200])
    return recommended


def check_steps(steps: int) -> None:
    """Raise ValueError for a number of sampling steps that makes no sense."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {steps}; 1 to {MAX_STEPS} are possible")


def not_finite(precision: str) -> str:
    """Say that a result is not finite in a precision, and what to do."""
    advice = "the weights may be damaged" if precision == "fp32" else "use --precision fp32 (or bf16 on a newer GPU)"
    return f"is not finite in {precision}; {advice}"


@dataclass(frozen=True)
class EditSettings:
    """How to edit; the defaults are InstructPix2Pix's own.

    text_scale, image_scale: the two guidance scales. spacing: "uniform", "karras" or "auto" (by the sampler).
    resolution: the working size of the longer side in pixels. keep_size: give the photo's own size back.
    guidance_interval: noise levels (low, high] inside which guidance acts, None for all.
    negative: text that takes the place of the empty one in guidance.
    """

    text_scale: float = 7.5
    image_scale: float = 1.5
    steps: int = 100
    sampler: str = "euler_a"
    spacing: str = "auto"
    resolution: int = 512
    keep_size: bool = True
    guidance_interval: tuple[float, float] | None = None
    negative: str = ""

    @classmethod
    def of_checkpoint(cls, metadata: dict[str, Any], **chosen: Any) -> EditSettings:
        """Return the settings that a checkpoint's file recommends (``edit_defaults``), with those chosen over them.

        chosen: None means not chosen. Raises ValueError if the file recommends something unknown.
        """
        recommended = checked_defaults(cls(), metadata.get("edit_defaults") or {}, "edit_defaults")
        cls(**recommended).checked()
        return cls(**{**recommended, **{k: v for k, v in chosen.items() if v is not None}})

    def checked(self) -> EditSettings:
        """Return the settings with "auto" resolved; raise ValueError for what makes no sense."""
        get_sampler(self.sampler)
        check_steps(self.steps)
        if not 16 <= self.resolution <= MAX_RESOLUTION:
            raise ValueError(f"resolution is {self.resolution} pixels; 16 to {MAX_RESOLUTION} are possible")
        for name in ("text_scale", "image_scale"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to 100 is expected")
        if self.spacing not in ("auto", *SPACINGS):
            raise ValueError(f"unknown spacing '{self.spacing}'; known: auto, {', '.join(SPACINGS)}")
        check_interval(self.guidance_interval)
        spacing = BEST_SPACING.get(self.sampler, "uniform") if self.spacing == "auto" else self.spacing
        return EditSettings(**{**self.__dict__, "spacing": spacing})


class ImageEditor:
    """Edits pictures by instructions with one model.

    >>> editor = ImageEditor.from_checkpoint("instruct-pix2pix-00-22000.ckpt")
    >>> editor.edit(photo, "make it snow", seeds=[1])[0].save("snow.png")
    """

    def __init__(self, model: Any, precision: str = "fp32"):
        """model: a LatentDiffusion with conditioning_key hybrid, in evaluation mode. Raises ValueError otherwise."""
        if not model.has_picture_input:
            raise ValueError(
                "this checkpoint makes pictures from text alone (4 input channels); editing needs one of 8, "
                "such as InstructPix2Pix"
            )
        self.model, self.precision = model, precision
        self.checkpoint, self.checkpoint_hash, self.weights, self.vae_hash, self.config = "", "", "", "", ""
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

        Raises FileNotFoundError or ValueError with one line that says what was found.
        """
        ckpt = ckpt if isinstance(ckpt, Checkpoint) else read_checkpoint(ckpt)
        editor = cls(*load_for_use(ckpt, config, vae_ckpt, weights, device, precision))
        path = ckpt.path
        editor.checkpoint, editor.weights, editor.checkpoint_hash = str(path), weights, fingerprint(path)
        editor.vae_hash = "" if vae_ckpt is None else fingerprint(vae_ckpt)
        editor.config = told_of(config)
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
        photo, instruction, seed and settings, not on the batch. Raises ValueError for empty instructions, sizes and
        settings out of range.
        """
        settings = (settings or EditSettings()).checked()
        photos, instructions, seeds = _aligned(photos, instruction, seeds)
        photos = [images.to_rgb(photo) for photo in photos]
        for photo in photos:
            images.check_aspect(photo.size)
        for photo in photos:
            check_mask(mask, photo.size)
        weights = None if mask is None else soft_mask(mask)
        inputs = [self.prepared(photo, settings) for photo in photos]
        if len({picture.size for picture in inputs}) > 1:
            raise ValueError("pictures of different shapes cannot be edited in one batch; edit them one by one")
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
        Raises FloatingPointError if the result is not finite.
        """
        z = self.sample_latents(x, instructions, settings, seeds, progress, condition)
        edited = self.model.decode_first_stage(z).float()
        if not edited.isfinite().all():
            raise FloatingPointError(f"the edit {not_finite(self.precision)}")
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
        device, settings = self.device, settings.checked()
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
        sigmas = make_sigmas(self.model.schedule, settings.steps, settings.spacing).to(device)
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
            raise ValueError(f"{len(values)} {name} for a batch of {n}; give 1 or {n}")
    if any(not text.strip() for text in instructions):
        raise ValueError("the instruction is empty; say what to change, like 'make it night'")
    if len(seeds) == 1:
        seeds = [seeds[0] + i for i in range(n)]
    return photos * (n // len(photos)), instructions * (n // len(instructions)), seeds
