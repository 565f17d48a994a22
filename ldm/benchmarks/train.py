"""Measure a training step beside diffusers' own: the same network, pictures and batch, each in a process of its own.

Ours is Instruct2Dream's step by its recipe: latents from the cache, one instance and one regularization pair in one
forward, master weights in fp32. Theirs is that of diffusers' ``train_instruct_pix2pix.py``: both pictures encoded at
every step, the same two pairs as a batch, gradient clipping at 1. In both the UNet is trained and the text is not.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ldm.benchmarks.measure import Series, peak_memory
from ldm.benchmarks.reference import diffusers_parts, our_config
from ldm.config import instantiate_from_config
from ldm.diffusion.conditioning import Conditioning
from ldm.models.devices import choose_precision
from ldm.modules.text import tokenize

TEXTS = ["replace the wolf with a sks dog", "replace the wolf with a dog"]
_CHILD = "import sys; from ldm.benchmarks.train import child; print(child(*sys.argv[1:]))"


def our_step(size: str, device: torch.device, precision: str, pixels: int, text: bool = False) -> Callable[[], Any]:
    """Return a call that makes one step of ours. text: train the text encoder, too (the unfrozen recipe)."""
    config = our_config(size)
    config.model.params.update({"use_ema": False, "cond_stage_trainable": text, "learning_rate": 1.0e-6})
    config.model.params.unet_config.params.use_checkpoint = False  # as the example's default
    torch.manual_seed(0)
    model = instantiate_from_config(config["model"]).to(device).train()
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    side = pixels // model.first_stage_model.downsampling
    z, c_concat = (torch.randn(2, model.latent_channels, side, side, device=device) for _ in range(2))
    with torch.no_grad():
        states = model.get_learned_conditioning(TEXTS)

    def call() -> None:
        t, noise = torch.randint(0, 1000, (2,), device=device), torch.randn_like(z)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            text_states = model.get_learned_conditioning(TEXTS) if text else states
            losses = model.p_losses(z, Conditioning(text_states, c_concat), t, noise)
        (losses[0] + losses[1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def their_step(size: str, device: torch.device, precision: str, pixels: int) -> Callable[[], Any]:
    """Return a call that makes one step as diffusers' example does."""
    from diffusers import DDPMScheduler

    parts = {name: part.to(device) for name, part in diffusers_parts(size).items()}
    unet, vae, text = parts["unet"].train().requires_grad_(True), parts["vae"], parts["text"]
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6)
    before, after = (torch.rand(2, 3, pixels, pixels, device=device) * 2 - 1 for _ in range(2))
    tokens = tokenize(TEXTS).to(device)

    def call() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                z = vae.encode(after).latent_dist.sample() * vae.config.scaling_factor
                original = vae.encode(before).latent_dist.mode()
                states = text(input_ids=tokens).last_hidden_state
            noise, t = torch.randn_like(z), torch.randint(0, 1000, (2,), device=device)
            noised = torch.cat([scheduler.add_noise(z, noise, t), original], dim=1)
            prediction = unet(noised, t, states, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return call


def child(who: str, size: str, device: str, precision: str, pixels: str, rounds: str, threads: str) -> str:
    """Return one variant's seconds and peak memory as JSON: what the child process does."""
    torch.set_num_threads(int(threads))
    place = torch.device(device)
    make = {"diffusers": their_step, "ours": our_step, "ours, text too": lambda *a: our_step(*a, text=True)}[who]
    seconds = []
    with peak_memory(place) as peak:
        call = make(size, place, precision, int(pixels))
        gc.collect()
        call()  # the optimiser's state comes with the first step
        for _ in range(int(rounds)):
            if place.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if place.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return json.dumps({"seconds": seconds, "peak": peak()})


def benchmark_train(size: str, device: torch.device, rounds: int, pixels: int = 256) -> list[Series]:
    """Measure training steps, every variant in a fresh process, one after the other: diffusers in fp32 (its example's
    default) and in this machine's training precision, ours in that one, and ours with the text encoder trained.

    Raises RuntimeError with a child's last line if one fails.
    """
    low = "bf16" if choose_precision("auto", device) == "bf16" else "fp32"
    variants = {f"diffusers {p}": ("diffusers", p) for p in dict.fromkeys(("fp32", low))}
    variants |= {f"ours {low}": ("ours", low), f"ours {low}, text too": ("ours, text too", low)}
    series = Series("training step")
    for label, (who, precision) in variants.items():
        given = [who, size, device.type, precision, pixels, rounds, torch.get_num_threads()]
        command = [sys.executable, "-c", _CHILD, *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{label} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        series.seconds[label], series.extra_memory[label] = measured["seconds"], measured["peak"]
    return [series]
