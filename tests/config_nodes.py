"""Configs to build from."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Upstream's files, as they are published


def upstream(target: str, own: dict, in_channels: int, resolution: int, prefix: str = "") -> dict:
    """The model section of an upstream YAML."""
    return {
        "base_learning_rate": 1.0e-4,
        "target": f"{prefix}{target}",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "num_timesteps_cond": 1,
            "log_every_t": 200,
            "timesteps": 1000,
            "channels": 4,
            "cond_stage_trainable": False,
            "monitor": "val/loss_simple_ema",
            "scale_factor": 0.18215,
            **own,
            "unet_config": {
                "target": f"{prefix}ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 32,
                    "in_channels": in_channels,
                    "out_channels": 4,
                    "model_channels": 320,
                    "attention_resolutions": [4, 2, 1],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 4, 4],
                    "num_heads": 8,
                    "use_spatial_transformer": True,
                    "transformer_depth": 1,
                    "context_dim": 768,
                    "use_checkpoint": True,
                    "legacy": False,
                },
            },
            "first_stage_config": {
                "target": f"{prefix}ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "monitor": "val/rec_loss",
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": resolution,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 2, 4, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                    },
                    "lossconfig": {"target": "torch.nn.Identity"},
                },
            },
            "cond_stage_config": {"target": f"{prefix}ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
        },
    }


def scheduler(warm_up: int, prefix: str = "") -> dict:
    params = {"warm_up_steps": [warm_up], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
    return {"target": f"{prefix}ldm.lr_scheduler.LambdaLinearScheduler", "params": params}


def personalization(vectors: int) -> dict:
    params = {
        "placeholder_strings": ["*"],
        "initializer_words": ["sculpture"],
        "per_image_tokens": False,
        "num_vectors_per_token": vectors,
        "progressive_words": False,
    }
    return {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": params}


PAIR = {"first_stage_key": "edited", "cond_stage_key": "edit", "conditioning_key": "hybrid"}


OLD = "stable_diffusion."  # InstructPix2Pix's first published files name their classes below this folder


# The three files that say what is installed


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed}
