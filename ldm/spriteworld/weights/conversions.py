"""Diffusion models rewritten as a start for another training: for another first stage, or without a picture input."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from ldm.checkpoint.diffusers_format import UNET
from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.errors import UserError
from ldm.files import check_writable
from ldm.models.build import config_for, load_model
from ldm.models.export import published
from ldm.spriteworld.weights.first_stage import first_stage_of, latent_scale, varied_pictures
from ldm.spriteworld.weights.latent_basis import follow
from ldm.typed import plain


def follow_first_stage(ckpt: Path, first_stage: Path, output: Path, n: int = 2000) -> str:
    """Write a diffusion model rewritten for another first stage's latents, fitted over n fresh pictures.

    Returns a line on how well the latents explain each other. Raises UserError for what does not fit.
    """
    checkpoint = read_checkpoint(ckpt)
    config = config_for(checkpoint)
    model = load_model(checkpoint)
    check_writable(output)
    scale = round(latent_scale(first_stage), 5)
    stage = config_for(read_checkpoint(first_stage))["model"]
    known, kept = follow(model, first_stage_of(first_stage), scale, varied_pictures(n))
    OmegaConf.update(config, "model.params.scale_factor", scale)
    stage = stage["params"].get("first_stage_config", stage)
    OmegaConf.update(config, "model.params.first_stage_config", stage, merge=False)
    for side in ("in_channels", "out_channels"):
        OmegaConf.update(config, f"model.params.unet_config.params.{side}", getattr(model.model.diffusion_model, side))
    save_checkpoint(output, published(model), {**checkpoint.metadata, "config": plain(config)})
    return f"{output}: {known:.1%} of the old latents' variance is in the new ones, {kept:.1%} of the new in the old"


def editor_without_picture(ckpt: Path, output: Path) -> Path:
    """Write an editor's network without its channels for the input picture, a start for text to image; return its path.

    It computes what the editor does where the picture is dropped. Raises UserError for no editor.
    """
    checkpoint = read_checkpoint(ckpt)
    config, model = config_for(checkpoint), load_model(checkpoint)
    if not model.has_picture_input:
        raise UserError(f"'{ckpt}' has no input picture to leave out; an editor is expected")
    check_writable(output)
    state, first = published(model), f"{UNET}input_blocks.0.0.weight"
    state[first] = state[first][:, : model.latent_channels].contiguous()
    OmegaConf.update(config, "model.params.conditioning_key", "crossattn")
    OmegaConf.update(config, "model.params.unet_config.params.in_channels", model.latent_channels)
    kept = {name: value for name, value in checkpoint.metadata.items() if name != "edit_defaults"}
    save_checkpoint(output, state, {**kept, "config": plain(config)})
    return output
