"""The same networks in diffusers and transformers, at the size of ``tests.conftest.tiny_config``."""

import torch


def diffusers_unet(in_channels: int = 8):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,  # diffusers 0.x means the number of heads by it
    ).eval()


def diffusers_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
    ).eval()


def transformers_text():
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.conftest import TINY_TEXT

    return CLIPTextModel(CLIPTextConfig(**TINY_TEXT, max_position_embeddings=77, hidden_act="quick_gelu")).eval()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The error over the reference's size, in the Euclidean norm."""
    return ((ours - theirs).norm() / theirs.norm()).item()
