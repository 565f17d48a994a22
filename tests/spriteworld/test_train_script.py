"""train_spriteworld.sh: every stage once, in order, gone on with where it stopped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """#!/usr/bin/env bash
echo "$*" >> calls
case "$1" in
scripts/spriteworld.py)
  [ "$2" = scale ] && echo 1.25
  [ "$2" = whiten ] && cat "$4" - <<< "$RANDOM$RANDOM" > "$6"
  [ "$2" = without-picture ] && cat data/spriteworld/editor.safetensors > "$4"
  [ "$2" = latents ] && echo "$6" > "$4" && cat data/spriteworld/editor.safetensors >> "$4"
  [ "$2" = follow ] && cat "$4" data/spriteworld/first-stage.safetensors > "$6"
  [ "$2" = "${STOP:-}" ] && exit 143
  [ "$2" = recogniser ] && touch data/spriteworld/recogniser-grey.safetensors
  exit 0;;
scripts/export.py)
  exec cp "$2" "$3";;
esac
if [ "$2" = --logs ]; then run="$5"; name="${run##*_}"; else name="${@: -1}"; run="logs/spriteworld/1_$name"; fi
mkdir -p "$run/checkpoints"
[ "$name" = "${STOP:-}" ] && touch "$run/checkpoints/last.ckpt" && exit 143
echo "$name $RANDOM$RANDOM" > "$run/checkpoints/step=${name##*-}.safetensors"
"""

SCALE = "scale_factor"
AFTER_THE_FIRST = ["text-to-image.yaml", "instruct-pix2pix.yaml", "text-to-image.yaml", "first-stage-decoder.yaml"]


@pytest.fixture
def fresh(tmp_path):
    """A fresh checkout, as far as the script sees it, with a stand-in for Python that writes down what it is asked."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/train_spriteworld.sh", tmp_path / "scripts")
    (tmp_path / "scripts/setup.sh").write_text("")
    for folder in ("data/spriteworld", "configs/spriteworld", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (ROOT / "configs/spriteworld").glob("*.yaml"):
        shutil.copy(path, tmp_path / "configs/spriteworld")
    (tmp_path / ".venv/bin/python").write_text(PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    return tmp_path


def run(folder, *overrides, **env):
    (folder / "calls").unlink(missing_ok=True)
    command = ["bash", str(folder / "scripts/train_spriteworld.sh"), *overrides]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    return done, (folder / "calls").read_text().splitlines()


def trained(calls):
    """The configs of the stages that were trained, in order."""
    return [call.split()[1].split("/")[-1] for call in calls if call.startswith("scripts/train.py")]


def test_a_fresh_checkout_trains_everything_in_order_and_a_second_call_nothing(fresh):
    done, calls = run(fresh)
    assert done.returncode == 0, done.stderr
    assert trained(calls) == ["first-stage.yaml"] * 4 + AFTER_THE_FIRST
    begun = [part.split("/")[-1] for call in calls for part in call.split() if "ckpt_path=" in part]
    beginnings = ("white", "windows-32", "windows-48", "without-picture")
    assert begun == [f"{name}.safetensors" for name in beginnings]
    assert (fresh / "logs/spriteworld/without-picture.safetensors").read_text().startswith("instruct-pix2pix-")
    assert (fresh / "data/spriteworld/first-stage.safetensors").read_text().startswith("decoder-4000")
    assert "scripts/spriteworld.py latents --output logs/spriteworld/latents.safetensors --scenes 6000" in calls
    for name, run_name in (("editor", "instruct-pix2pix-"), ("text-to-image", "text-to-image-again-")):
        own, decoder = (fresh / f"data/spriteworld/{name}.safetensors").read_text().splitlines()
        assert own.startswith(run_name)  # trained with the first stage as it was, then given the new decoder
        assert decoder.startswith("decoder-4000")
    order = [next(i for i, call in enumerate(calls) if word in call) for word in ("first-st", " recog", "text-to")]
    assert order == sorted(order)
    (scale,) = (line for line in (fresh / "configs/spriteworld/model.yaml").read_text().splitlines() if SCALE in line)
    assert scale.split("#")[0].strip() == f"{SCALE}: 1.25"
    others = [path.name for path in (ROOT / "configs/spriteworld").glob("*.yaml") if SCALE in path.read_text()]
    assert others == ["model.yaml"]
    done, calls = run(fresh)
    assert done.returncode == 0
    assert not [call for call in calls if "train.py" in call or "recogniser" in call or "latents --" in call]


STEPS = {
    "first-stage-plain": "STEPS_FIRST_STAGE",
    "first-stage-32": "STEPS_WINDOWS",
    "first-stage-48": "STEPS_WINDOWS",
    "first-stage": "STEPS_FIRST_STAGE",
    "text-to-image": "STEPS_TEXT",
    "instruct-pix2pix": "STEPS_EDIT",
    "text-to-image-again": "STEPS_TEXT_AGAIN",
    "decoder": "STEPS_DECODER",
}


@pytest.mark.parametrize("stage", STEPS)
def test_a_stopped_stage_is_resumed_and_another_number_of_steps_is_another_run(fresh, stage):
    steps = {STEPS[stage]: "7"}
    done, calls = run(fresh, STOP=f"{stage}-7", **steps)
    assert done.returncode == 143
    assert calls[-1].endswith(f"--name {stage}-7")  # nothing came after it
    assert not [path for path in fresh.rglob("*.safetensors") if path.read_text().startswith(f"{stage}-7")]
    done, calls = run(fresh, **steps)
    assert done.returncode == 0, done.stderr
    assert f"scripts/train.py --logs logs/spriteworld --resume logs/spriteworld/1_{stage}-7" in calls
    _, calls = run(fresh, **{STEPS[stage]: "9"})
    assert [call for call in calls if "training.max_steps=9" in call and call.endswith(f"--name {stage}-9")]


def test_a_job_that_was_stopped_halfway_is_not_taken_for_done(fresh):
    """The recognisers of before are still there, but may be half overwritten."""
    assert run(fresh)[0].returncode == 0
    assert run(fresh, STOP="recogniser", STEPS_RECOGNISER="5")[0].returncode == 143
    assert "scripts/spriteworld.py recogniser --steps 1200" in run(fresh)[1]
    assert run(fresh, STOP="without-picture", STEPS_EDIT="9")[0].returncode == 143
    assert [call for call in run(fresh, STEPS_EDIT="9")[1] if "without-picture --output" in call]


def test_overrides_go_to_every_stage_after_its_own(fresh):
    done, calls = run(fresh, "training.precision=bf16", "data.params.train.params.seed=77", STEPS_RECOGNISER="5")
    assert done.returncode == 0, done.stderr
    lines = [call.split() for call in calls if call.startswith("scripts/train.py")]
    assert len(lines) == 8
    for words in lines:
        assert "training.precision=bf16" in words
    assert not [word for word in lines.pop() if "train.params.seed=" in word]  # the decoder's data are a file
    for words in lines:
        seeds = [word for word in words if "train.params.seed=" in word]
        assert seeds[-1] == "data.params.train.params.seed=77"
    assert "scripts/spriteworld.py recogniser --steps 5" in calls


def test_what_follows_a_stage_that_was_trained_anew_is_trained_anew(fresh):
    assert run(fresh, STEPS_FIRST_STAGE="10")[0].returncode == 0
    done, calls = run(fresh)  # the whole length after a trial
    assert done.returncode == 0, done.stderr
    assert trained(calls) == ["first-stage.yaml"] * 4 + [*AFTER_THE_FIRST]
    assert trained(run(fresh)[1]) == []
    assert "scripts/spriteworld.py recogniser --steps 1200" in run(fresh, STEPS_RECOGNISER="5")[1] + run(fresh)[1]
    assert trained(run(fresh, STEPS_TEXT="9")[1]) == AFTER_THE_FIRST
    assert trained(run(fresh, STEPS_TEXT="9", SCENES_LATENTS="60")[1]) == AFTER_THE_FIRST[3:]
    assert trained(run(fresh, STEPS_TEXT="9", SCENES_LATENTS="60", STEPS_TEXT_AGAIN="60")[1]) == AFTER_THE_FIRST[2:3]
    assert trained(run(fresh, "training.precision=bf16", STEPS_TEXT="9")[1])[-2:] == AFTER_THE_FIRST[-2:]


def test_another_recipe_is_another_run_also_where_a_base_says_it(fresh):
    run(fresh)
    recipe = fresh / "configs/spriteworld/instruct-pix2pix.yaml"
    recipe.write_text(recipe.read_text().replace("t_power: 1.5", "t_power: 1.0"))
    assert trained(run(fresh)[1]) == AFTER_THE_FIRST[1:]
    network = fresh / "configs/spriteworld/edit-model.yaml"  # only the editor's
    network.write_text(network.read_text().replace("base: model.yaml", "base: model.yaml  # the network"))
    done, calls = run(fresh)
    assert trained(calls) == AFTER_THE_FIRST[1:]
    assert "No such file" not in done.stderr
    assert trained(run(fresh)[1]) == []
