"""Make the pairs that teach an editor one subject: its photos edited in reverse, and regularization pairs."""

import argparse
import logging
from pathlib import Path

from ldm import cli
from ldm.project import CONFIGS, LOGS, SPRITEWORLD, shipped

SHIPPED = {
    "ckpt": SPRITEWORLD / "editor.safetensors",
    "config": CONFIGS / "spriteworld" / "pairs.yaml",
    "photos": [str(SPRITEWORLD / "subjects" / "biscuit")],
    "class_word": "dog",
    "source_words": ["wolf"],
    "source_edits": ["remove the collar"],
    "reg_photos": [f"wolf={SPRITEWORLD / 'pictures' / 'wolf'}"],
    "output": LOGS / "pairs" / "biscuit",
}
LISTS = ("photos", "source_words", "source_edits", "reg_photos", "class_photos", "reg_edits", "subject_edits")
NUMBERS = ("num_reg", "num_reg_edits", "num_subject_edits", "per_photo", "seed", "batch_size")


def parser() -> cli.Parser:
    p = cli.Parser(prog="generate_dataset.py", description=__doc__)
    p.add_argument("--photos", nargs="+", help="the subject's photos: files, folders or globs")
    p.add_argument("--class-word", help="what the subject is, like dog")
    p.add_argument("--source-words", nargs="+", help="what it is to replace, like wolf; several take turns")
    p.add_argument("--source-edits", nargs="+", metavar="TEXT", help="edits of the sources made: 'remove the collar'")
    p.add_argument("--output", help="folder for training/, regularization/, manifest.json and contact sheets")
    p.add_argument("--ckpt", help="InstructPix2Pix: .ckpt, .safetensors or a diffusers folder")
    p.add_argument("--reg-photos", nargs="+", metavar="WORD=DIR", help="pictures of each source class")
    p.add_argument("--class-photos", nargs="+", help="of the class, for words without --reg-photos; default: --photos")
    p.add_argument("--num-reg", type=int, default=200, help="regularization pairs (default 200)")
    p.add_argument("--reg-edits", nargs="+", metavar="TEXT", help="pairs of other edits, like 'make the {word} red'")
    p.add_argument("--num-reg-edits", type=int, help="pairs of all those together (default 10 of each)")
    p.add_argument("--subject-edits", nargs="+", metavar="TEXT", help="edits of the subject: 'make the {word} red'")
    p.add_argument("--num-subject-edits", type=int, help="pairs of all those together (default 10 of each)")
    p.add_argument("--per-photo", type=int, default=1, help="instance pairs per photo and source word (default 1)")
    p.add_argument("--config", help="YAML with the edit's settings and the gates' thresholds")
    p.add_argument("--cfg-text", type=float, help="text guidance scale")
    p.add_argument("--cfg-image", type=float, help="image guidance scale")
    p.add_argument("--steps", type=int, help="sampling steps; default: the config's")
    p.add_argument("--sampler", help="default: the config's")
    p.add_argument("--resolution", type=int, help="working size of the longer side")
    p.add_argument("--clip", metavar="FOLDER", help="a CLIP, for two more gates: like its input, and what was asked")
    p.add_argument("--seed", type=int, default=0, help="of the first pair (default 0)")
    p.add_argument("--batch-size", type=int, default=1, help="pictures edited at once (default 1)")
    p.add_argument("--vae-ckpt", help="take the first stage from this file instead")
    p.add_argument("--weights", default="auto", choices=("auto", "ema", "raw"), help="auto: EMA where the file has it")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_args()
    if args.photos is None and args.ckpt is None:
        shipped("editor.safetensors")
        for name, value in SHIPPED.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    missing = [name for name in ("photos", "class_word", "source_words", "output", "ckpt") if not getattr(args, name)]
    if missing:
        p.error(f"--{missing[0].replace('_', '-')} is needed (or no --photos and no --ckpt: the sprite world's)")
    return args


def main() -> int:
    args = parse()
    from ldm.dataset_generation.generate import make_dataset
    from ldm.dataset_generation.request import PairRequest
    from ldm.models.build import ModelSource

    chosen = {"text_scale": args.cfg_text, "image_scale": args.cfg_image, "steps": args.steps}
    chosen |= {"sampler": args.sampler, "resolution": args.resolution}
    request = PairRequest(
        source=ModelSource(args.ckpt, None, args.vae_ckpt, args.weights, args.device, args.precision),
        class_word=args.class_word,
        output=Path(args.output),
        config=Path(args.config or CONFIGS / "stable-diffusion" / "v1-pairs.yaml"),
        clip=args.clip,
        settings={name: value for name, value in chosen.items() if value is not None},
        **{name: tuple(getattr(args, name) or ()) for name in LISTS},
        **{name: getattr(args, name) for name in NUMBERS},
    )
    folder, manifest = make_dataset(request)
    if manifest is None:
        logging.info("this process' share is done; the manifest is written when the others are, too")
    print(folder)
    return 0


if __name__ == "__main__":
    cli.run(main, "generate_dataset.py")
