"""The same networks by diffusers, with random weights, and by this project."""

from __future__ import annotations

from typing import Any

import torch

from ldm.checkpoint.diffusers_format import from_diffusers_text, from_diffusers_unet, from_diffusers_vae
from ldm.config import load_config
from ldm.project import CONFIGS

# UNet widths, heads, first-stage widths, text width and layers of a benchmark model
SIZES = {
    "tiny": {"unet": (64, 128, 128, 128), "vae": (32, 64, 64, 64), "text": 64, "layers": 2},
    "full": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12},
}


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
    config = load_config(CONFIGS / "stable-diffusion" / "v1-edit.yaml")
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
