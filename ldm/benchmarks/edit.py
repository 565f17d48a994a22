"""Measure speed and memory beside diffusers, with the same random weights, interleaved in one process.

Only ratios taken in one run mean anything: other work on the machine moves every absolute figure.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.benchmarks.measure import Series, _wait, interleave
from ldm.benchmarks.reference import SIZES, diffusers_parts, our_config, published_tensors
from ldm.checkpoint.read import Checkpoint
from ldm.diffusion.conditioning import Conditioning
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.models.build import load_model, pack_for_cpu
from ldm.models.devices import choose_precision
from ldm.modules.text import tokenize


def our_editor(parts: dict[str, torch.nn.Module], size: str, device: torch.device, precision: str) -> ImageEditor:
    """Return our editor with the same weights, as ``ImageEditor.from_checkpoint`` would make it."""
    checkpoint = Checkpoint(Path("random"), "memory", published_tensors(parts))
    model = load_model(checkpoint, our_config(size), device=device, precision=precision)
    pack_for_cpu(model)
    return ImageEditor(model, precision)


def mark(marks: dict[str, list[float]], label: str, device: torch.device) -> None:
    """Note the time at which a variant finished a step."""
    _wait(device)
    marks.setdefault(label, []).append(time.perf_counter())


def theirs_edit(
    parts: dict[str, torch.nn.Module], photo: Image.Image, steps: int, marks: dict[str, list[float]], label: str
) -> Callable[[], Any]:
    """Return a call of diffusers' ``StableDiffusionInstructPix2PixPipeline`` on the photo, which marks its steps."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=parts["vae"],
        text_encoder=parts["text"],
        tokenizer=None,
        unet=parts["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    device = parts["unet"].device

    def states(text: str) -> torch.Tensor:
        return parts["text"](input_ids=tokenize([text]).to(device)).last_hidden_state.to(parts["unet"].dtype)

    def ended(pipeline: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        mark(marks, label, device)
        return tensors

    def call() -> Any:
        embeds = {"prompt_embeds": states("make it snow"), "negative_prompt_embeds": states("")}
        scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5, "num_inference_steps": steps}
        generator = torch.Generator(device).manual_seed(0)
        return pipe(image=photo, **embeds, **scales, generator=generator, callback_on_step_end=ended)

    return torch.no_grad()(call)


def benchmark_edit(size: str, device: torch.device, rounds: int, pixels: int = 256, steps: int = 4) -> list[Series]:
    """Measure one UNet evaluation (batch of three), one sampler step and a whole edit, ours and diffusers'.

    Variants: diffusers in fp32, ours in fp32, ours in this machine's default precision, diffusers in that one.
    """
    default = choose_precision("auto", device)
    parts = diffusers_parts(size)
    ours = {precision: our_editor(parts, size, device, precision) for precision in dict.fromkeys(("fp32", default))}
    theirs = {"fp32": {name: part.to(device) for name, part in parts.items()}}
    if default != "fp32":
        low = diffusers_parts(size)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[default]
        theirs[default] = {name: part.to(device, dtype) for name, part in low.items()}
    gc.collect()
    side = pixels // 8
    x, t = torch.randn(3, 8, side, side, device=device), torch.full((3,), 500.0, device=device)
    context = torch.randn(3, 77, SIZES[size]["text"], device=device)

    def our_unet(editor: ImageEditor) -> Callable[[], Any]:
        return lambda: editor.model.apply_model(x[:, :4], t, Conditioning(context, x[:, 4:]))

    def their_unet(networks: dict[str, torch.nn.Module]) -> Callable[[], Any]:
        dtype = networks["unet"].dtype
        return lambda: networks["unet"](x.to(dtype), t, context.to(dtype))

    photo = Image.effect_noise((pixels, pixels), 80).convert("RGB")

    def our_edit(editor: ImageEditor, label: str) -> Callable[[], Any]:
        settings = EditSettings(steps=steps, resolution=pixels)
        return lambda: editor.edit(photo, "make it snow", settings, progress=lambda: mark(marks, label, device))

    with torch.inference_mode():
        unet = {f"diffusers {p}": their_unet(networks) for p, networks in theirs.items()}
        unet |= {f"ours {p}": our_unet(editor) for p, editor in ours.items()}
        results = [interleave("UNet evaluation", unet, rounds, device)]
    marks: dict[str, list[float]] = {}
    calls = {f"diffusers {p}": theirs_edit(n, photo, steps, marks, f"diffusers {p}") for p, n in theirs.items()}
    calls |= {f"ours {p}": our_edit(editor, f"ours {p}") for p, editor in ours.items()}
    whole = interleave(f"edit of {steps} steps", calls, rounds, device)
    # the time from the end of one step to the end of the next; the first round was the warm-up
    step = Series("sampler step")
    for label, times in marks.items():
        ends = [times[i : i + steps] for i in range(steps, len(times), steps)]
        step.seconds[label] = [statistics.median(b - a for a, b in pairwise(run)) for run in ends]
    return [*results, step, whole]
