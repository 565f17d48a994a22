"""How to edit, and how to make pictures from text: settings that check themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ldm.diffusion.guidance import check_interval
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedule import SPACINGS
from ldm.errors import UserError
from ldm.typed import typed

# The spacing each sampler is at its best with; upstream's Euler-ancestral takes uniform time indices.
BEST_SPACING = {"dpmpp_2m": "karras", "dpmpp_2m_sde": "karras", "heun": "karras", "unipc": "karras"}

MAX_RESOLUTION = 16384  # pixels; far beyond what any memory edits at, and Pillow fills the memory far above it
MAX_STEPS = 10_000
MAX_SCALE = 100.0

S = TypeVar("S", bound="_Sampling")


class _Sampling:
    """What both kinds of sampling have in common."""

    steps: int
    sampler: str
    spacing: str

    @property
    def noise_spacing(self) -> str:
        """The spacing that "auto" stands for: the one that the sampler is at its best with."""
        return BEST_SPACING.get(self.sampler, "uniform") if self.spacing == "auto" else self.spacing

    def _check(self, *scales: str) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{self.sampler}'; known: {', '.join(SAMPLERS)}")
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps is {self.steps}; 1 to {MAX_STEPS} are possible")
        if self.spacing not in ("auto", *SPACINGS):
            raise UserError(f"unknown spacing '{self.spacing}'; known: auto, {', '.join(SPACINGS)}")
        for name in scales:
            if not 0 <= getattr(self, name) <= MAX_SCALE:
                raise UserError(f"{name} is {getattr(self, name)}; 0 to {MAX_SCALE:g} is expected")


def _recommended(cls: type[S], metadata: Mapping[str, Any], entry: str, chosen: Mapping[str, Any]) -> S:
    """Return the settings that a checkpoint's file recommends in an entry, with those chosen (not None) over them."""
    where = f"the checkpoint's {entry}"
    recommended = typed(cls, metadata.get(entry), where)
    try:
        cls(**recommended)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return cls(**{**recommended, **{name: value for name, value in chosen.items() if value is not None}})


@dataclass(frozen=True)
class EditSettings(_Sampling):
    """How to edit; the defaults are InstructPix2Pix's own.

    text_scale, image_scale: the two guidance scales, 0 to 100. steps: 1 to 10,000. sampler: one of ``SAMPLERS``.
    spacing: "uniform", "karras" or "auto" (by the sampler). resolution: the working size of the longer side in pixels.
    keep_size: give the photo's own size back. guidance_interval: noise levels (low, high] inside which guidance acts,
    None for all. negative: text that takes the place of the empty one in guidance.

    Raises UserError for what makes no sense.
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

    def __post_init__(self) -> None:
        self._check("text_scale", "image_scale")
        if not 16 <= self.resolution <= MAX_RESOLUTION:
            raise UserError(f"resolution is {self.resolution} pixels; 16 to {MAX_RESOLUTION} are possible")
        check_interval(self.guidance_interval)

    @classmethod
    def of_checkpoint(cls, metadata: Mapping[str, Any], **chosen: Any) -> EditSettings:
        """Return the settings that a checkpoint's file recommends (``edit_defaults``), with those chosen over them.

        metadata: of the file; chosen: fields by name, None for not chosen. Raises UserError if the file recommends
        something unknown.
        """
        return _recommended(cls, metadata, "edit_defaults", chosen)


@dataclass(frozen=True)
class TextSettings(_Sampling):
    """How to make pictures from text. scale: of guidance, 0 to 100; steps, sampler, spacing: see ``EditSettings``;
    width, height: in pixels; negative: text that takes the place of the empty one.

    Raises UserError for what makes no sense.
    """

    scale: float = 7.5
    steps: int = 50
    sampler: str = "ddim"
    spacing: str = "auto"
    width: int = 512
    height: int = 512
    negative: str = ""

    def __post_init__(self) -> None:
        self._check("scale")
        self.check_grid(1)

    def check_grid(self, grid: int) -> None:
        """Raise UserError if a side is no multiple of a model's grid, in pixels, or too long."""
        for name in ("width", "height"):
            if not grid <= getattr(self, name) <= MAX_RESOLUTION or getattr(self, name) % grid:
                raise UserError(
                    f"{name} is {getattr(self, name)}; a multiple of {grid} of at most {MAX_RESOLUTION} is needed"
                )

    @classmethod
    def of_checkpoint(cls, metadata: Mapping[str, Any], **chosen: Any) -> TextSettings:
        """Return the settings that a checkpoint's file recommends (``text_defaults``), with those chosen over them.

        metadata: of the file; chosen: fields by name, None for not chosen. Raises UserError if the file recommends
        something unknown.
        """
        return _recommended(cls, metadata, "text_defaults", chosen)
