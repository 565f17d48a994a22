"""Measure speed and memory beside diffusers, with the same random weights, interleaved in one process.

Only ratios taken in one run mean anything: other work on the machine moves every absolute figure.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint import Checkpoint
from ldm.config import load_config
from ldm.diffusers_format import from_diffusers_text, from_diffusers_unet, from_diffusers_vae
from ldm.diffusion.conditioning import Conditioning
from ldm.inference.editor import EditSettings, ImageEditor
from ldm.models.build import CONFIGS, choose_precision, lay_out, load_model
from ldm.modules.text import tokenize

# UNet widths, heads, first-stage widths, text width and layers of a benchmark model
SIZES = {
    "tiny": {"unet": (64, 128, 128, 128), "vae": (32, 64, 64, 64), "text": 64, "layers": 2},
    "full": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12},
}


@dataclass
class Series:
    """The times of one measured thing, by variant."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    extra_memory: dict[str, int] = field(default_factory=dict)

    def median(self, variant: str) -> float:
        """Return a variant's median time in seconds."""
        return statistics.median(self.seconds[variant])

    def ratio(self, variant: str, reference: str) -> float:
        """Return how many times faster ``variant`` is than ``reference``: the median over rounds of the ratios."""
        pairs = zip(self.seconds[reference], self.seconds[variant], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleave(name: str, variants: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> Series:
    """Call every variant once per round, in turn, after a warm-up call each."""
    series = Series(name)
    for label, call in variants.items():
        with peak_memory(device) as peak:
            call()
        series.extra_memory[label] = peak()
    for _ in range(rounds):
        for label, call in variants.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            series.seconds.setdefault(label, []).append(time.perf_counter() - start)
    return series


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def private_memory() -> int:
    """Return this process's private resident memory in bytes (Linux; pages of mapped files do not count)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; memory is measured on Linux only")


@contextmanager
def peak_memory(device: torch.device):
    """Measure the peak memory inside the ``with`` block, above what was in use before: ``with ... as peak: peak()``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    before = highest = private_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, private_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(highest, private_memory()) - before
    finally:
        done.set()
        thread.join()


def diffusers_parts(size: str) -> dict[str, torch.nn.Module]:
    """Return diffusers' and transformers' editing networks of a size, with their own random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    s = SIZES[size]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=8, block_out_channels=s["unet"], cross_attention_dim=s["text"], attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=s["vae"],
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    heads = {"num_attention_heads": 12 if size == "full" else 4, "num_hidden_layers": s["layers"]}
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=s["text"], intermediate_size=4 * s["text"], max_position_embeddings=77, **heads)
    )
    return {name: part.eval().requires_grad_(False) for name, part in (("unet", unet), ("vae", vae), ("text", text))}


def our_config(size: str) -> Any:
    """Return the editing config of a size."""
    config = load_config(CONFIGS / "v1-edit.yaml")
    if size == "full":
        return config
    s, params = SIZES[size], config.model.params
    params.unet_config.params.update({"model_channels": s["unet"][0], "context_dim": s["text"]})
    params.unet_config.params.channel_mult = [width // s["unet"][0] for width in s["unet"]]
    params.first_stage_config.params.ddconfig.ch = s["vae"][0]
    params.first_stage_config.params.ddconfig.ch_mult = [width // s["vae"][0] for width in s["vae"]]
    text = {"hidden_size": s["text"], "intermediate_size": 4 * s["text"], "num_hidden_layers": s["layers"]}
    params.cond_stage_config.params = {"text_config": {**text, "num_attention_heads": 4}}
    return config


def published_tensors(parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Return the weights of diffusers' networks by their published names (views, no copies)."""
    tensors = from_diffusers_unet(parts["unet"].state_dict())
    tensors |= from_diffusers_vae(parts["vae"].state_dict())
    return tensors | from_diffusers_text(parts["text"].state_dict())


def our_editor(parts: dict[str, torch.nn.Module], size: str, device: torch.device, precision: str) -> ImageEditor:
    """Return our editor with the same weights, as ``ImageEditor.from_checkpoint`` would make it."""
    checkpoint = Checkpoint(Path("random"), "memory", published_tensors(parts))
    model = load_model(checkpoint, our_config(size), device=device, precision=precision)
    lay_out(model)
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


def report(results: list[Series], reference: str = "diffusers fp32") -> str:
    """Return the table: medians in seconds, how many times faster than the reference, and peak extra memory."""
    lines = [f"{'':<18}{'variant':<18}{'median':>10}{'ratio':>8}{'extra memory':>16}"]
    for series in results:
        for variant in series.seconds:
            memory = series.extra_memory.get(variant)
            shown = "" if memory is None else f"{memory / 2**20:.0f} MiB"
            ratio = series.ratio(variant, reference)
            lines.append(f"{series.name:<18}{variant:<18}{series.median(variant):>9.3f}s{ratio:>7.2f}x{shown:>16}")
    return "\n".join(lines)
