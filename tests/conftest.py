"""Small models with random weights, alike in everything but size to the full ones."""

import copy
import os

import pytest
import torch
from omegaconf import OmegaConf

from ldm.config import instantiate_from_config

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

TINY_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny_config(in_channels: int = 8) -> dict:
    """A config of the published structure (three levels, attention at two of them) in small widths."""
    return copy.deepcopy(
        {
            "model": {
                "target": "ldm.models.latent_diffusion.LatentDiffusion",
                "params": {
                    "conditioning_key": "hybrid" if in_channels == 8 else "crossattn",
                    "use_ema": False,
                    "unet_config": {
                        "target": "ldm.modules.unet.UNetModel",
                        "params": {
                            "in_channels": in_channels,
                            "out_channels": 4,
                            "model_channels": 32,
                            "attention_resolutions": [2, 1],
                            "num_res_blocks": 2,
                            "channel_mult": [1, 2, 2],
                            "num_heads": 4,
                            "context_dim": 32,
                        },
                    },
                    "first_stage_config": {
                        "target": "ldm.models.autoencoder.AutoencoderKL",
                        "params": {
                            "embed_dim": 4,
                            "ddconfig": {
                                "double_z": True,
                                "z_channels": 4,
                                "resolution": 64,
                                "in_channels": 3,
                                "out_ch": 3,
                                "ch": 32,
                                "ch_mult": [1, 2, 2, 2],
                                "num_res_blocks": 1,
                                "attn_resolutions": [],
                                "dropout": 0.0,
                            },
                        },
                    },
                    "cond_stage_config": {
                        "target": "ldm.modules.text.FrozenCLIPEmbedder",
                        "params": {"text_config": dict(TINY_TEXT)},
                    },
                },
            }
        }
    )


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> torch.nn.Module:
    """Give every parameter random values of a sensible size (the zero-initialised ones too)."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.1 * noise)
        else:
            fan_in = p[0].numel() if p.ndim > 1 else p.numel()
            p.copy_(noise * (scale if p.ndim == 2 and "embedding" in name else scale / fan_in**0.5))
    return module


def build_tiny(in_channels: int = 8, seed: int = 0):
    """A tiny LatentDiffusion with random weights, in evaluation mode."""
    model = instantiate_from_config(OmegaConf.create(tiny_config(in_channels)["model"]))
    return randomize(model, seed).eval()


@pytest.fixture(scope="session")
def tiny_model():
    return build_tiny()


@pytest.fixture(scope="session")
def tiny_ckpt(tmp_path_factory, tiny_model):
    """A tiny editing checkpoint as a safetensors file with its config inside."""
    from ldm.checkpoint.save import save_checkpoint

    path = tmp_path_factory.mktemp("ckpt") / "tiny.safetensors"
    save_checkpoint(path, tiny_model.state_dict(), {"config": tiny_config()})
    return path
