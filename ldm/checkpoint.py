"""Checkpoints: read weights from any of the formats in use, put them into a model with a report, write them safely.

Formats: Lightning 1.x / PyTorch pickles (``.ckpt``, ``.pt``, ``.bin``), ``.safetensors``, diffusers folders. The format
is told by content, not by name. Nothing in a file is ever run, and tensors stay on disk until they are used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.diffusers_format import FIRST_STAGE, TEXT, UNET, from_diffusers_text, from_diffusers_unet, from_diffusers_vae
from ldm.runs import weights_of
from ldm.unpickle import read_pickle

logger = logging.getLogger(__name__)

EMA = "model_ema."
METADATA_KEY = "instruct2dream"
WEIGHTS = ("auto", "ema", "raw")
LISTED = 5  # names in a line that a person reads

# Found in published files, and rightly not loaded: derived from the config, or of training's other half.
_DERIVED = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
)
_UNUSED = (
    EMA,
    f"{FIRST_STAGE}loss.",
    f"{FIRST_STAGE}model_ema.",
    "cond_stage_model.logit_scale",
    f"{TEXT}text_projection",
)


@dataclass
class Checkpoint:
    """The contents of a checkpoint: tensors by their published names (views of the file), and what is said of them."""

    path: Path
    format: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ema(self) -> bool:
        """Whether averaged weights are in it."""
        return any(name.startswith(f"{EMA}diffusion_model") for name in self.tensors)

    def families(self) -> dict[str, list[torch.Tensor]]:
        """Group the tensors by what they belong to: unet, ema, first stage, text encoder, derived, other."""
        groups: dict[str, list[torch.Tensor]] = {}
        for name, tensor in self.tensors.items():
            groups.setdefault(_family(name), []).append(tensor)
        return groups


@dataclass
class LoadReport:
    """What became of every key when a checkpoint was put into a model."""

    source: str
    weights: str
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    ignored: int = 0

    def summary(self) -> str:
        """Return the report as one paragraph."""
        parts = [f"{self.source}: {self.loaded} tensors loaded ({self.weights} weights)"]
        parts += [f"filled: {text}" for text in self.filled]
        if self.ignored:
            parts.append(f"{self.ignored} not needed (schedule, other copy of the weights, loss)")
        for title in ("unexpected", "mismatched", "missing"):
            names = getattr(self, title)
            if names:
                parts.append(f"{len(names)} {title}: {_listed(names)}")
        return "; ".join(parts)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint of any format, or the best weights of a run folder; tensors are mapped, not read.

    Raises FileNotFoundError if it is not there, ValueError (one line that says what was found) if it is no checkpoint.
    """
    path = weights_of(Path(path))
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist")
    if not os.access(path, os.R_OK):
        raise ValueError(f"checkpoint '{path}' cannot be read (permissions)")
    kind = _sniff(path)
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _split_pickle(read_pickle(path), path)
    if not tensors:
        raise ValueError(f"'{path}' holds no tensors")
    return Checkpoint(path, kind, _published_names(tensors), metadata)


def _sniff(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(256)
    if not head:
        raise ValueError(f"'{path}' is empty (0 bytes): the download or copy failed")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"'{path}' is a web page, not weights: download the file itself, not the page about it")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"'{path}' is a Git LFS pointer, not weights: fetch it with 'git lfs pull'")
    # safetensors first: the length at its start may look like another format's mark
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "ckpt"
    raise ValueError(f"'{path}' is neither a PyTorch pickle nor safetensors (it starts with {head[:12]!r})")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"'{path}' is truncated or no safetensors file ({error})") from error
    ours = metadata.pop(METADATA_KEY, None)
    try:
        own = json.loads(ours) if ours else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}': its '{METADATA_KEY}' metadata is not JSON ({error})") from error
    if not isinstance(own, dict):
        raise ValueError(f"'{path}': its '{METADATA_KEY}' metadata is not a JSON object")
    return tensors, {**metadata, **own}


def _split_pickle(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a dictionary of weights")
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(f"'{path}': its state_dict is a {type(state).__name__}, not a dictionary")
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (int, float, str, bool))}
    ours = content.get(METADATA_KEY)
    return tensors, {**plain, **(ours if isinstance(ours, dict) else {})}


def _read_folder(path: Path) -> Checkpoint:
    parts = {"unet": from_diffusers_unet, "vae": from_diffusers_vae, "text_encoder": from_diffusers_text}
    tensors: dict[str, torch.Tensor] = {}
    for name, rename in parts.items():
        files = sorted((path / name).glob("*.safetensors"), key=lambda f: (len(f.name), f.name))
        if files:
            read: dict[str, torch.Tensor] = {}
            for file in _shards(files):
                read.update(_read_safetensors(file)[0])
            tensors.update(rename(read))
    if not tensors:
        raise ValueError(f"folder '{path}' has no unet/, vae/ or text_encoder/ with .safetensors (diffusers layout)")
    return Checkpoint(path, "diffusers", tensors, _prediction(path / "scheduler" / "scheduler_config.json"))


def _shards(files: list[Path]) -> list[Path]:
    """Return the files that hold one part: the one with the shortest name, and those it is split over."""
    split = re.fullmatch(r"(.+)-\d+-of-(\d+)\.safetensors", files[0].name)
    if split is None:
        return files[:1]
    found = [f for f in files if re.fullmatch(rf"{re.escape(split[1])}-\d+-of-{split[2]}\.safetensors", f.name)]
    if len(found) != int(split[2]):
        raise ValueError(f"'{files[0].parent}' holds {len(found)} of the {int(split[2])} files of {split[1]}")
    return found


def _prediction(path: Path) -> dict[str, Any]:
    """Return what diffusers' scheduler says that the UNet predicts, as ``parameterization``; {} without one."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
        return {"parameterization": {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[said]}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"'{path}' does not say what the UNet predicts ({type(error).__name__}: {error})") from error


def _published_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give bare files (a first stage alone; a UNet, VAE or text encoder in diffusers' names) the published prefixes."""
    names = tensors.keys()
    if any(n.startswith("encoder.down_blocks.") for n in names):
        return from_diffusers_vae(tensors)
    if any(n.startswith("down_blocks.") for n in names):
        return from_diffusers_unet(tensors)
    if any(n.startswith("encoder.down.") for n in names):
        return {FIRST_STAGE + n: t for n, t in tensors.items()}
    if any(n.startswith(("text_model.embeddings.", "embeddings.token_embedding.")) for n in names):
        return from_diffusers_text(tensors)
    bare = f"{TEXT}embeddings."
    if any(n.startswith(bare) for n in names):  # saved by a text model without its "text_model." level
        return {n.replace(TEXT, f"{TEXT}text_model.", 1) if n.startswith(TEXT) else n: t for n, t in tensors.items()}
    return tensors


def _family(name: str) -> str:
    prefixes = {UNET: "unet", EMA: "unet (EMA)", FIRST_STAGE: "first stage", "cond_stage_model.": "text encoder"}
    for prefix, family in prefixes.items():
        if name.startswith(prefix):
            return family
    return "schedule" if name in _DERIVED else "other"


def average_of(name: str) -> str:
    """Return the name that a UNet parameter's average has in the published files."""
    return EMA + name.removeprefix("model.").replace(".", "")


def select_weights(checkpoint: Checkpoint, names: list[str], weights: str = "auto") -> tuple[dict, str]:
    """Return the tensors with the chosen copy of the UNet under its plain names, and which copy that is.

    names: the model's parameter names. weights: "ema", "raw", or "auto" (EMA where the file has it).
    Raises ValueError if EMA is asked for and absent, or only partly there.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights '{weights}'; known: {', '.join(WEIGHTS)}")
    tensors = dict(checkpoint.tensors)
    averaged = [n for n in names if n.startswith("model.")]
    if weights == "raw" or (weights == "auto" and not checkpoint.has_ema) or not averaged:
        return tensors, "raw"
    copies = {n: average_of(n) for n in averaged}
    absent = [copies[n] for n in averaged if copies[n] not in tensors]
    if absent:
        raise ValueError(
            f"'{checkpoint.path}' has {len(absent)} of {len(averaged)} EMA weights missing ({_listed(absent)}); "
            "use the raw ones instead (weights: raw)"
        )
    tensors.update({n: tensors[copy] for n, copy in copies.items()})
    return tensors, "ema"


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    weights: str = "auto",
    dtype_of: Callable[[str], torch.dtype] | None = None,
) -> LoadReport:
    """Put a checkpoint's tensors into a model; a model on the meta device receives them as its own, one copy.

    dtype_of: the type that a parameter gets on the meta device, by name (default: fp32). Raises ValueError if any
    parameter is missing or mis-shaped; the line names the first, ``compare`` gives all.
    """
    report, accepted = compare(model, checkpoint, weights)
    if report.missing or report.mismatched:
        more = max(len(report.missing), len(report.mismatched), len(report.unexpected)) > LISTED
        hint = "; scripts/inspect_checkpoint.py --keys lists every key" if more else ""
        raise ValueError(f"the checkpoint does not fit the config: {report.summary()}{hint}")
    _assign(model, accepted, dtype_of)
    return report


def compare(
    model: nn.Module, checkpoint: Checkpoint, weights: str = "auto"
) -> tuple[LoadReport, dict[str, torch.Tensor]]:
    """Hold a checkpoint against a model: the report of every key, and the tensors that fit, by the model's names."""
    wanted = model.state_dict(keep_vars=True)
    own = {n for n in wanted if not n.startswith(EMA) and n not in _DERIVED}
    tensors, used = select_weights(checkpoint, [n for n, _ in model.named_parameters() if n in own], weights)
    report = LoadReport(str(checkpoint.path), used)
    accepted: dict[str, torch.Tensor] = {}
    for name in own:
        tensor = tensors.pop(name, None)
        if tensor is not None:
            tensor = _fitted(name, tensor, wanted[name], report)
            if tensor is not None:
                accepted[name] = tensor
        elif not name.endswith("position_ids"):  # a constant; newer files leave it out
            report.missing.append(name)
    for name in tensors:
        if name in _DERIVED or name.startswith(_UNUSED):
            report.ignored += 1
        else:
            report.unexpected.append(name)
    report.loaded = len(accepted)
    return report, accepted


def _fitted(name: str, tensor: torch.Tensor, own: torch.Tensor, report: LoadReport) -> torch.Tensor | None:
    """Return the tensor, with zero channels added where an editing UNet starts from a text-to-image one."""
    if tensor.shape == own.shape:
        return tensor
    extra = own.shape[1] - tensor.shape[1] if tensor.ndim == own.ndim == 4 else 0
    if name == f"{UNET}input_blocks.0.0.weight" and 0 < extra == tensor.shape[1] and tensor.shape[0] == own.shape[0]:
        report.filled.append(f"{extra} new input channels of {name} with zeros")
        return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], extra, *tensor.shape[2:])], dim=1)
    report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(own.shape)}")
    return None


@torch.no_grad()
def _assign(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], dtype_of: Callable[[str], torch.dtype] | None
) -> None:
    """Copy each tensor into its place; a place on the meta device gets a fresh tensor of its type."""
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        module = modules[parent]
        own = getattr(module, leaf)
        if not own.is_meta:
            own.copy_(tensor)
            continue
        dtype = own.dtype if not own.is_floating_point() else (dtype_of(name) if dtype_of else torch.float32)
        value = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if isinstance(own, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(value, requires_grad=own.requires_grad)
        else:
            module._buffers[leaf] = value


def fingerprint(path: str | Path) -> str:
    """Return 16 hex digits that tell checkpoints apart: SHA-256 over the size and samples of the contents.

    Files up to 64 MiB are hashed whole; larger ones by their first and last MiB and 256 blocks of 64 KiB between, so
    that a 7.7 GB file takes a moment. A folder is hashed over its safetensors files.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with open(file, "rb") as stream:
            if size <= 64 << 20:
                digest.update(stream.read())
                continue
            digest.update(stream.read(1 << 20))
            for i in range(256):
                stream.seek((1 << 20) + (size - (2 << 20)) * i // 256)
                digest.update(stream.read(64 << 10))
            stream.seek(size - (1 << 20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


@contextmanager
def replacing(path: str | Path):
    """Give a temporary path beside ``path``, and put it in its place when the block ends without an error.

    So a reader never sees half a file, and a full disk leaves what was there before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write weights by their published names, ``.safetensors`` or ``.ckpt`` by the path's ending, all or nothing.

    metadata: JSON values, among them ``config``; kept inside the file. Raises ValueError for another ending, OSError
    (one line) if the file cannot be written: the disk is full, say.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"cannot save '{path}': the name must end in .safetensors or .ckpt")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        try:
            if path.suffix == ".safetensors":
                write_safetensors(state, temporary, {METADATA_KEY: json.dumps(dict(metadata))})
            else:
                torch.save({"state_dict": state, METADATA_KEY: dict(metadata)}, temporary)
        except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
            raise OSError(f"cannot write '{path}' ({error})") from error


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors, with the permissions that other files get. Raises OSError if that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(state), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
