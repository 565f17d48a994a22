"""Settings with types: what a config says becomes a dataclass, or one line that names the place and the mend."""

import runpy
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.config import OLD_KEYS, as_written_today, instantiate_from_config, load_config
from ldm.diffusion.objective import Objective
from ldm.errors import UserError
from ldm.project import CONFIGS, ROOT, SPRITEWORLD
from ldm.training.settings import TrainSettings, load_training_config
from ldm.typed import plain, settings, typed


@dataclass(frozen=True)
class Example:
    """A dataclass of every kind of field."""

    name: str
    steps: int = 3
    rate: float = 0.5
    on: bool = True
    clip: float | None = None
    pair: tuple[float, float] | None = None
    kept: list[int] = field(default_factory=list)
    sheet: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; at least 1 is expected")


def test_values_have_the_declared_types():
    found = settings(Example, OmegaConf.create({"name": "a", "rate": 2, "pair": [1, 2], "kept": [1, 2]}), "place")
    assert found == Example("a", rate=2.0, pair=(1.0, 2.0), kept=[1, 2])
    assert type(found.rate) is float
    assert type(found.pair) is tuple
    assert typed(Example, {"rate": 1}, "place") == {"rate": 1.0}
    assert typed(Example, None, "place") == {}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"name": "a", "step": 1}, r"unknown key 'place\.step'; did you mean 'steps'\?"),
        ({"name": "a", "zzz": 1}, r"unknown key 'place\.zzz'; known: clip, kept"),
        ({}, "place lacks name"),
        ("name", "place should hold names and values"),
        ({"name": 5}, r"place\.name is 5; words"),
        ({"name": "a", "steps": 2.5}, r"place\.steps is 2\.5; a whole number is expected"),
        ({"name": "a", "steps": True}, r"place\.steps is True; a whole number"),
        ({"name": "a", "steps": "many"}, r"place\.steps is 'many'; a whole number"),
        ({"name": "a", "on": 1}, r"place\.on is 1; true or false"),
        ({"name": "a", "rate": False}, r"place\.rate is False; a number"),
        ({"name": "a", "clip": "x"}, r"place\.clip is 'x'; a number or null"),
        ({"name": "a", "pair": [1, 2, 3]}, r"place\.pair is .*a list of 2 numbers or null"),
        ({"name": "a", "kept": ["x"]}, r"place\.kept is .*a list of whole numbers"),
        ({"name": "a", "sheet": 3}, r"place\.sheet is 3; names and values"),
        ({"name": "a", "steps": 0}, "steps is 0; at least 1 is expected"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_place(node, said):
    with pytest.raises(UserError, match=said) as caught:
        settings(Example, node, "place")
    assert "\n" not in str(caught.value)


def test_an_interpolation_that_leads_nowhere_is_one_line():
    with pytest.raises(UserError, match="gone"):
        plain(OmegaConf.create({"a": "${gone}"}))


class Taking:
    """Built from a config by the test below."""

    def __init__(self, size: int, share: float | None = None, words: tuple[str, ...] = ()):
        if size == 13:
            raise KeyError("a line of ours")
        self.size = size


Taking.__module__ = "ldm.config"  # as a class of the project's would be


def test_a_class_of_ours_is_given_what_it_declares(monkeypatch):
    monkeypatch.setattr("ldm.config.Taking", Taking, raising=False)
    node = {"target": "ldm.config.Taking", "params": {"size": 3, "share": 1, "words": ["a"]}}
    assert instantiate_from_config(node).size == 3
    for key, value, said in (
        ("size", "0,5", "size is '0,5'; a whole number"),
        ("share", "x", "share is 'x'; a number or null"),
        ("words", "a", "words is 'a'; a list of words"),
    ):
        with pytest.raises(UserError, match=f"{key} is .*expected") as caught:
            instantiate_from_config({**node, "params": {**node["params"], key: value}})
        assert said in str(caught.value)


# Parameters that once stood by themselves


def test_every_flat_parameter_is_one_of_the_objective():
    assert set(OLD_KEYS) == set(Objective.__dataclass_fields__)
    assert set(OLD_KEYS.values()) == {"objective_config"}


@pytest.mark.parametrize("way", ["file", "base", "override", "override of today"])
def test_a_flat_parameter_means_its_place_in_the_objective_wherever_it_is_given(tmp_path, way):
    target = "ldm.models.diffusion.ddpm_edit.LatentDiffusion"
    base = {"model": {"target": target, "params": {"objective_config": {"reg_weight": 2.0, "t_power": 1.5}}}}
    own = {"model": {"params": {"timesteps": 10}}}
    overrides = []
    if way == "file":
        own["model"]["params"]["reg_weight"] = 0.5
    elif way == "base":
        base["model"]["params"] = {"reg_weight": 0.5, "t_power": 1.5}
    else:
        key = "reg_weight" if way == "override" else "objective_config.reg_weight"
        overrides = [f"model.params.{key}=0.5"]
    OmegaConf.save(OmegaConf.create(base), tmp_path / "base.yaml")
    OmegaConf.save(OmegaConf.create({"base": "base.yaml", **own}), tmp_path / "own.yaml")
    params = load_config(tmp_path / "own.yaml", overrides).model.params
    assert params == {"objective_config": {"reg_weight": 0.5, "t_power": 1.5}, "timesteps": 10}


def test_a_new_override_wins_over_an_old_file(tmp_path):
    OmegaConf.save(OmegaConf.create({"model": {"params": {"reg_weight": 0.5}}}), tmp_path / "old.yaml")
    config = load_config(tmp_path / "old.yaml", ["model.params.objective_config.reg_weight=0.25"])
    assert config.model.params.objective_config.reg_weight == 0.25


def test_other_models_keep_parameters_of_those_names(tmp_path):
    node = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"loss_type": "l1"}}
    OmegaConf.save(OmegaConf.create({"model": node}), tmp_path / "stage.yaml")
    assert load_config(tmp_path / "stage.yaml").model == node


def test_configs_written_at_different_times_can_be_compared():
    then = {
        "model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {"reg_weight": 1.0, "timesteps": 5}},
        "data": {"params": {"train": {"target": "ldm.spriteworld.dataset.SpriteTriplets"}}},
    }
    now = {
        "model": {
            "target": "ldm.models.latent_diffusion.LatentDiffusion",
            "params": {"timesteps": 5, "objective_config": {"reg_weight": 1.0}},
        },
        "data": {"params": {"train": {"target": "ldm.spriteworld.world.dataset.SpriteTriplets"}}},
    }
    assert as_written_today(then) == now == as_written_today(now)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"edit_defaults": {"stepz": 5}}, r"unknown key 'training\.edit_defaults\.stepz'; did you mean 'steps'\?"),
        ({"text_defaults": {"sampler": "eulr"}}, "eulr"),
        ({"edit_defaults": {"steps": 0}}, "steps"),
    ],
)
def test_what_kept_weights_recommend_is_checked_before_they_are_trained(given, said):
    with pytest.raises(UserError, match=said):
        TrainSettings(**given)


@pytest.mark.parametrize("text", ["007", "yes", "null", "1e3", "a: b", "[x]", "a ${b} c", "é\U0001f600", "# x", "'q"])
def test_a_flag_of_training_is_text_and_never_yaml(text):
    script = runpy.run_path(str(ROOT / "scripts" / "train.py"))
    args = script["parser"]().parse_args(["--identifier", text, "--data", "pairs"])
    config = load_training_config(CONFIGS / "spriteworld" / "instruct2dream.yaml", [], script["texts"](args))
    assert plain(config["dataset"])["identifier"] == text
    assert plain(config["dataset"])["root"] == "pairs"


def test_without_a_config_training_takes_the_recipe_that_the_weights_fit(tiny_ckpt):
    recipe_for = runpy.run_path(str(ROOT / "scripts" / "train.py"))["recipe_for"]
    small, full = "spriteworld/instruct2dream.yaml", "stable-diffusion/v1-finetune_unfrozen.yaml"
    assert recipe_for(None) == recipe_for(str(SPRITEWORLD / "editor.safetensors")) == small
    assert recipe_for(str(tiny_ckpt)) == full  # neither fits: the error is that of the recipe for published weights
    with pytest.raises(FileNotFoundError, match="does not exist"):
        recipe_for("gone.ckpt")
