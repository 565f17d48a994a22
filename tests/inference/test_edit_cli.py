"""scripts/edit_cli.py and edit.sh as a user meets them: results, exit codes, one clear line for each mistake."""

import json
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, PngImagePlugin

from ldm import cli
from ldm.checkpoint.save import save_checkpoint
from ldm.errors import UserError
from ldm.inference.recipe import KEY, read_recipe
from tests.conftest import build_tiny, tiny_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "edit_cli.py"
SMALL = ["--steps", "2", "--resolution", "64", "--device", "cpu", "--precision", "fp32", "--seed", "3"]


def photo(path: Path, width: int = 50, height: int = 37, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [np.sin(x / 9 + seed), np.cos(y / 7 + 2 * seed), np.sin((x + y) / 11 + 3 * seed)]
    Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def edit(monkeypatch, capsys, tmp_path, tiny_ckpt):
    """Run the command line in this process: (exit code, printed, said on stderr)."""

    def run(*arguments: object, ckpt: object = tiny_ckpt, small: bool = True) -> tuple[int, str, str]:
        chosen = ["--ckpt", ckpt] if ckpt is not None else []
        words = [str(a) for a in (*chosen, *(SMALL if small else []), *arguments)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        levels = {
            name: logger.level for name, logger in logging.root.manager.loggerDict.items() if hasattr(logger, "level")
        }
        try:
            with warnings.catch_warnings(), pytest.raises(SystemExit) as left:
                runpy.run_path(str(SCRIPT), run_name="__main__")
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
        out, err = capsys.readouterr()
        assert not list(tmp_path.rglob("*.tmp")), "something half-written was left"
        return left.value.code, out, err

    return run


def failed(result: tuple[int, str, str]) -> str:
    """Check that a command failed as it should; return its one line."""
    code, out, err = result
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 2, (code, err)
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == lines[0], err
    assert "usage:" not in err, "the usage would bury the line"
    assert out == ""
    return lines[0]


# What works


def test_one_photo_one_sentence(edit, tmp_path):
    source = photo(tmp_path / "a.png")
    code, out, err = edit("--input", source, "--edit", "make it night", "--output", tmp_path / "new" / "x.png")
    assert (code, out.split(), err) == (0, [str(tmp_path / "new" / "x.png")], "")
    assert pixels(tmp_path / "new" / "x.png").shape == (37, 50, 3)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.png"]


def test_folders_several_edits_and_samples(edit, tmp_path):
    for name in ("a.png", "b.jpg"):
        photo(tmp_path / "in" / name)
    code, out, _ = edit(
        *("--input", tmp_path / "in", "--edit", "make it night", "add snow", "--num-samples", 2),
        *("--batch-size", 3, "--output", tmp_path / "out", "--steps", 1),
    )
    assert code == 0
    expected = {f"{p}-{e}-{s}.png" for p in "ab" for e in ("make-it-night", "add-snow") for s in (3, 4)}
    assert {p.name for p in (tmp_path / "out").iterdir()} == expected
    assert {Path(line).name for line in out.split()} == expected


def test_keep_size_false_gives_the_working_size(edit, tmp_path):
    source = photo(tmp_path / "a.png", 90, 50)
    assert edit("--input", source, "--edit", "go", "--output", tmp_path / "x.png", "--keep-size", "false")[0] == 0
    assert pixels(tmp_path / "x.png").shape == (64, 96, 3)  # the short side up to the grid of 32, the long side down


def test_mask_and_sweep(edit, tmp_path):
    source, mask = photo(tmp_path / "a.png"), Image.new("L", (50, 37), 0)
    mask.paste(255, (10, 10, 40, 30))
    mask.save(tmp_path / "mask.png")
    common = ("--input", source, "--edit", "go", "--mask", tmp_path / "mask.png", "--steps", 1)
    assert edit(*common, "--output", tmp_path / "x.png")[0] == 0
    outside = np.asarray(mask) == 0
    assert np.array_equal(pixels(tmp_path / "x.png")[outside], pixels(source)[outside])
    assert not np.array_equal(pixels(tmp_path / "x.png"), pixels(source))
    sweep = ("--sweep-cfg-text", "5,7.5", "--sweep-cfg-image", "1.2,1.5,1.8")
    code, out, _ = edit(*common, *sweep, "--output", tmp_path / "sheet.png")
    assert (code, out.split()) == (0, [str(tmp_path / "sheet.png")])
    assert pixels(tmp_path / "sheet.png").shape[1] > 4 * 256


def test_what_the_checkpoint_recommends_holds_until_a_flag_says_otherwise(edit, tmp_path, tiny_model):
    own = {"spacing": "karras", "negative": "grey", "keep_size": False}
    said = {"config": tiny_config(), "edit_defaults": own}
    save_checkpoint(tmp_path / "own.safetensors", tiny_model.state_dict(), said)
    common = ("--input", photo(tmp_path / "a.png", 90, 50), "--edit", "go", "--output")
    assert edit(*common, tmp_path / "x.png", ckpt=tmp_path / "own.safetensors")[0] == 0
    recipe = read_recipe(tmp_path / "x.png")
    assert {name: recipe[name] for name in own} == own
    assert pixels(tmp_path / "x.png").shape == (64, 96, 3)
    chosen = ("--spacing", "uniform", "--negative", "", "--keep-size", "true")
    assert edit(*common, tmp_path / "y.png", *chosen, ckpt=tmp_path / "own.safetensors")[0] == 0
    assert edit(*common, tmp_path / "z.png")[0] == 0  # nothing recommended, nothing chosen
    for name in ("y.png", "z.png"):
        recipe = read_recipe(tmp_path / name)
        assert [recipe[name] for name in own] == ["uniform", "", True]
        assert pixels(tmp_path / name).shape == (50, 90, 3)


def flags(recipe: dict) -> list[str]:
    """The command line that a recipe stands for."""
    low_high = recipe["guidance_interval"]
    pairs = {
        "--edit": recipe["instruction"],
        "--seed": recipe["seed"],
        "--cfg-text": recipe["text_scale"],
        "--cfg-image": recipe["image_scale"],
        "--sampler": recipe["sampler"],
        "--spacing": recipe["spacing"],
        "--steps": recipe["steps"],
        "--resolution": recipe["resolution"],
        "--precision": recipe["precision"],
        "--weights": recipe["weights"],
        "--negative": recipe["negative"],
        "--keep-size": str(recipe["keep_size"]).lower(),
        **({"--guidance-interval": f"{low_high[0]},{low_high[1]}"} if low_high else {}),
    }
    return [str(word) for pair in pairs.items() for word in pair]


def test_the_recipe_run_again_gives_the_same_picture(edit, tmp_path):
    source = photo(tmp_path / "a.png")
    chosen = ("--sampler", "heun", "--cfg-text", 4, "--cfg-image", 1.25, "--guidance-interval", "0.1,9")
    code, _, _ = edit(
        *("--input", source, "--edit", "mach es grün", "--output", tmp_path / "x.png", "--steps", 3),
        *("--resolution", 64, "--device", "cpu", "--precision", "auto", "--negative", "grey", *chosen),
        small=False,
    )  # no --seed: one is drawn, and kept in the recipe
    assert code == 0
    code, out, _ = edit("--show-recipe", tmp_path / "x.png", ckpt=None, small=False)
    recipe = json.loads(out)
    assert code == 0
    assert (recipe["instruction"], recipe["steps"], recipe["input"]) == ("mach es grün", 3, "a.png")
    assert recipe["precision"] in ("fp32", "bf16")
    again = (*flags(recipe), "--input", source, "--device", "cpu", "--output", tmp_path / "y.png")
    assert edit(*again, small=False)[0] == 0
    assert np.array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "y.png"))
    other = [word if word != str(recipe["seed"]) else str(recipe["seed"] + 1) for word in map(str, again)]
    assert edit(*other, small=False)[0] == 0
    assert not np.array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "y.png"))


def test_an_instruction_of_200_words_works_with_a_warning(edit, tmp_path, caplog):
    words = " ".join(f"word{i}" for i in range(200))
    with caplog.at_level(logging.WARNING):
        code, _, _ = edit("--input", photo(tmp_path / "a.png"), "--edit", words, "--output", tmp_path / "out")
    assert code == 0
    assert sum("only its first 75" in record.getMessage() for record in caplog.records) == 1
    (result,) = (tmp_path / "out").iterdir()
    assert len(result.name) < 100


def test_the_only_photo_may_be_any_picture(edit, tmp_path):
    """1 x 1, animated, palette, CMYK, 16 bit: each gives a result of its own size."""
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    Image.new("P", (40, 20), 3).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("P", (40, 20), 7)]
    )
    Image.new("CMYK", (20, 40), (10, 20, 30, 40)).save(tmp_path / "print.jpg")
    Image.fromarray(np.full((30, 30), 30000, np.uint16)).save(tmp_path / "deep.png")
    code, out, _ = edit("--input", tmp_path / "*.*", "--edit", "go", "--output", tmp_path / "out", "--steps", 1)
    assert code == 0
    sizes = {Path(p).name.split("-")[0]: Image.open(p).size for p in out.split()}
    assert sizes == {"dot": (1, 1), "moving": (40, 20), "print": (20, 40), "deep": (30, 30)}


def test_a_broken_picture_among_good_ones(edit, tmp_path, caplog):
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "c.png")
    (tmp_path / "in" / "b.png").write_bytes(b"GIF89a")
    with caplog.at_level(logging.WARNING):
        code, out, err = edit("--input", tmp_path / "in", "--edit", "go", "--output", tmp_path / "out")
    assert code == 2
    assert {Path(p).name for p in out.split()} == {"a-go-3.png", "c-go-3.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a-go-3.png", "c-go-3.png"}
    said = [record.getMessage() for record in caplog.records if "b.png" in record.getMessage()]
    assert len(said) == 1
    assert "Traceback" not in err + caplog.text


# What is refused, before anything is loaded


def bad_inputs(folder: Path) -> dict[str, tuple[list, str]]:
    source = photo(folder / "a.png")
    photo(folder / "in" / "b.png")
    Image.new("RGB", (30000, 40)).save(folder / "strip.png")
    Image.new("L", (50, 37), 0).save(folder / "black.png")
    Image.new("L", (20, 20), 255).save(folder / "small.png")
    (folder / "text.png").write_text("no picture")
    (folder / "zero.png").write_bytes(b"")
    (folder / "hollow").mkdir()
    deep = PngImagePlugin.PngInfo()
    deep.add_itxt(KEY, "[" * 100_000)
    Image.new("RGB", (8, 8)).save(folder / "deep.png", pnginfo=deep)
    out = ["--output", folder / "out"]
    one = ["--input", source, "--edit", "go"]
    return {
        "no edit": (["--input", source, *out], "--edit"),
        "no input": (["--edit", "go", *out], "--input"),
        "empty instruction": (["--input", source, "--edit", "", *out], "instruction is empty"),
        "absent input": (["--input", folder / "gone.png", "--edit", "go", *out], "gone.png"),
        "glob without a match": (["--input", folder / "*.webp", "--edit", "go", *out], "webp"),
        "hollow folder": (["--input", folder / "hollow", "--edit", "go", *out], "hollow"),
        "no steps": ([*one, *out, "--steps", 0], "steps is 0"),
        "steps without end": ([*one, *out, "--steps", 3 * 10**18], "1 to 10000 are possible"),
        "instruction of bytes": (["--input", source, "--edit", "go \udcff", *out], "no UTF-8 text"),
        "unknown sampler": ([*one, *out, "--sampler", "plms"], "plms"),
        "unknown spacing": ([*one, *out, "--spacing", "even"], "even"),
        "unknown precision": ([*one, *out, "--precision", "int8"], "int8"),
        "unknown device": ([*one, *out, "--device", "tpu"], "tpu"),
        "fp16 on the CPU": ([*one, *out, "--precision", "fp16"], "fp16"),
        "unknown weights": ([*one, *out, "--weights", "best"], "best"),
        "unknown flag": ([*one, *out, "--step", 3], "--step"),
        "resolution": ([*one, *out, "--resolution", 0], "resolution"),
        "words for a number": ([*one, *out, "--cfg-text", "high"], "high"),
        "no number": ([*one, *out, "--cfg-text", "nan"], "text_scale"),
        "keep-size": ([*one, *out, "--keep-size", "maybe"], "maybe"),
        "sweep": ([*one, *out, "--sweep-cfg-text", "5;7"], "5;7"),
        "interval of three": ([*one, *out, "--guidance-interval", "1,2,3"], "1,2,3"),
        "interval upside down": ([*one, *out, "--guidance-interval", "5,1"], "interval"),
        "negative seed": ([*one, *out, "--seed", -4], "seed"),
        "samples": ([*one, *out, "--num-samples", 0], "at least 1"),
        "several into one": ([*one, "--num-samples", 2, "--output", folder / "x.png"], "2 results"),
        "over the input": ([*one, "--output", source], "overwrite"),
        "over an input of a folder": (
            ["--input", folder / "in", "--edit", "go", "--output", folder / "in" / "b.png"],
            "overwrite",
        ),
        "not to be written": ([*one, "--output", folder / "text.png" / "x.png"], "cannot write"),
        "no picture's name": ([*one, "--output", folder / "x.docx"], ".png"),
        "an icon's name": ([*one, "--output", folder / "x.ico"], ".png"),
        "mask of another size": ([*one, *out, "--mask", folder / "small.png"], "20 x 20"),
        "black mask": ([*one, *out, "--mask", folder / "black.png"], "no light part"),
        "absent mask": ([*one, *out, "--mask", folder / "gone.png"], "gone.png"),
        "mask that is none": ([*one, *out, "--mask", folder / "text.png"], "text.png"),
        "text for a photo": (["--input", folder / "text.png", "--edit", "go", *out], "text.png"),
        "nothing for a photo": (["--input", folder / "zero.png", "--edit", "go", *out], "0 bytes"),
        "30,000 pixels wide": (["--input", folder / "strip.png", "--edit", "go", *out], "30000 x 40"),
        "absent config": ([*one, *out, "--config", folder / "gone.yaml"], "gone.yaml"),
        "config that is no YAML": ([*one, *out, "--config", source], "YAML"),
        "absent first stage": ([*one, *out, "--vae-ckpt", folder / "gone.safetensors"], "gone.safetensors"),
        "EMA that is not there": ([*one, *out, "--weights", "ema"], "EMA"),
        "recipe beside an edit": (["--show-recipe", source, *one], "--input has no effect beside it"),
        "recipe beside steps": (["--show-recipe", source, "--steps", "5"], "--steps has no effect beside it"),
        "far too large": ([*one, *out, "--resolution", 10_000_000], "resolution is 10000000"),
        "recipe of nothing": (["--show-recipe", folder / "gone.png"], "gone.png"),
        "recipe of a plain picture": (["--show-recipe", source], "no recipe"),
        "recipe of brackets": (["--show-recipe", folder / "deep.png"], "damaged"),
        "recipe of no picture": (["--show-recipe", folder / "text.png"], "text.png"),
    }


def names_of_bad_inputs() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return list(bad_inputs(Path(folder)))


@pytest.mark.parametrize("name", names_of_bad_inputs())
def test_bad_input_gives_one_line_and_exit_2(edit, tmp_path, name):
    arguments, said = bad_inputs(tmp_path)[name]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    alone = {"ckpt": None, "small": False} if "--show-recipe" in arguments else {}
    assert said in failed(edit(*arguments, **alone))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes"), 2),
        (UserError("two\nlines"), 2),
        (OSError(28, "No space left on device"), 2),
        (RuntimeError("a defect of ours"), None),
        (ValueError("a defect of ours"), None),
        (KeyError("a defect of ours"), None),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_a_defect_is_not_hidden(capsys, error, code):
    def main():
        raise error

    with pytest.raises(type(error) if code is None else SystemExit) as caught:
        cli.run(main, "x.py")
    if code is not None:
        assert caught.value.code == code
        assert capsys.readouterr().err.count("\n") == 1


def test_the_cause_of_a_one_line_error_is_shown_where_it_is_asked_for(capsys, monkeypatch):
    def main():
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise UserError("one line") from error

    monkeypatch.setattr(sys, "argv", ["x.py", "--traceback"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main, "x.py")
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("Traceback") == 2
    assert "KeyError: 'the cause'" in err
    assert err.endswith("x.py: error: one line\n")


def test_a_scale_beside_its_sweep_is_warned_of(edit, tmp_path):
    source = photo(tmp_path / "a.png")
    given = ("--cfg-text", 5, "--sweep-cfg-text", "1,2", "--steps", 1)
    code, _, _ = edit("--input", source, "--edit", "go", "--output", tmp_path / "x.png", *given)
    assert code == 0
    assert (tmp_path / "x.png").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(edit, tmp_path):
    result = edit(
        "--input", photo(tmp_path / "a.png"), "--edit", "go", "--output", tmp_path / "x.png", "--device", "cuda"
    )
    assert "GPU" in failed(result)


BAD_CHECKPOINTS = {
    "absent": (None, "x.ckpt"),
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
    "truncated": (b"PK\x03\x04" + b"\0" * 100, "truncated"),
    "words": (b"this is no checkpoint", "neither"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_give_one_line_and_exit_2(edit, tmp_path, name):
    content, said = BAD_CHECKPOINTS[name]
    if content is not None:
        (tmp_path / "x.ckpt").write_bytes(content)
    source = photo(tmp_path / "a.png")
    result = edit("--input", source, "--edit", "go", "--output", tmp_path / "x.png", ckpt=tmp_path / "x.ckpt")
    assert said in failed(result)
    assert not (tmp_path / "x.png").exists()


def test_checkpoints_that_do_not_fit(edit, tmp_path):
    source, out = photo(tmp_path / "a.png"), tmp_path / "x.png"
    common = ("--input", source, "--edit", "go", "--output", out)
    save_checkpoint(tmp_path / "text.safetensors", build_tiny(4).state_dict(), {"config": tiny_config(4)})
    assert "from text alone" in failed(edit(*common, ckpt=tmp_path / "text.safetensors"))
    save_checkpoint(tmp_path / "bare.safetensors", {"some.weight": torch.ones(3)}, {})
    assert "--config" in failed(edit(*common, ckpt=tmp_path / "bare.safetensors"))
    state = build_tiny().state_dict()
    for name in [n for n in state if ".output_blocks." in n]:
        del state[name]
    save_checkpoint(tmp_path / "half.ckpt", state, {"config": tiny_config()})
    line = failed(edit(*common, ckpt=tmp_path / "half.ckpt"))
    assert "missing" in line
    assert "output_blocks" in line
    assert len(line) < 1500
    assert not out.exists()


WRONG_KEYS = {
    "section": (lambda c: c.update(modle=c.pop("model")), "model"),
    "section beside": (lambda c: c.update(trainnig={}), "did you mean 'training'"),
    "model": (lambda c: c["model"]["params"].update(timestep=5), "timestep"),
    "no model": (lambda c: c.update(model={"target": "torch.nn.Identity"}), "a LatentDiffusion is expected"),
    "a text encoder that is none": (
        lambda c: c["model"]["params"].update(cond_stage_config={"target": "torch.nn.Identity"}),
        "a text encoder is expected",
    ),
    "unet": (lambda c: c["model"]["params"]["unet_config"]["params"].update(chanels=5), "chanels"),
    "ddconfig": (lambda c: c["model"]["params"]["first_stage_config"]["params"]["ddconfig"].update(chs=5), "chs"),
    "no ch_mult": (
        lambda c: c["model"]["params"]["first_stage_config"]["params"]["ddconfig"].pop("ch_mult"),
        "ch_mult",
    ),
    "target": (lambda c: c["model"].update(target="ldm.models.latent_diffusion.LatentDifusion"), "LatentDifusion"),
    "no target": (lambda c: c["model"].pop("target"), "target"),
    "module for a class": (lambda c: c["model"].update(target="ldm.models.latent_diffusion"), "latent_diffusion"),
    "empty model": (lambda c: c.update(model=None), "target"),
    "shape": (lambda c: c["model"]["params"]["unet_config"]["params"].update(model_channels=64), "mismatched"),
    "text for a number": (lambda c: c["model"]["params"].update(scale_factor="big"), "scale_factor|big"),
    "interpolation": (lambda c: c["model"]["params"].update(scale_factor="${gone}"), "gone"),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_wrong_configs_give_one_line_and_exit_2(edit, tmp_path, name):
    change, said = WRONG_KEYS[name]
    content = tiny_config()
    change(content)
    OmegaConf.save(OmegaConf.create(content), tmp_path / "x.yaml")
    source = photo(tmp_path / "a.png")
    result = edit("--input", source, "--edit", "go", "--output", tmp_path / "x.png", "--config", tmp_path / "x.yaml")
    line = failed(result)
    assert any(word in line for word in said.split("|")), line
    assert not (tmp_path / "x.png").exists()


def test_a_photo_whose_name_is_no_text_is_edited_and_its_recipe_read(edit, tmp_path):
    source = photo(tmp_path / "a.png").rename(tmp_path / "n\udcff.png")
    code, _, err = edit("--input", source, "--edit", "go", "--output", tmp_path / "x.png", "--steps", 1)
    assert (code, err) == (0, "")
    assert Path(read_recipe(tmp_path / "x.png")["input"]).name == "n\udcff.png"
    code, out, _ = edit("--show-recipe", tmp_path / "x.png", ckpt=None, small=False)
    assert code == 0
    assert "n\\udcff.png" in out


def test_a_full_disk_gives_one_line_and_leaves_nothing(edit, tmp_path, monkeypatch):
    source = photo(tmp_path / "a.png")

    def failing(self, target, *args, **options):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", failing)
    line = failed(edit("--input", source, "--edit", "go", "--output", tmp_path / "out" / "x.png"))
    assert "No space left" in line
    assert not list((tmp_path / "out").iterdir())


# As real processes


def shell(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)


def test_edit_sh_from_another_directory_with_relative_paths(tmp_path, tiny_ckpt):
    photo(tmp_path / "my photos" / "a b.png")
    arguments = (
        "--input",
        "my photos/a b.png",
        "--edit",
        "make it 'night' & $HOME",
        "--output",
        "out",
        "--ckpt",
        tiny_ckpt,
    )
    done = shell("bash", ROOT / "edit.sh", *arguments, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "out/a b-make-it-night-home-3.png"
    with Image.open(tmp_path / "out" / "a b-make-it-night-home-3.png") as image:
        image.load()
        assert json.loads(image.text["instruct2dream"])["instruction"] == "make it 'night' & $HOME"
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_edit_sh_passes_the_exit_code_on(tmp_path, tiny_ckpt):
    done = shell("bash", ROOT / "edit.sh", "--input", "gone.png", "--edit", "go", "--ckpt", tiny_ckpt, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["edit_cli.py: error: there is no picture 'gone.png'"]
    assert list(tmp_path.iterdir()) == []


def test_edit_sh_without_arguments_edits_the_shipped_example_from_any_directory(tmp_path):
    done = subprocess.run([ROOT / "edit.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no arguments: editing data/spriteworld/pictures/wolf/01.png" in done.stderr
    made = [tmp_path / line for line in done.stdout.split()]
    assert [path.parent for path in made] == [tmp_path / "logs" / "edits"]
    example = ROOT / "data" / "spriteworld" / "pictures" / "wolf" / "01.png"
    assert np.abs(pixels(made[0]) - pixels(example)).mean() > 2
