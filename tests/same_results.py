"""Hold two states of this project against each other: the same command lines, file by file, bit for bit.

    python tests/same_results.py run PROJECT OUT [--old-runs OUT_OF_ANOTHER]
    python tests/same_results.py compare OUT_A OUT_B

``run`` calls fixed command lines of the checkout PROJECT (with its own .venv) in the folder OUT. ``compare`` names
every file that is not there in both, or differs: pictures by pixels and text, weights by tensors and metadata,
tables without their times. With ``--old-runs`` the training runs that another state of the project left are gone on
with, too.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

WORLD = "data/spriteworld"
SAMPLERS = ("euler_a", "euler", "heun", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
SWAP = "replace the wolf with a dog"
QUIET = [
    "training.precision=fp32",
    "training.save_every=10",
    "training.sheet_every=10",
    "training.log_every=5",
]


class Runner:
    """Calls a project's scripts in one folder, one after the other, and keeps what they print."""

    def __init__(self, project: Path, out: Path):
        self.project, self.out = project.resolve(), out.resolve()
        self.python = self.project / ".venv" / "bin" / "python"
        self.out.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, script: str, *args: object, expected: int = 0) -> None:
        print(name, flush=True)
        command = [self.python, self.project / "scripts" / script, *args]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.project)}
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.out,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        (self.out / f"{name}.out").write_text(done.stdout)
        (self.out / f"{name}.err").write_text(done.stderr)
        if done.returncode != expected:
            sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")

    def newest(self, folder: str, name: str) -> Path:
        return sorted((self.out / folder).glob(f"*_{name}"))[-1]


def run(project: Path, out: Path, old: Path | None) -> None:
    """Call every command line."""
    call = Runner(project, out)
    world = call.project / WORLD
    wolf, exact = world / "pictures" / "wolf" / "01.png", ["--precision", "fp32", "--seed", "7"]
    for sampler in SAMPLERS:
        call(
            f"edit-{sampler}",
            "edit_cli.py",
            "--input",
            wolf,
            "--edit",
            SWAP,
            "--sampler",
            sampler,
            "--steps",
            6,
            "--output",
            f"edits/{sampler}.png",
            *exact,
        )
    call(
        "edit-folder",
        "edit_cli.py",
        "--input",
        world / "pictures" / "cat",
        "--edit",
        "make it night",
        "make the cat red",
        "--num-samples",
        2,
        "--batch-size",
        5,
        "--steps",
        4,
        "--output",
        "edits/many",
        *exact,
    )
    mask(out / "mask.png")
    call(
        "edit-mask",
        "edit_cli.py",
        "--input",
        wolf,
        "--edit",
        SWAP,
        "--mask",
        out.resolve() / "mask.png",
        "--steps",
        6,
        "--output",
        "edits/mask.png",
        *exact,
    )
    call(
        "edit-sweep",
        "edit_cli.py",
        "--input",
        wolf,
        "--edit",
        SWAP,
        "--sweep-cfg-text",
        "1,1.5",
        "--sweep-cfg-image",
        "1,1.2",
        "--steps",
        4,
        "--output",
        "edits/sweep.png",
        *exact,
    )
    call(
        "edit-auto",
        "edit_cli.py",
        "--input",
        wolf,
        "--edit",
        SWAP,
        "--auto-cfg",
        "--steps",
        12,
        "--output",
        "edits/auto.png",
        *exact,
    )
    call(
        "edit-upstream",
        "edit_cli.py",
        "--input",
        wolf,
        "--edit",
        SWAP,
        "--keep-size",
        "false",
        "--resolution",
        128,
        "--steps",
        4,
        "--negative",
        "a cat",
        "--guidance-interval",
        "0.1,8",
        "--output",
        "edits/upstream.png",
        *exact,
    )
    call("show-recipe", "edit_cli.py", "--show-recipe", "edits/upstream.png")
    pairs = [
        "--photos",
        world / "subjects" / "biscuit" / "01.png",
        world / "subjects" / "biscuit" / "02.png",
        world / "subjects" / "biscuit" / "03.png",
        "--class-word",
        "dog",
        "--source-words",
        "wolf",
        "rabbit",
        "--source-edits",
        "remove the collar",
        "--reg-photos",
        f"wolf={world / 'pictures' / 'wolf'}",
        "--num-reg",
        6,
        "--subject-edits",
        "make the {word} red",
        "--num-subject-edits",
        2,
        "--reg-edits",
        "make it night",
        "--num-reg-edits",
        2,
        "--ckpt",
        world / "editor.safetensors",
        "--config",
        call.project / "configs" / "spriteworld" / "pairs.yaml",
        "--steps",
        6,
        "--batch-size",
        4,
        "--precision",
        "fp32",
        "--output",
        "pairs",
    ]
    call("generate", "generate_dataset.py", *pairs)
    call("generate-again", "generate_dataset.py", *pairs)
    call("check-dataset", "check_dataset.py", "pairs", "--size", 64)
    learn = [
        "--data",
        "pairs",
        "--logs",
        "logs",
        *QUIET,
        "training.drift_every=10",
        "training.validate_every=10",
        "data.params.train.params.held_out=0.0",
    ]
    call(
        "train-20",
        "train.py",
        *learn,
        "training.max_steps=20",
        "training.keep_at=[10,20]",
        "--name",
        "twenty",
    )
    call("train-10", "train.py", *learn, "training.max_steps=10", "training.keep_at=[10]", "--name", "ten")
    ten = call.newest("logs", "ten")
    goes_on(ten, 20)
    call("resume", "train.py", "--resume", ten)
    call(
        "train-flat",
        "train.py",
        *learn,
        "training.max_steps=6",
        "training.keep_at=[6]",
        "--name",
        "flat",
        "model.params.reg_weight=0.5",
        "model.params.dropout_text=0.2",
        "model.params.offset_noise=0.1",
        "model.params.change_weight=4",
        "model.params.dream_detail_preservation=1",
    )
    twenty = call.newest("logs", "twenty")
    swap = "replace the wolf with a sks dog"
    call(
        "edit-run",
        "edit_cli.py",
        "--ckpt",
        twenty,
        "--input",
        wolf,
        "--edit",
        swap,
        "--output",
        "edits/run.png",
        *exact,
    )
    for place in ("exported.safetensors", "exported"):
        shutil.rmtree(out / place, ignore_errors=True)
        (out / place).unlink(missing_ok=True)
    call("export-file", "export.py", twenty, "exported.safetensors")
    call("export-folder", "export.py", world / "text-to-image.safetensors", "exported")
    call("inspect", "inspect_checkpoint.py", world / "editor.safetensors", "--keys")
    call(
        "txt2img",
        "txt2img.py",
        "--prompt",
        "a dog on the beach",
        "a cat",
        "--num-samples",
        2,
        "--precision",
        "fp32",
        "--output",
        "text",
    )
    call(
        "class-images",
        "txt2img.py",
        "--prompt",
        "a dog",
        "--class-images",
        5,
        "--precision",
        "fp32",
        "--output",
        "class",
    )
    call(
        "dreambooth",
        "train.py",
        call.project / "configs" / "spriteworld" / "dreambooth.yaml",
        "--logs",
        "logs",
        *QUIET,
        "dataset.class_images=class",
        f"dataset.instance={world / 'subjects' / 'biscuit'}",
        "training.max_steps=4",
        "training.keep_at=[4]",
        "training.sheet_every=4",
        "training.drift_every=4",
        "--name",
        "booth",
    )
    for name, length in (("instruct-pix2pix", 40), ("text-to-image", 40)):
        call(
            f"stage-{name}",
            "train.py",
            call.project / "configs" / "spriteworld" / f"{name}.yaml",
            "--logs",
            "logs",
            *QUIET,
            f"data.params.train.params.length={length}",
            "data.params.batch_size=6",
            "training.max_steps=60",
            "training.keep_at=[60]",
            "training.sheet_every=60",
            "--name",
            name,
        )
    call(
        "first-stage",
        "train.py",
        call.project / "configs" / "spriteworld" / "first-stage.yaml",
        "--logs",
        "logs",
        *QUIET,
        "data.params.train.params.length=40",
        "data.params.batch_size=4",
        "training.max_steps=52",
        "training.keep_at=[52]",
        "training.sheet_every=52",
        "--name",
        "first-stage",
    )
    call(
        "suite",
        "evaluate.py",
        call.project / "configs" / "evaluation" / "spriteworld.yaml",
        "--methods",
        f"instruct_pix2pix={world / 'editor.safetensors'}",
        "--precision",
        "fp32",
        "--output",
        "suite",
    )
    call("measure", "spriteworld.py", "measure", "--scenes", 12, "--output", "measures")
    if old is not None:
        for name in ("ten", "twenty"):
            source = sorted((old / "logs").glob(f"*_{name}"))[-1]
            copy = out / "old-runs" / name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            goes_on(copy, 24)
            call(f"old-{name}", "train.py", "--resume", copy)
            call(
                f"old-edit-{name}",
                "edit_cli.py",
                "--ckpt",
                copy,
                "--input",
                wolf,
                "--edit",
                swap,
                "--output",
                f"edits/old-{name}.png",
                *exact,
            )


def goes_on(run_folder: Path, steps: int) -> None:
    """Give a run that has ended more steps to do."""
    path = run_folder / "config.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"  max_steps: {steps}" if li.startswith("  max_steps:") else li for li in lines) + "\n")


def mask(path: Path) -> None:
    """Write a mask: the middle of a 64 x 64 picture."""
    from PIL import Image

    picture = Image.new("L", (64, 64))
    picture.paste(255, (16, 12, 52, 56))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def digest(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def of_tensors(tensors: dict) -> dict[str, str]:
    return {
        name: digest(str(t.dtype) + str(tuple(t.shape)) + t.cpu().numpy().tobytes().hex())
        for name, t in tensors.items()
    }


def flattened(node: object, path: str = "") -> dict[str, object]:
    """The leaves of nested containers by their path."""
    import torch

    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in flattened(value, f"{path}/{key}").items()}
    if isinstance(node, (list, tuple)):
        return {k: v for i, value in enumerate(node) for k, v in flattened(value, f"{path}/{i}").items()}
    if isinstance(node, torch.Tensor):
        return {path: digest(str(node.dtype) + node.cpu().float().numpy().tobytes().hex())}
    return {path: node if isinstance(node, (int, float, str, bool, type(None))) else str(type(node))}


def contents(path: Path) -> dict[str, object]:
    """What counts of a file, by name."""
    if path.suffix in (".png", ".jpg"):
        from PIL import Image

        with Image.open(path) as image:
            return {
                "pixels": digest(str(image.size) + image.convert("RGB").tobytes().hex()),
                **getattr(image, "text", {}),
            }
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = of_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return {
            **tensors,
            **flattened(json.loads(metadata.pop("instruct2dream", "{}")), "metadata"),
            **metadata,
        }
    if path.suffix in (".ckpt", ".pt"):
        import torch

        return flattened(torch.load(path, map_location="cpu", weights_only=False))
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return {f"{i}": {k: v for k, v in row.items() if k != "time"} for i, row in enumerate(csv.DictReader(file))}
    if path.suffix == ".json":
        return flattened(json.loads(path.read_text(encoding="utf-8")))
    return {"text": path.read_text(encoding="utf-8", errors="replace")}


def named(path: Path, out: Path) -> str:
    """A file's name without the time in a run's."""
    parts = [p.partition("_")[2] if p[:2] == "20" and "T" in p and "_" in p else p for p in path.relative_to(out).parts]
    return "/".join(parts)


def compare(a: Path, b: Path) -> int:
    """Print what differs; return the number of files that do."""
    left, right = ({named(p, out): p for p in sorted(out.rglob("*")) if p.is_file()} for out in (a, b))
    left, right = ({n: p for n, p in files.items() if counts(n)} for files in (left, right))
    unlike = 0
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            print(f"only in {b if name in right else a}: {name}")
            unlike += 1
            continue
        x, y = contents(left[name]), contents(right[name])
        keys = [k for k in {**x, **y} if x.get(k) != y.get(k)]
        if keys:
            unlike += 1
            print(
                f"{name}: {len(keys)} of {len({**x, **y})} differ, like {keys[0]}: "
                f"{str(x.get(keys[0]))[:150]!r} and {str(y.get(keys[0]))[:150]!r}"
            )
    print(f"{len(left.keys() | right.keys())} files, {unlike} unlike")
    return unlike


def counts(name: str) -> bool:
    """Whether a file is held against the other's: not what tells the time, or the messages."""
    return not name.endswith((".err", ".out", "report.html")) and "events.out" not in name and "hparams" not in name


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = p.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("project", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--old-runs", type=Path)
    two = verbs.add_parser("compare")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    args = p.parse_args()
    if args.verb == "run":
        run(args.project, args.out, args.old_runs)
        return 0
    return 1 if compare(args.a, args.b) else 0


if __name__ == "__main__":
    sys.exit(main())
