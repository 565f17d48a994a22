"""Write a model for others: one fp16 file with the published names, or a folder that diffusers loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.diffusers_format import FIRST_STAGE, TEXT, UNET, to_diffusers
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import save_checkpoint, write_safetensors
from ldm.diffusion.conditioning import Conditioning
from ldm.errors import UserError
from ldm.models.build import config_for, load_model
from ldm.modules.text import CLIP_VIT_L_14
from ldm.typed import plain

PARTS = (UNET, FIRST_STAGE, TEXT)
KEPT = ("recipe", "edit_defaults", "text_defaults", "step")
APART = 0.05  # of an output's size: what fp16 weights change stays far below, other weights far above
LATENT = 32  # positions of a side at which the two are compared


def export(source: str | Path, output: str | Path, weights: str = "auto") -> Path:
    """Export a checkpoint and return where it went: a ``.safetensors`` file, or else a diffusers folder.

    weights: raw, ema or auto, see ``load_model``. The file carries the config and the recipe; the folder's weights are
    fp16 (the first stage fp32, which overflows otherwise) and it has no tokenizer: take CLIP's own.
    What was written is loaded again, and must compute what the checkpoint's model does.
    Raises UserError for what cannot be read, exists already, has no diffusers form, or computes
    something else; nothing is left behind then.
    """
    checkpoint, output = read_checkpoint(source), Path(output)
    if output.exists():
        raise UserError(f"'{output}' exists already; choose another name, or delete it")
    if output.suffix == ".safetensors":
        return _as_file(checkpoint, output, weights)
    if output.suffix:
        raise UserError(f"'{output}' is neither a .safetensors file nor a folder (a name without an ending)")
    return _as_folder(checkpoint, output, weights)


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """Give a name beside the output; what was written there becomes the output if the block ends without an error, and
    is removed otherwise."""
    temporary = output.with_name(f".tmp-{os.getpid()}-{output.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.rename(output)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def published(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's weights by their published names."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


@torch.no_grad()
def _outputs(model: Any) -> dict[str, torch.Tensor]:
    """What each part computes from fixed noise: a latent of a picture, one denoising, a picture of a latent."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, model.latent_channels, LATENT, LATENT, generator=generator)
    side = LATENT * model.first_stage_model.downsampling
    latent = model.picture_condition(torch.rand(1, 3, side, side, generator=generator) * 2 - 1)
    states = model.get_learned_conditioning(["replace the wolf with a sks dog"])
    conditioning = Conditioning(states, latent if model.has_picture_input else None)
    t = torch.tensor([len(model.schedule) // 2])
    return {
        "first stage's latent": latent,
        "UNet's prediction": model.apply_model(z, t, conditioning),
        "first stage's picture": model.decode_first_stage(z),
    }


def _check_same(wanted: dict[str, torch.Tensor], model: Any, source: Path) -> None:
    """Raise UserError unless a model computes what was computed before, up to the rounding of its weights."""
    for name, results in _outputs(model).items():
        if not wanted[name].isfinite().all():
            raise UserError(f"the {name} is not finite in '{source}' itself; it is not exported")
        apart, size = (results - wanted[name]).norm().item(), wanted[name].norm().item()
        if not apart <= APART * size:
            raise UserError(
                f"what was exported is not what '{source}' holds: the {name} is {apart / max(size, 1e-12):.0%} apart; "
                "it was removed"
            )


def _as_file(checkpoint: Checkpoint, output: Path, weights: str) -> Path:
    config = config_for(checkpoint)
    model = load_model(checkpoint, weights=weights)
    wanted = _outputs(model)
    state = {name: _half(tensor) for name, tensor in published(model).items()}
    del model
    kept = {key: value for key, value in checkpoint.metadata.items() if key in KEPT}
    with _unfinished(output) as temporary:
        save_checkpoint(temporary, state, {**kept, "config": _plain(config)})
        del state
        _check_same(wanted, load_model(temporary), checkpoint.path)
    return output


def _as_folder(checkpoint: Checkpoint, output: Path, weights: str) -> Path:
    config = config_for(checkpoint)
    params = _plain(config)["model"]["params"]
    model = load_model(checkpoint, weights=weights)
    wanted = _outputs(model)
    state = to_diffusers(published(model))
    del model
    described = {
        "unet": _unet_config(params["unet_config"]["params"]),
        "vae": _vae_config(params["first_stage_config"]["params"], params.get("scale_factor", 0.18215)),
        "text_encoder": _text_config(params["cond_stage_config"].get("params") or {}),
        "scheduler": _scheduler_config(params),
        "model_index": _index(params),
    }
    with _unfinished(output) as temporary:
        _write_folder(temporary, state, described)
        del state
        _check_same(wanted, load_model(temporary, config), checkpoint.path)
    return output


def _write_folder(folder: Path, state: dict[str, dict[str, torch.Tensor]], described: dict[str, Any]) -> None:
    for part, tensors in state.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
        kept = tensors if part == "vae" else {k: _half(v) for k, v in tensors.items()}
        write_safetensors({k: v.contiguous() for k, v in kept.items()}, folder / part / name)
    names = {"scheduler": "scheduler/scheduler_config.json", "model_index": "model_index.json"}
    for part, content in described.items():
        path = folder / names.get(part, f"{part}/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2))


def _index(params: dict[str, Any]) -> dict[str, Any]:
    pipeline = "StableDiffusionInstructPix2PixPipeline"
    if params.get("conditioning_key") != "hybrid":
        pipeline = "StableDiffusionPipeline"
    return {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
    }


def _unet_config(p: dict[str, Any]) -> dict[str, Any]:
    levels = len(p["channel_mult"])
    with_attention = [2**i in p["attention_resolutions"] for i in range(levels)]
    if p.get("num_head_channels", -1) not in (-1, None) or p.get("transformer_depth", 1) != 1:
        raise UserError("this UNet has no diffusers form that is tested: num_head_channels or transformer_depth")
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": p["in_channels"],
        "out_channels": p["out_channels"],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in with_attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(with_attention)],
        "block_out_channels": [p["model_channels"] * m for m in p["channel_mult"]],
        "layers_per_block": p["num_res_blocks"],
        "cross_attention_dim": p["context_dim"],
        "attention_head_dim": p["num_heads"],
        "sample_size": 64,
    }


def _vae_config(p: dict[str, Any], scale_factor: float) -> dict[str, Any]:
    d = p["ddconfig"]
    levels = len(d["ch_mult"])
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": d.get("in_channels", 3),
        "out_channels": d.get("out_ch", 3),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [d["ch"] * m for m in d["ch_mult"]],
        "layers_per_block": d["num_res_blocks"],
        "latent_channels": p["embed_dim"],
        "norm_num_groups": d.get("num_groups", 32),
        "sample_size": d["resolution"],
        "scaling_factor": scale_factor,
    }


def _text_config(p: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **CLIP_VIT_L_14,
        **dict(p.get("text_config") or {}),
    }


def _scheduler_config(p: dict[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "num_train_timesteps": p.get("timesteps", 1000),
        "beta_schedule": "scaled_linear",
        "beta_start": p.get("linear_start", 0.00085),
        "beta_end": p.get("linear_end", 0.0120),
        "prediction_type": {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[p.get("parameterization", "eps")],
        "timestep_spacing": "linspace",
        "steps_offset": 1,
    }


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _plain(config: Any) -> dict[str, Any]:

    return plain(config)
