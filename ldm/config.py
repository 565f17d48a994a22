"""Configs: YAML with ``base:``, dotlist overrides, and objects made from ``target`` + ``params``.

An upstream CompVis, DreamBooth or InstructPix2Pix YAML loads unmodified: ``ALIASES`` maps its class paths to ours,
``NO_EFFECT`` lists its parameters that mean nothing here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

logger = logging.getLogger(__name__)

_LATENT_DIFFUSION = "ldm.models.latent_diffusion.LatentDiffusion"

_OLD_FOLDER = "stable_diffusion."  # InstructPix2Pix's first files name their classes below this folder

ALIASES = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": _LATENT_DIFFUSION,
    "ldm.models.diffusion.ddpm_edit.LatentDiffusion": _LATENT_DIFFUSION,
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": "ldm.modules.unet.UNetModel",
    "ldm.models.autoencoder.VQModelInterface": "ldm.models.vq.VQModel",
    "ldm.models.autoencoder.VQModel": "ldm.models.vq.VQModel",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": "ldm.modules.text.FrozenCLIPEmbedder",
    "ldm.data.personalized_edit.PersonalizedBase": "ldm.data.personalized_edit.PersonalizedEdit",
    "ldm.data.personalized.PersonalizedBase": "ldm.data.personalized.PersonalizedImages",
    "edit_dataset.EditDataset": "ldm.data.edit_dataset.EditDataset",
    "ldm.lr_scheduler.LambdaLinearScheduler": "ldm.training.lr.LambdaLinearScheduler",
    "main.DataModuleFromConfig": "ldm.data.datamodule.PairDataModule",
    # where our own classes stood when runs and weights that are still in use were written
    "ldm.modules.reconstruction.ReconstructionLoss": "ldm.modules.first_stage_loss.ReconstructionLoss",
    "ldm.modules.discriminator.AdversarialReconstructionLoss": (
        "ldm.modules.first_stage_loss.AdversarialReconstructionLoss"
    ),
    "ldm.data.original.OriginalPairs": "ldm.spriteworld.experiments.original_pairs.OriginalPairs",
    "ldm.data.latent_pictures.LatentPictures": "ldm.spriteworld.weights.latent_pictures.LatentPictures",
    "ldm.training.muon.Muon": "ldm.spriteworld.weights.muon.Muon",
    "ldm.training.sheets.EditSheet": "ldm.spriteworld.world.grids.EditSheet",
    "ldm.spriteworld.sheets.ReconstructionSheet": "ldm.spriteworld.world.grids.ReconstructionSheet",
    "ldm.spriteworld.dataset.SpritePictures": "ldm.spriteworld.world.dataset.SpritePictures",
    "ldm.spriteworld.dataset.SpriteCaptions": "ldm.spriteworld.world.dataset.SpriteCaptions",
    "ldm.spriteworld.dataset.SpriteTriplets": "ldm.spriteworld.world.dataset.SpriteTriplets",
}

NO_EFFECT = {
    _LATENT_DIFFUSION: {
        "monitor",
        "log_every_t",
        "num_timesteps_cond",
        "personalization_config",
        "embedding_reg_weight",
        "unfreeze_model",
        "model_lr",
        "image_size",
        "channels",
        "first_stage_key",
        "cond_stage_key",
        "load_ema",
        "v_posterior",
        "original_elbo_weight",
        "clip_denoised",
        "concat_mode",
        "cond_stage_forward",
        "reset_ema",
    },
    "ldm.modules.unet.UNetModel": {"image_size", "legacy", "conv_resample", "dims", "use_fp16"},
    "ldm.models.autoencoder.AutoencoderKL": {"monitor", "image_key", "colorize_nlabels"},
    "ldm.models.vq.VQModel": {"monitor", "lossconfig", "image_key", "colorize_nlabels"},
    "ldm.modules.text.FrozenCLIPEmbedder": {"version", "device"},
    "ldm.data.datamodule.PairDataModule": {"wrap"},
    "ldm.data.personalized_edit.PersonalizedEdit": {"set", "per_image_tokens"},
    "ldm.data.personalized.PersonalizedImages": {"set", "per_image_tokens"},
    "ldm.data.edit_dataset.EditDataset": {"cache_dir"},
}

EXTRAS = {"bitsandbytes": "adam8bit"}  # packages that an extra of this project installs


def load_config(
    path: str | Path, overrides: list[str] | tuple[str, ...] = (), also: Mapping[str, Iterable[str]] | None = None
) -> DictConfig:
    """Read a YAML file, merged over its ``base:`` (a path, or a list, relative to the file), then the overrides.

    overrides: ``key.sub=value`` strings. An override of a key that the file does not have is an error, unless ``also``
    lists it for its section (keys that a section may have beside those that the file sets).
    Raises FileNotFoundError for a missing file; ValueError for text that is no YAML mapping, or an unknown key.
    """
    config = _read(Path(path), ())
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign:
            raise ValueError(f"override '{text}' is not of the form key=value")
        _check_key(config, key, also or {})
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"cannot apply overrides {list(overrides)} to {path}: {_first_line(error)}") from error


def anchored(config: DictConfig, root: Path) -> DictConfig:
    """Return the config with shipped files found from any directory: a relative ``ckpt_path``, or ``dataset.root``,
    that is not there but is there under ``root`` becomes absolute."""

    def placed(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {k: placed(v, k) for k, v in node.items()}
        shipped = key in ("ckpt_path", "root") and isinstance(node, str) and not Path(node).exists()
        return str(root / node) if shipped and (root / node).exists() else node

    return OmegaConf.create(placed(OmegaConf.to_container(config, resolve=False)))


def _read(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    if not path.is_file():
        raise FileNotFoundError(f"config '{path}' does not exist")
    if path.resolve() in seen:
        raise ValueError(f"config '{path}' is its own base")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # yaml's errors share no public base with OmegaConf's
        raise ValueError(f"config '{path}' is not readable YAML: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"config '{path}' must be a mapping of keys to values")
    bases = config.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if (not OmegaConf.is_list(bases) and not isinstance(bases, list)) or any(not isinstance(b, str) for b in bases):
        raise ValueError(f"config '{path}': base must be a path or a list of paths")
    merged = OmegaConf.create()
    for base in bases:
        merged = OmegaConf.merge(merged, _read(path.parent / base, (*seen, path.resolve())))
    return OmegaConf.merge(merged, config)


def _check_key(config: DictConfig, dotted: str, also: Mapping[str, Iterable[str]]) -> None:
    node, walked = config, []
    for part in dotted.split("."):
        if isinstance(node, DictConfig):
            # "params" may be filled freely: the class itself says which parameters it has
            if walked and walked[-1] == "params":
                return
            more = list(also.get(".".join(walked), ()))
            if part not in node and part in more:
                return
            if part not in node:
                raise ValueError(f"unknown key '{dotted}'{nearest(part, [str(k) for k in node] + more)}")
            node = node[part]
        else:
            raise ValueError(f"unknown key '{dotted}': '{'.'.join(walked)}' is a value, it has no keys")
        walked.append(part)


def nearest(word: str, known: list[str]) -> str:
    """Return the tail of an error message: the known word most like ``word``, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def resolve_alias(target: Any) -> str:
    """Return our dotted path for a target, which may be upstream's. Raises ValueError for what is no text."""
    if not isinstance(target, str):
        raise ValueError(f"target must be a dotted path, found {target!r}"[:200])
    target = target.removeprefix(_OLD_FOLDER)
    return ALIASES.get(target, target)


def get_class(target: str) -> Any:
    """Return the object that a dotted path names, after upstream's names are mapped to ours.

    Raises ValueError if it does not exist.
    """
    module_name, _, name = resolve_alias(target).rpartition(".")
    if not all(part.isidentifier() for part in f"{module_name}.{name}".split(".")):
        raise ValueError(f"target '{target}' is not a dotted path like package.module.Class")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and not module_name.startswith(error.name):
            raise  # the target exists, but something that it needs is not installed
        package = module_name.split(".")[0]
        if package in EXTRAS:
            raise ImportError(
                f"'{target}' needs the package {package}: pip install 'instruct2dream[{EXTRAS[package]}]'"
            ) from error
        raise ValueError(f"target '{target}' does not exist ({error})") from error


def instantiate_from_config(node: Any, **extra: Any) -> Any:
    """Build the object that ``{target: dotted.path, params: {...}}`` describes; ``extra`` joins the params.

    Parameters without effect today are dropped with one debug line. Raises ValueError for a missing target, for
    one that does not exist, and for an unknown parameter (naming the nearest known one).
    """
    node = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(node, Mapping) or "target" not in node:
        raise ValueError(f"expected a mapping with 'target' (and 'params'), found {node!r}"[:300])
    unknown = set(node) - {"target", "params"} - ({"base_learning_rate"} if "params" in node else set())
    if unknown:
        key = sorted(unknown)[0]
        raise ValueError(f"unknown key '{key}' beside target '{node['target']}'{nearest(key, ['target', 'params'])}")
    factory = get_class(node["target"])
    if not callable(factory) or inspect.ismodule(factory):
        raise ValueError(f"target '{node['target']}' is no class that could be built")
    params = node.get("params") or {}
    if not isinstance(params, Mapping):
        raise ValueError(
            f"the params of '{node['target']}' must be a mapping of names to values, found {params!r}"[:300]
        )
    try:
        return factory(**_checked(factory, node["target"], {**params, **extra}))
    except (ValueError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # a value that the class cannot use: every library has errors of its own for that
        if "memory" in str(error):
            raise
        raise ValueError(f"{node['target']} cannot be built from its params: {_first_line(error)}") from error


def _checked(factory: Any, target: str, params: dict[str, Any]) -> dict[str, Any]:
    idle = NO_EFFECT.get(resolve_alias(target), set()) & set(params)
    if idle:
        logger.debug("%s: without effect here: %s", target, ", ".join(sorted(idle)))
    params = {key: value for key, value in params.items() if key not in idle}
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some builtins have none
        return params
    accepted = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in accepted):
        return params
    names = [p.name for p in accepted if p.name != "self"]
    for key in params:
        if key not in names:
            raise ValueError(f"{target} has no parameter '{key}'{nearest(key, names)}")
    missing = [p.name for p in accepted if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in missing if name not in params]
    if missing:
        raise ValueError(f"{target} needs the parameter(s) {', '.join(missing)}")
    return params


def _first_line(error: Exception) -> str:
    name = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())[:200]
