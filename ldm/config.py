"""Configs: YAML with ``base:``, dotlist overrides, and objects made from ``target`` + ``params``.

An upstream CompVis, DreamBooth or InstructPix2Pix YAML loads unmodified: ``ALIASES`` maps its class paths to ours,
``NO_EFFECT`` lists its parameters that mean nothing here. ``OLD_KEYS`` names parameters that once stood by themselves
and the node that holds them now, wherever they come from: files, overrides, run folders, weights.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import MissingFileError, MissingPackageError, UserError
from ldm.typed import check_type, first_line, nearest, plain

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

# Parameters of LatentDiffusion that once stood by themselves -> the node of its parameters that holds them now.
OLD_KEYS = dict.fromkeys(
    (
        "loss_type",
        "reg_weight",
        "dropout_text",
        "dropout_image",
        "dropout_both",
        "dropped_weight",
        "min_snr_gamma",
        "snr_offset",
        "offset_noise",
        "t_power",
        "change_weight",
        "dream_detail_preservation",
    ),
    "objective_config",
)

EXTRAS = {"bitsandbytes": "adam8bit"}  # packages that an extra of this project installs


def load_config(
    path: str | Path,
    overrides: list[str] | tuple[str, ...] = (),
    also: Mapping[str, Iterable[str]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> DictConfig:
    """Read a YAML file, merged over its ``base:`` (a path, or a list, relative to the file), then texts and overrides.

    texts: ``key.sub`` -> words that are taken as they are. overrides: ``key.sub=value``, the value read as YAML. A key
    that the file does not have is an error, unless ``also`` lists it for its section (keys that a section may have
    beside those that the file sets).
    Raises MissingFileError for a missing file; UserError for text that is no YAML mapping, or an unknown key.
    """
    config, changes = _read(Path(path), ()), []
    for key, text in (texts or {}).items():
        _check_key(config, key, also or {})
        OmegaConf.update(config, key, text.replace("${", "\\${"))
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"override '{text}' is not of the form key=value")
        key = _placed_key(key)
        _check_key(config, key, also or {})
        changes.append(f"{key}={value}")
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist(changes))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot apply overrides {list(overrides)} to {path}: {first_line(error)}") from error


def with_shipped_paths(config: DictConfig, root: Path) -> DictConfig:
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
        raise MissingFileError(f"config '{path}' does not exist")
    if path.resolve() in seen:
        raise UserError(f"config '{path}' is its own base")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # yaml's errors share no public base with OmegaConf's
        raise UserError(f"config '{path}' is not readable YAML: {first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"config '{path}' must be a mapping of keys to values")
    config = OmegaConf.create(with_old_keys_placed(OmegaConf.to_container(config, resolve=False)))
    bases = config.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if (not OmegaConf.is_list(bases) and not isinstance(bases, list)) or any(not isinstance(b, str) for b in bases):
        raise UserError(f"config '{path}': base must be a path or a list of paths")
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
                raise UserError(f"unknown key '{dotted}'{nearest(part, [str(k) for k in node] + more)}")
            node = node[part]
        else:
            raise UserError(f"unknown key '{dotted}': '{'.'.join(walked)}' is a value, it has no keys")
        walked.append(part)


def with_old_keys_placed(config: Any) -> Any:
    """Return a whole config (plain containers) whose ``model`` has the parameters of ``OLD_KEYS`` in their node."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("params"), Mapping):
        return config
    target = model.get("target")
    if isinstance(target, str) and resolve_alias(target) != _LATENT_DIFFUSION:
        return config
    return {**config, "model": {**model, "params": _with_flat_placed(model["params"])}}


def _with_flat_placed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a LatentDiffusion's parameters with the flat ones in their node; a flat one wins."""
    flat = {key: value for key, value in params.items() if key in OLD_KEYS}
    placed = {key: value for key, value in params.items() if key not in OLD_KEYS}
    for node in {OLD_KEYS[key] for key in flat}:
        placed[node] = {**(placed.get(node) or {}), **{k: v for k, v in flat.items() if OLD_KEYS[k] == node}}
    return placed


def as_written_today(config: Any) -> Any:
    """Return a whole config (plain containers) with every target's path of today and flat parameters in their node, so
    that configs written at different times can be compared."""

    def renamed(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {
                k: resolve_alias(v) if k == "target" and isinstance(v, str) else renamed(v) for k, v in node.items()
            }
        return [renamed(value) for value in node] if isinstance(node, (list, tuple)) else node

    return with_old_keys_placed(renamed(config))


def _placed_key(dotted: str) -> str:
    """Return the key that an override means: of a flat parameter the one in its node."""
    before, _, last = dotted.rpartition(".")
    return f"{before}.{OLD_KEYS[last]}.{last}" if before == "model.params" and last in OLD_KEYS else dotted


def resolve_alias(target: Any) -> str:
    """Return our dotted path for a target, which may be upstream's. Raises UserError for what is no text."""
    if not isinstance(target, str):
        raise UserError(f"target must be a dotted path, found {target!r}"[:200])
    target = target.removeprefix(_OLD_FOLDER)
    return ALIASES.get(target, target)


def get_class(target: str) -> Any:
    """Return the object that a dotted path names, after upstream's names are mapped to ours.

    Raises UserError if it does not exist.
    """
    module_name, _, name = resolve_alias(target).rpartition(".")
    if not all(part.isidentifier() for part in f"{module_name}.{name}".split(".")):
        raise UserError(f"target '{target}' is not a dotted path like package.module.Class")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and not module_name.startswith(error.name):
            raise  # the target exists, but something that it needs is not installed
        package = module_name.split(".")[0]
        if package in EXTRAS:
            raise MissingPackageError(
                f"'{target}' needs the package {package}: pip install 'instruct2dream[{EXTRAS[package]}]'"
            ) from error
        raise UserError(f"target '{target}' does not exist ({error})") from error


def instantiate_from_config(node: Any, **extra: Any) -> Any:
    """Build the object that ``{target: dotted.path, params: {...}}`` describes; ``extra`` joins the params.

    Parameters without effect today are dropped with one debug line. Raises UserError for a missing target, for
    one that does not exist, and for an unknown parameter (naming the nearest known one).
    """
    node = plain(node)
    if not isinstance(node, Mapping) or "target" not in node:
        raise UserError(f"expected a mapping with 'target' (and 'params'), found {node!r}"[:300])
    unknown = set(node) - {"target", "params"} - ({"base_learning_rate"} if "params" in node else set())
    if unknown:
        key = sorted(unknown)[0]
        raise UserError(f"unknown key '{key}' beside target '{node['target']}'{nearest(key, ['target', 'params'])}")
    factory = get_class(node["target"])
    if not callable(factory) or inspect.ismodule(factory):
        raise UserError(f"target '{node['target']}' is no class that could be built")
    params = node.get("params") or {}
    if not isinstance(params, Mapping):
        raise UserError(
            f"the params of '{node['target']}' must be a mapping of names to values, found {params!r}"[:300]
        )
    if resolve_alias(node["target"]) == _LATENT_DIFFUSION:
        params = _with_flat_placed(params)
    try:
        return factory(**_checked(factory, node["target"], params, extra))
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # a value that a library cannot use: each has errors of its own for that
        if "memory" in str(error) or _is_ours(error):
            raise
        raise UserError(f"{node['target']} cannot be built from its params: {first_line(error)}") from error


def _is_ours(error: Exception) -> bool:
    """Whether an exception was raised by a line of this package: then it is a bug, to be seen with its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _checked(factory: Any, target: str, given: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a class takes; those of a config (``given``) are held against their declared types."""
    params = {**given, **extra}
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
    hints = _hints(factory)
    for key, value in params.items():
        if key not in names:
            raise UserError(f"{target} has no parameter '{key}'{nearest(key, names)}")
        if key in hints and key not in extra:
            check_type(hints[key], value, f"{target}: {key}")
    missing = [p.name for p in accepted if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in missing if name not in params]
    if missing:
        raise UserError(f"{target} needs the parameter(s) {', '.join(missing)}")
    return params


def _hints(factory: Any) -> dict[str, Any]:
    """The declared types of a class of ours; none of others', which may convert what they are given."""
    if not getattr(factory, "__module__", "").startswith("ldm."):
        return {}
    owner = sys.modules[factory.__module__]
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, vars(owner))
    except (NameError, TypeError, AttributeError):
        return {}
