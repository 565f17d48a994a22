"""What ``scripts/spriteworld.py`` does: sheets of the world, its recognisers, a checkpoint's measures."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from ldm.checkpoint.diffusers_format import FIRST_STAGE, UNET
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config, plain
from ldm.data.images import save_image, to_images, to_tensor
from ldm.errors import UserError
from ldm.evaluation.statistics import bootstrap
from ldm.files import check_writable, replacing
from ldm.inference.auto_cfg import choose_scales, scale_grid
from ldm.inference.editor import ImageEditor
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import EditSettings, TextSettings
from ldm.models.autoencoder import load_first_stage
from ldm.models.build import config_for, load_model
from ldm.models.export import published
from ldm.spriteworld.experiments.curves import curves
from ldm.spriteworld.judging import editor as world
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging.recogniser import accuracy, load_recogniser, save_recogniser, train_recognisers
from ldm.spriteworld.weights.edited_latents import write_edited_latents
from ldm.spriteworld.weights.latent_basis import follow, whiten, widen
from ldm.spriteworld.weights.net2wider import net2wider
from ldm.spriteworld.world.dataset import SpritePictures
from ldm.spriteworld.world.grids import grid
from ldm.spriteworld.world.scene import ANIMALS, PLACES, STYLES, SUBJECTS, draw, random_scene, subject_scene
from ldm.spriteworld.world.sentences import KINDS


def run(args: Namespace, data: Path) -> Any:
    """Do what ``scripts/spriteworld.py`` was asked for (``args.what`` and its options); return what it prints.

    data: the folder of the shipped weights, photos and pictures.
    """

    def compared() -> str:
        from ldm.spriteworld.experiments.subject import compare_subject

        return compare_subject(args.ckpt, args.run[0], args.subject, data, args.scenes, args.seed, args.output)

    jobs = {
        "sheet": lambda: world_sheet(args.output),
        "measure": lambda: measure_checkpoint(args.ckpt, data, args.scenes, args.seed, args.output),
        "calibrate": lambda: calibrate(args.ckpt, data, args.scenes, args.seed, args.output),
        "photos": lambda: "\n".join(map(str, all_photos(data))),
        "recogniser": lambda: json.dumps(make_recognisers(data, args.steps), indent=2),
        "latents": lambda: write_edited_latents(args.ckpt, args.output, args.scenes, args.seed, args.pictures),
        "scale": lambda: f"{latent_scale(args.ckpt):.5f}",
        "widen": lambda: widen_first_stage(args.ckpt, args.output, args.channels, args.features),
        "whiten": lambda: whiten_first_stage(args.ckpt, args.output, args.power),
        "follow": lambda: follow_first_stage(args.ckpt, args.first_stage, args.output),
        "without-picture": lambda: editor_without_picture(args.ckpt, args.output),
        "subject": compared,
        "curves": lambda: draw_curves(args.run, args.output),
        "auto-cfg": lambda: measure_auto_cfg(args.ckpt, data, args.scenes, args.seed),
    }
    return jobs[args.what]()


def world_sheet(path: Path) -> Path:
    """Write a sheet of the world: every animal and subject in every place, then the styles; return its path."""
    columns: list[list[Any]] = []
    makers: list[tuple[str, Callable]] = [(a, lambda rng, a=a, **f: random_scene(rng, animal=a, **f)) for a in ANIMALS]
    makers += [(s, lambda rng, s=s, **f: subject_scene(rng, s, **f)) for s in SUBJECTS]
    for k, (_, make) in enumerate(makers):
        column = [draw(make(np.random.default_rng([3, k, i]), place=p, style="day")) for i, p in enumerate(PLACES)]
        column += [draw(make(np.random.default_rng([4, k, i]), style=s)) for i, s in enumerate(STYLES[1:])]
        columns.append(column)
    save_image(grid(columns), path)
    return path


def draw_curves(runs: list[Path], path: Path) -> Path:
    """Write the loss curves of runs as one picture; return its path."""
    save_image(curves(runs), path)
    return path


def all_photos(data: Path) -> list[Path]:
    """Write every subject's twelve photos into ``data/subjects/<name>/`` and pictures of every class into
    ``data/pictures/<class>/``; return their paths."""
    paths = [path for name in SUBJECTS for path in world.write_photos(data / "subjects" / name, name)]
    return paths + [path for animal in ANIMALS for path in world.write_pictures(data / "pictures" / animal, animal)]


def make_recognisers(data: Path, steps: int) -> dict[str, dict[str, float]]:
    """Train and ship the recogniser and its colour-blind twin; return their accuracies on unseen renders.

    Where the first stage is there, half of what they learn from is seen through it.
    """
    stage = data / "first-stage.safetensors"
    reconstruct = reconstruction_of(stage) if stage.is_file() else None
    accuracies = {}
    with tqdm(total=steps, desc="recognisers", disable=None) as bar:
        models = train_recognisers(steps, reconstruct=reconstruct, progress=lambda: bar.update(1))
    for name, model in zip(("recogniser", "recogniser-grey"), models, strict=True):
        accuracies[name] = accuracy(model)
        if reconstruct is not None:
            accuracies[name] |= {
                f"{k} (through the first stage)": v for k, v in accuracy(model, through=reconstruct).items()
            }
        save_recogniser(model, data / f"{name}.safetensors", accuracies[name])
    return accuracies


def first_stage_of(path: Path) -> Any:
    """Return the first stage inside a checkpoint of ours. Raises ValueError if it carries no config."""
    node = config_for(read_checkpoint(path))["model"]
    node = node["params"].get("first_stage_config", node)
    stage = instantiate_from_config(node).eval()
    load_first_stage(stage, str(path))
    return stage


def reconstruction_of(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the first stage inside a checkpoint, there and back, as a function of pictures in [-1, 1]."""
    stage = first_stage_of(path)

    @torch.no_grad()
    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        return stage(x)

    return reconstruct


@torch.no_grad()
def latent_scale(path: Path, n: int = 400) -> float:
    """Return a first stage's scale factor: one over the standard deviation of its latents over n fresh scenes."""
    stage = first_stage_of(path)
    scenes = [random_scene(np.random.default_rng([9, i])) for i in range(n)]
    moments = [stage.encode(part).mean for part in world.pictures(scenes).split(50)]
    return 1 / torch.cat(moments).std().item()


def widen_first_stage(
    ckpt: Path, output: Path, channels: int | None = None, features: Sequence[int] | None = None
) -> Path:
    """Write a first stage with more latent channels (see ``latent_basis``) or with more features at each size, largest
    first (see ``net2wider``), that makes the same pictures: weights to train on from. Returns its path. Raises
    ValueError for a number that is not above its own, or numbers of features that are no multiples of its own."""
    checkpoint, stage = read_checkpoint(ckpt), first_stage_of(ckpt)
    config = config_for(checkpoint)
    if channels is not None:
        OmegaConf.update(config, "model.params.embed_dim", channels)
        OmegaConf.update(config, "model.params.ddconfig.z_channels", channels)
    if features is not None:
        own = config["model"]["params"]["ddconfig"]
        now = [own["ch"] * factor for factor in own["ch_mult"]]
        if len(features) != len(now) or any(new < old or new % old for new, old in zip(features, now, strict=True)):
            raise UserError(f"the first stage has {now} features; as many multiples of them are expected")
        ch = math.gcd(*features)
        OmegaConf.update(config, "model.params.ddconfig.ch", ch)
        OmegaConf.update(config, "model.params.ddconfig.ch_mult", [new // ch for new in features])
    torch.manual_seed(0)
    wider = instantiate_from_config(config["model"]).eval()
    if features is None:
        widen(stage, wider)
    else:
        net2wider(stage, wider)
    check_writable(output)
    _save_first_stage(wider, output, {**checkpoint.metadata, "config": OmegaConf.to_container(config)})
    return output


def whiten_first_stage(ckpt: Path, output: Path, power: float, n: int = 2000) -> Path:
    """Write a first stage with uncorrelated latents over n fresh pictures, see ``latent_basis``; return its path."""
    checkpoint, stage = read_checkpoint(ckpt), first_stage_of(ckpt)
    check_writable(output)
    whiten(stage, _varied(n), power)
    _save_first_stage(stage, output, checkpoint.metadata)
    return output


def _save_first_stage(stage: Any, path: Path, metadata: dict[str, Any]) -> None:
    state = {f"{FIRST_STAGE}{name}": tensor.half() for name, tensor in stage.state_dict().items()}
    save_checkpoint(path, state, metadata)


def follow_first_stage(ckpt: Path, first_stage: Path, output: Path, n: int = 2000) -> str:
    """Write a diffusion model rewritten for another first stage's latents, fitted over n fresh pictures: weights to
    train on from. Returns a line on how well the latents explain each other. Raises ValueError for what does not fit.
    """
    checkpoint = read_checkpoint(ckpt)
    config = config_for(checkpoint)
    model = load_model(checkpoint)
    check_writable(output)
    scale = round(latent_scale(first_stage), 5)
    stage = config_for(read_checkpoint(first_stage))["model"]
    known, kept = follow(model, first_stage_of(first_stage), scale, _varied(n))
    OmegaConf.update(config, "model.params.scale_factor", scale)
    stage = stage["params"].get("first_stage_config", stage)
    OmegaConf.update(config, "model.params.first_stage_config", stage, merge=False)
    for side in ("in_channels", "out_channels"):
        OmegaConf.update(config, f"model.params.unet_config.params.{side}", getattr(model.model.diffusion_model, side))
    described = {"config": plain(config)}
    save_checkpoint(output, published(model), {**checkpoint.metadata, **described})
    return f"{output}: {known:.1%} of the old latents' variance is in the new ones, {kept:.1%} of the new in the old"


def editor_without_picture(ckpt: Path, output: Path) -> Path:
    """Write an editor's network without its channels for the input picture: weights to train text to image from. It
    computes what the editor does where the picture is dropped. Returns its path. Raises ValueError for no editor."""
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


def _varied(n: int) -> torch.Tensor:
    """Return n pictures of the world, half of them in any coat."""
    drawn = SpritePictures(n, seed=10)
    return torch.stack([drawn[i]["edited"] for i in range(n)])


def measure_checkpoint(ckpt: Path, data: Path, n: int, seed: int, output: Path | None) -> str:
    """Return a checkpoint's measures as Markdown; with ``output`` also write them there, and a sheet of what it makes.

    ckpt: an editor, a text-to-image model, or a first stage alone.
    """
    checkpoint = read_checkpoint(ckpt)
    if output is not None:
        check_writable(output / "measures.md")
    first, last = (checkpoint.tensors.get(f"{UNET}{name}.weight") for name in ("input_blocks.0.0", "out.2"))
    # scenes apart from the edits' own: with the usual seed 1 those that the shipped figures were measured on
    results = {"first stage": world.first_stage_figures(reconstruction_of(ckpt), n, seed + 1)}
    sheet = None
    if first is not None and last is not None:
        judges = [load_recogniser(data / f"{name}.safetensors") for name in ("recogniser", "recogniser-grey")]
        measured = _measure_generator if first.shape[1] == last.shape[0] else _measure_editor
        more, sheet = measured(checkpoint, judges, n, seed)
        results |= more
    text = world.table(results)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        with replacing(output / "measures.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        if sheet is not None:
            save_image(sheet(), output / "edits.png" if measured is _measure_editor else output / "pictures.png")
    return text


def calibrate(first_stage: Path, data: Path, n: int, seed: int, output: Path | None) -> str:
    """Return as Markdown what the measures say of true answers, of those through a first stage, of copies of the input
    and of noise; with ``output`` also write it there."""
    if output is not None:
        check_writable(output)
    judges = [load_recogniser(data / f"{name}.safetensors") for name in ("recogniser", "recogniser-grey")]
    text = world.calibration_table(world.calibration(reconstruction_of(first_stage), *judges, n=n, seed=seed))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return text


def _measure_editor(checkpoint: Checkpoint, judges: list[Any], n: int, seed: int) -> tuple[dict[str, Any], Callable]:
    editor = ImageEditor.from_checkpoint(checkpoint, device="auto", precision="auto")
    edit = world.editing(editor, EditSettings.of_checkpoint(checkpoint.metadata))
    results = world.measure(edit, *judges, n=n, seed=seed)
    results |= world.reworded_figures(edit, *judges, n=n, seed=seed)
    results |= world.worn_figures(edit, n=n, seed=seed)
    return results, lambda: world.edit_sheet(edit, seed=seed)


def _measure_generator(
    checkpoint: Checkpoint, judges: list[Any], n: int, seed: int, batch_size: int = 50
) -> tuple[dict[str, Any], Callable]:
    generator = ImageGenerator.from_checkpoint(checkpoint, device="auto", precision="auto")
    settings = TextSettings.of_checkpoint(checkpoint.metadata)
    scenes, texts = world.draw_captions(n, seed)
    made = []
    for i in range(0, n, batch_size):
        made += generator.generate(texts[i : i + batch_size], settings, [i])
    columns = [made[i::10] for i in range(min(n, 10))]
    return {"text to image": world.text_figures(to_tensor(made), scenes, *judges)}, lambda: grid(columns)


def measure_auto_cfg(ckpt: Path, data: Path, scenes: int, seed: int) -> str:
    """Return a Markdown table of auto-cfg against the checkpoint's own scales: fresh scenes of every kind of edit, the
    same seeds; means, and the paired difference with its 95 % interval."""
    checkpoint = read_checkpoint(ckpt)
    editor = ImageEditor.from_checkpoint(checkpoint)
    settings = EditSettings.of_checkpoint(checkpoint.metadata)
    recogniser = load_recogniser(data / "recogniser.safetensors")
    grid = scale_grid(settings)
    lines = ["| edits | measure | fixed scales | auto-cfg | difference | n |", "|---|---|---|---|---|---|"]
    totals: list[torch.Tensor] = []
    for kind in KINDS:
        edits = world.draw_edits(scenes, seed, kind)
        before, truth = (world.pictures([getattr(e, side) for e in edits]) for side in ("source", "target"))
        texts = [e.instruction for e in edits]
        fixed = world.editing(editor, settings)(before, texts)
        chosen = torch.cat(
            [
                to_tensor(choose_scales(editor, photo, text, settings, i, grid)[0].picture)
                for i, (photo, text) in enumerate(zip(to_images(before), texts, strict=True))
            ]
        )
        pair = [m.exact_psnr(x, truth) for x in (fixed, chosen)]
        totals.append(torch.stack(pair))
        lines.append(_compared(kind, "exact (dB)", *pair))
        if kind == "class":
            wanted = [e.target.animal for e in edits]
            right = [
                torch.tensor([a == b for a, b in zip(recogniser.animals(x), wanted, strict=True)]).float()
                for x in (fixed, chosen)
            ]
            lines.append(_compared(kind, "recognised", *right))
    lines.append(_compared("all", "exact (dB)", *torch.cat(totals, dim=1)))
    return "\n".join(lines)


def _compared(kind: str, name: str, fixed: torch.Tensor, chosen: torch.Tensor) -> str:
    change = bootstrap(chosen - fixed)
    span = f" [{change.low:+.2f}, {change.high:+.2f}]" if change.known else ""
    return f"| {kind} | {name} | {fixed.mean():.2f} | {chosen.mean():.2f} | {change.mean:+.2f}{span} | {change.n} |"
