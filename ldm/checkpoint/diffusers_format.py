"""The diffusers folder format: parameter names of its UNet, autoencoder and text encoder, mapped to the published ones.

Both directions come from one table of (ours, theirs) name pairs; a name's tail after the pair stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

_RES = (
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
)
_VAE_ATTENTION = (
    ("norm.", ("group_norm.",)),
    ("q.", ("to_q.", "query.")),
    ("k.", ("to_k.", "key.")),
    ("v.", ("to_v.", "value.")),
    ("proj_out.", ("to_out.0.", "proj_attn.")),
)


def from_diffusers_unet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a diffusers ``unet/`` state to the published names (with prefix). Unknown names keep their own."""
    blocks = _numbers(state, r"down_blocks\.(\d+)\.") + 1
    per_level = _numbers(state, r"down_blocks\.\d+\.resnets\.(\d+)\.") + 1
    attention = {level for level in range(blocks) if any(n.startswith(f"up_blocks.{level}.attentions.") for n in state)}
    table = unet_table(blocks, per_level, attention)
    return {UNET + _rename(name, ((theirs, ours) for ours, theirs in table)): tensor for name, tensor in state.items()}


def unet_table(levels: int, per_level: int, up_attention: set[int]) -> list[tuple[str, str]]:
    """Return the (ours, theirs) prefixes of a UNet with so many levels and residual blocks per level.

    up_attention: the ``up_blocks`` with attention (counted from the lowest resolution).
    """
    table = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ]
    table += _res("middle_block.0.", "mid_block.resnets.0.")
    table += [("middle_block.1.", "mid_block.attentions.0.")]
    table += _res("middle_block.2.", "mid_block.resnets.1.")
    for level in range(levels):
        for j in range(per_level):
            n = 1 + level * (per_level + 1) + j
            table += _res(f"input_blocks.{n}.0.", f"down_blocks.{level}.resnets.{j}.")
            table.append((f"input_blocks.{n}.1.", f"down_blocks.{level}.attentions.{j}."))
        n = (level + 1) * (per_level + 1)
        table.append((f"input_blocks.{n}.0.op.", f"down_blocks.{level}.downsamplers.0.conv."))
        for j in range(per_level + 1):
            n = level * (per_level + 1) + j
            table += _res(f"output_blocks.{n}.0.", f"up_blocks.{level}.resnets.{j}.")
            if level in up_attention:
                table.append((f"output_blocks.{n}.1.", f"up_blocks.{level}.attentions.{j}."))
        n, place = level * (per_level + 1) + per_level, 2 if level in up_attention else 1
        table.append((f"output_blocks.{n}.{place}.conv.", f"up_blocks.{level}.upsamplers.0.conv."))
    return table


def from_diffusers_vae(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a diffusers ``vae/`` state to the published names (with prefix), linear attention to 1x1 convolutions."""
    levels = _numbers(state, r"encoder\.down_blocks\.(\d+)\.") + 1
    per_level = _numbers(state, r"encoder\.down_blocks\.\d+\.resnets\.(\d+)\.") + 1
    table = [(theirs, ours) for ours, names in vae_table(levels, per_level) for theirs in names]
    renamed = {}
    for name, tensor in state.items():
        ours = _rename(name, table)
        if ".attn_1." in ours and ours.endswith(".weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[FIRST_STAGE + ours] = tensor
    return renamed


def vae_table(levels: int, per_level: int) -> list[tuple[str, tuple[str, ...]]]:
    """Return (ours, theirs and their older names) prefixes of an autoencoder."""
    table: list[tuple[str, tuple[str, ...]]] = []
    for half in ("encoder.", "decoder."):
        table.append((f"{half}norm_out.", (f"{half}conv_norm_out.",)))
        for i in (0, 1):
            table.append((f"{half}mid.block_{i + 1}.", (f"{half}mid_block.resnets.{i}.",)))
        for ours, theirs in _VAE_ATTENTION:
            names = tuple(f"{half}mid_block.attentions.0.{name}" for name in theirs)
            table.append((f"{half}mid.attn_1.{ours}", names))
    for level in range(levels):
        mirrored = levels - 1 - level
        for j in range(per_level):
            table.append((f"encoder.down.{level}.block.{j}.", (f"encoder.down_blocks.{level}.resnets.{j}.",)))
        for j in range(per_level + 1):
            table.append((f"decoder.up.{mirrored}.block.{j}.", (f"decoder.up_blocks.{level}.resnets.{j}.",)))
        table.append((f"encoder.down.{level}.downsample.conv.", (f"encoder.down_blocks.{level}.downsamplers.0.conv.",)))
        table.append((f"decoder.up.{mirrored}.upsample.conv.", (f"decoder.up_blocks.{level}.upsamplers.0.conv.",)))
    return table


def from_diffusers_text(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a ``text_encoder/`` state (older transformers with ``text_model.``, newer without) to ours."""
    return {TEXT + _with_text_model(name): tensor for name, tensor in state.items()}


def _with_text_model(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def _res(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(ours + a, theirs + b) for a, b in _RES]


def _numbers(names: Iterable[str], pattern: str) -> int:
    """Return the largest number that the pattern's group finds, -1 if none."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match.group(1)) for match in matches if match), default=-1)


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    for old, new in table:
        if name.startswith(old):
            # the first stage calls its shortcut by another name than the UNet's residual blocks do
            return (new + name[len(old) :]).replace("conv_shortcut.", "nin_shortcut.")
    return name


def to_diffusers(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return published weights as the diffusers parts "unet", "vae" and "text_encoder", each by its own names.

    The autoencoder's attention becomes linear; the text encoder keeps ``text_model.``, as published folders have it.
    """
    parts = {
        prefix: {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in (UNET, FIRST_STAGE, TEXT)
    }
    return {
        "unet": _to_unet(parts[UNET]),
        "vae": _to_vae(parts[FIRST_STAGE]),
        "text_encoder": {name: tensor for name, tensor in parts[TEXT].items() if not name.endswith("position_ids")},
    }


def _to_unet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ops = sorted(int(m[1]) for m in (re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name) for name in state) if m)
    total = _numbers(state, r"input_blocks\.(\d+)\.")
    levels = len(ops) + 1
    per_level = (total - len(ops)) // levels
    up = {n // (per_level + 1) for n in range((per_level + 1) * levels) if f"output_blocks.{n}.1.norm.weight" in state}
    table = unet_table(levels, per_level, up)
    renamed = {}
    for name, tensor in state.items():
        theirs = next((new + name[len(old) :] for old, new in table if name.startswith(old)), name)
        renamed[theirs] = tensor
    return renamed


def _to_vae(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    levels = _numbers(state, r"encoder\.down\.(\d+)\.") + 1
    per_level = _numbers(state, r"encoder\.down\.\d+\.block\.(\d+)\.") + 1
    table = [(ours, names[0]) for ours, names in vae_table(levels, per_level)]
    renamed = {}
    for name, tensor in state.items():
        theirs = next((new + name[len(old) :] for old, new in table if name.startswith(old)), name)
        if ".attentions.0." in theirs and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        renamed[theirs.replace("nin_shortcut.", "conv_shortcut.")] = tensor
    return renamed
