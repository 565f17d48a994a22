"""The shipped weights' pipeline: every stage once, in order, gone on with where it stopped."""

import itertools
import logging
import shutil
from pathlib import Path

import pytest

from ldm.spriteworld.weights import pipeline
from ldm.spriteworld.weights.pipeline import Lengths, Places, Stage, plan, train_weights

ROOT = Path(__file__).resolve().parents[2]
FIRST, AFTER = ["first-stage-plain", "first-stage-32", "first-stage-48", "first-stage"], [
    "text-to-image", "instruct-pix2pix", "text-to-image-again", "decoder"
]  # fmt: skip
LENGTHS = {
    "first-stage-plain": "STEPS_FIRST_STAGE",
    "first-stage-32": "STEPS_WINDOWS",
    "first-stage-48": "STEPS_WINDOWS",
    "first-stage": "STEPS_FIRST_STAGE",
    "text-to-image": "STEPS_TEXT",
    "instruct-pix2pix": "STEPS_EDIT",
    "text-to-image-again": "STEPS_TEXT_AGAIN",
    "decoder": "STEPS_DECODER",
}


class Fresh:
    """A fresh checkout, as far as the pipeline sees it, whose trainings and jobs write down what they were asked."""

    def __init__(self, folder: Path):
        self.places = Places(folder / "configs", folder / "data", folder / "runs", folder / "results")
        shutil.copytree(ROOT / "configs", folder / "all")
        (folder / "all/spriteworld").rename(self.places.configs)
        (folder / "all/stable-diffusion").rename(folder / "stable-diffusion")
        self.places.data.mkdir()
        self.numbers = itertools.count()
        self.stop, self.calls, self.configs, self.resumed = "", [], {}, []

    def __call__(self, *overrides, stop="", **environment):
        """Call the pipeline; return whether it came to its end. ``calls`` are then the trainings and jobs, in order."""
        self.stop, self.calls, self.configs, self.resumed = stop, [], {}, []
        return train_weights(Lengths.of_environment(environment), self.places, overrides, "command")

    def trained(self, *overrides, **environment):
        """The stages that a call trains, in order."""
        assert self(*overrides, **environment)
        return [name.rpartition("-")[0] for name in self.calls if name.startswith((*FIRST, *AFTER))]

    def text(self, name):
        return (self.places.data / f"{name}.safetensors").read_text()

    def train(self, config, name, logs, resume=None):
        run = resume or logs / f"{next(self.numbers):03d}_{name}"
        name = run.name.partition("_")[2]
        self.calls.append(name)
        self.resumed += [name] if resume else []
        self.configs[name] = config
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text("training: {}")
        if name == self.stop:
            (run / "checkpoints/last.ckpt").touch()
        else:
            kept = run / f"checkpoints/step={name.rpartition('-')[2]}.safetensors"
            kept.write_text(f"{name} {next(self.numbers)}\n")
        return run

    def job(self, name, output, content):
        self.calls.append(name)
        if name == self.stop:
            output.write_text("half")
            raise KeyboardInterrupt
        output.write_text(content)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    world = Fresh(tmp_path)
    stand_ins = {
        "train": world.train,
        "whiten_first_stage": lambda ckpt, output, power=0: world.job(
            f"whiten to {power}", output, f"white {ckpt.read_text()} {next(world.numbers)}"
        ),
        "latent_scale": lambda path: 1.25,
        "make_recognisers": lambda data, steps: world.job(
            f"recognisers, {steps}", data / "recogniser-grey.safetensors", ""
        ),
        "editor_without_picture": lambda ckpt, output: world.job("without picture", output, ckpt.read_text()),
        "write_edited_latents": lambda ckpt, output, scenes, seed: world.job(
            f"latents, {scenes}", output, f"{scenes} {ckpt.read_text()}"
        ),
        "follow_first_stage": lambda ckpt, stage, output: output.write_text(ckpt.read_text() + stage.read_text()),
        "export": shutil.copy,
        "all_photos": lambda data: world.calls.append("photos"),
        "measure_checkpoint": lambda *_: world.calls.append("measure"),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(pipeline, name, stand_in)
    return world


def test_a_fresh_checkout_trains_everything_in_order_and_a_second_call_nothing(fresh, caplog):
    with caplog.at_level(logging.WARNING):
        assert fresh.trained() == FIRST + AFTER
    assert "scale is 1.25000, but scale_factor in" in caplog.text
    started = {name: config.model.params.get("ckpt_path") for name, config in fresh.configs.items()}
    assert [Path(path).name for path in started.values() if path] == [
        "white.safetensors",
        "windows-32.safetensors",
        "windows-48.safetensors",
        "text-to-image.safetensors",
        "without-picture.safetensors",
        "first-stage.safetensors",
    ]
    scales = {n: c.model.params.scale_factor for n, c in fresh.configs.items() if "scale_factor" in c.model.params}
    assert scales == {"text-to-image-4000": 1.25, "instruct-pix2pix-14000": 1.25, "text-to-image-again-1200": 1.25}
    assert (fresh.places.runs / "without-picture.safetensors").read_text().startswith("instruct-pix2pix-")
    assert fresh.text("first-stage").startswith("decoder-4000")
    for name, run_name in (("editor", "instruct-pix2pix-"), ("text-to-image", "text-to-image-again-")):
        own, decoder = fresh.text(name).splitlines()
        assert own.startswith(run_name)  # trained with the first stage as it was, then given the new decoder
        assert decoder.startswith("decoder-4000")
    jobs = ["whiten to 0", "whiten to 0.8", "recognisers, 1200", "without picture", "latents, 6000"]
    assert [call for call in fresh.calls if call in jobs] == jobs
    assert fresh.calls[-2:] == ["photos", "measure"]
    assert fresh()
    assert fresh.calls == ["photos", "measure"]
    before = (ROOT / "configs/spriteworld/model.yaml").read_text()
    assert (fresh.places.configs / "model.yaml").read_text() == before


@pytest.mark.parametrize("stage", LENGTHS)
def test_a_stopped_stage_is_resumed_and_another_number_of_steps_is_another_run(fresh, stage):
    steps = {LENGTHS[stage]: "7"}
    assert not fresh(stop=f"{stage}-7", **steps)
    assert fresh.calls[-1] == f"{stage}-7"  # nothing came after it
    files = [path for path in fresh.places.runs.parent.rglob("*.safetensors") if path.is_file()]
    assert not [path for path in files if path.read_text().startswith(f"{stage}-7")]
    assert fresh(**steps)
    assert fresh.resumed == [f"{stage}-7"]
    assert fresh(**{LENGTHS[stage]: "9"})
    assert f"{stage}-9" in fresh.calls
    assert fresh.resumed == []


@pytest.mark.parametrize("stop", ["recognisers, 5", "without picture"])
def test_a_job_that_was_stopped_halfway_is_not_taken_for_done(fresh, stop):
    """What it made before is still there, but may be half overwritten."""
    assert fresh()
    changed = {"STEPS_RECOGNISER": "5"} if stop.startswith("recognisers") else {"STEPS_EDIT": "9"}
    with pytest.raises(KeyboardInterrupt):
        fresh(stop=stop, **changed)
    assert fresh(**changed)
    assert stop in fresh.calls
    assert fresh()
    assert fresh(**changed)


def test_overrides_go_to_every_stage_after_its_own(fresh):
    assert fresh("training.precision=bf16", "data.params.train.params.seed=77", STEPS_RECOGNISER="5")
    assert len(fresh.configs) == 8
    assert {config.training.precision for config in fresh.configs.values()} == {"bf16"}
    *others, decoder = (config.data.params.train.params for config in fresh.configs.values())
    assert {data.seed for data in others} == {77}
    assert "seed" not in decoder  # the decoder's data are a file
    assert "recognisers, 5" in fresh.calls


def test_what_follows_a_stage_that_was_trained_anew_is_trained_anew(fresh):
    assert fresh(STEPS_FIRST_STAGE="10")
    assert fresh.trained() == FIRST[:1] + FIRST[1:] + AFTER  # the whole length after a trial
    assert fresh.trained() == []
    assert fresh.trained(STEPS_TEXT="9") == AFTER
    assert fresh.trained(STEPS_TEXT="9", SCENES_LATENTS="60") == AFTER[3:]
    assert fresh.trained(STEPS_TEXT="9", SCENES_LATENTS="60", STEPS_TEXT_AGAIN="60") == AFTER[2:3]
    assert fresh.trained("training.precision=bf16", STEPS_TEXT="9")[-2:] == AFTER[-2:]


def test_another_recipe_is_another_run_also_where_a_base_says_it(fresh):
    assert fresh()
    recipe = fresh.places.configs / "instruct-pix2pix.yaml"
    recipe.write_text(recipe.read_text().replace("t_power: 1.5", "t_power: 1.0"))
    assert fresh.trained() == AFTER[1:]
    assert len([p for p in fresh.places.runs.iterdir() if ".before-" in p.name and "instruct" in p.name]) == 1
    network = fresh.places.configs / "edit-model.yaml"  # only the editor's
    network.write_text(network.read_text() + "\n    use_ema: false\n")
    assert fresh.trained() == AFTER[1:]
    network.write_text(network.read_text() + "# a remark\n")
    assert fresh.trained() == []


def test_the_recipes_of_the_shell_script(fresh):
    """Stage order, steps, overrides and seeds, as the shipped weights' script had them."""
    stages = {part.name: part for part in plan(Lengths(), fresh.places) if isinstance(part, Stage)}
    assert {name: stage.steps for name, stage in stages.items()} == {
        "first-stage-plain": 3600,
        "first-stage-32": 2600,
        "first-stage-48": 2600,
        "first-stage": 9000,
        "text-to-image": 4000,
        "instruct-pix2pix": 14000,
        "text-to-image-again": 1200,
        "decoder": 4000,
    }
    fresh()
    plain, small, large, whole, *_ = fresh.configs.values()
    loss, data = plain.model.params.lossconfig.params, plain.data.params.train.params
    assert (loss.whiten, loss.kl, data.low_contrast, data.any_coat, data.seed) == (0, 1e-5, 1, 0.5, 1)
    windows = [
        (c.data.params.batch_size, c.data.params.train.params.crop, c.data.params.train.params.seed)
        for c in (small, large)
    ]
    assert windows == [(32, 32, 11), (24, 48, 12)]
    assert (whole.data.params.batch_size, whole.data.params.train.params.seed) == (16, 13)


@pytest.mark.parametrize(
    ("environment", "says"),
    [({"STEPS_TEXT": "many"}, "STEPS_TEXT is 'many'"), ({"STEPS_TEXT": "0"}, "text is 0; a whole number from 1")],
)
def test_lengths_that_make_no_sense_are_refused(environment, says):
    with pytest.raises(ValueError, match=says):
        Lengths.of_environment(environment)
    assert Lengths.of_environment({"STEPS_TEXT": "", "PATH": "x"}) == Lengths()


def test_several_devices_are_refused(fresh):
    with pytest.raises(ValueError, match="one process on one device"):
        fresh("training.devices=2")
