"""How to edit, and how to make pictures from text: settings that check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm.diffusion.guidance import check_interval
from ldm.diffusion.samplers import get_sampler
from ldm.diffusion.schedule import SPACINGS

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
