"""YAML, bases, overrides, and objects made from it: what is right is built, what is wrong is one line."""

import copy
import inspect
import logging
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.config import ALIASES, NO_EFFECT, get_class, instantiate_from_config, load_config
from tests.config_nodes import ROOT, write
from tests.conftest import tiny_config


@pytest.fixture
def run(tmp_path) -> Path:
    text = "training: {max_steps: 800, seed: 23, lr: 1.0e-6}\nmodel: {target: x.Y, params: {ch: 3, weight: 1.0}}\n"
    return write(tmp_path / "run.yaml", text)


SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


# Reading and merging


def test_base_is_merged_first_and_is_relative_to_the_file(tmp_path, monkeypatch):
    write(tmp_path / "shared" / "root.yaml", "a: 1\nnested: {x: 1, y: 2}\nlist: [1, 2, 3]\n")
    write(tmp_path / "shared" / "middle.yaml", "base: root.yaml\nnested: {y: 3}\nb: 2\n")
    write(tmp_path / "other.yaml", "b: 5\nc: 6\n")
    top = write(tmp_path / "runs" / "top.yaml", "base: [../shared/middle.yaml, ../other.yaml]\nlist: [9]\nc: 7\n")
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(top)
    assert OmegaConf.to_container(config) == {"a": 1, "nested": {"x": 1, "y": 3}, "list": [9], "b": 5, "c": 7}


def test_a_file_that_is_its_own_base(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ValueError, match="its own base"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c\n", "not readable YAML"),
        ("a: [1,\n", "not readable YAML"),
        ("\tx: 1\n", "not readable YAML"),
        ("- 1\n- 2\n", "mapping"),
        ("base: 3\n", "base"),
    ],
)
def test_text_that_is_no_config(tmp_path, text, said):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(ValueError, match=said) as caught:
        load_config(path)
    assert "x.yaml" in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\x80\x02\xff\0\x01")
    with pytest.raises(ValueError, match=r"x\.yaml.*not readable YAML"):
        load_config(tmp_path / "x.yaml")
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path)
    write(tmp_path / "y.yaml", "base: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        load_config(tmp_path / "y.yaml")


def test_overrides_change_values_of_every_type(run):
    words = ["training.max_steps=5", "training.lr=2e-5", "model.params.new=[1,2]", "model.params.flag=true"]
    config = load_config(run, [*words, "model.params.name=a=b"])
    assert config.training == {"max_steps": 5, "seed": 23, "lr": 2e-5}
    assert config.model.params == {"ch": 3, "weight": 1.0, "new": [1, 2], "flag": True, "name": "a=b"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.max_step=5", "'training.max_step'.*did you mean 'max_steps'"),
        ("trainning.max_steps=5", "'trainning.max_steps'.*did you mean 'training'"),
        ("zzz=5", "unknown key 'zzz'; known: model, training"),
        ("training.max_steps", "not of the form key=value"),
        ("training.max_steps.more=5", "training.max_steps"),
        ("model.target.more=5", r"model\.target"),
        ("training.seed={", r"training\.seed"),
        ("training.seed=[1,2", r"training\.seed"),
    ],
)
def test_overrides_that_make_no_sense(run, override, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_config(run, [override])
    assert "\n" not in str(caught.value)


def test_a_wrong_parameter_in_an_override_is_found_when_building():
    config = load_config(ROOT / "configs/stable-diffusion/v1-edit.yaml", ["model.params.unet_config.params.chanels=3"])
    with torch.device("meta"), pytest.raises(ValueError, match=r"UNetModel has no parameter 'chanels'.*did you mean"):
        instantiate_from_config(config.model)


# Building objects


class Thing:
    """Something to build."""

    def __init__(self, size: int, colour: str = "red", *, deep: dict | None = None):
        self.size, self.colour, self.deep = size, colour, deep


class Open:
    """Takes whatever it is given."""

    def __init__(self, **anything):
        self.anything = anything


HERE = __name__


def test_instantiate_builds_with_params_and_extras():
    thing = instantiate_from_config(OmegaConf.create({"target": f"{HERE}.Thing", "params": {"size": 3}}), colour="blue")
    assert (thing.size, thing.colour) == (3, "blue")
    thing = instantiate_from_config({"target": f"{HERE}.Thing", "params": {"size": 3, "deep": {"a": [1]}}})
    assert thing.deep == {"a": [1]}
    assert type(thing.deep) is dict
    assert instantiate_from_config({"target": f"{HERE}.Open", "params": {"a": 1}}, b=2).anything == {"a": 1, "b": 2}
    assert isinstance(instantiate_from_config({"target": "torch.nn.Identity"}), torch.nn.Identity)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            {"target": f"{HERE}.Thing", "params": {"size": 1, "color": "x"}},
            "no parameter 'color'; did you mean 'colour'",
        ),
        ({"target": f"{HERE}.Thing", "params": {"size": 1, "zz": 0}}, "no parameter 'zz'; known: colour, deep, size"),
        ({"target": f"{HERE}.Thing", "params": {}}, r"needs the parameter\(s\) size"),
        ({"target": f"{HERE}.Thing"}, r"needs the parameter\(s\) size"),
        ({"target": f"{HERE}.Thing", "param": {"size": 1}}, "unknown key 'param'.*did you mean 'params'"),
        ({"target": f"{HERE}.Thin", "params": {"size": 1}}, r"Thin' does not exist"),
        ({"target": "ldm.nowhere.Thing", "params": {}}, "'ldm.nowhere.Thing' does not exist"),
        ({"target": "nowhere.Thing", "params": {}}, "'nowhere.Thing' does not exist"),
        ({"target": "Thing", "params": {}}, "not a dotted path"),
        ({"target": ".Thing", "params": {}}, "Thing"),
        ({"target": "..a.Thing", "params": {}}, "Thing"),
        ({"target": "", "params": {}}, "dotted path"),
        ({"params": {"size": 1}}, "'target'"),
        ({}, "'target'"),
        (None, "'target'"),
        (3, "'target'"),
        ("ldm.x.Y", "'target'"),
        ({"target": ["a.b"], "params": {}}, "target"),
        ({"target": None, "params": {}}, "target"),
        ({"target": f"{HERE}.Thing", "params": [1]}, "params"),
        ({"target": f"{HERE}.Thing", "params": "size"}, "params"),
        ({"target": "ldm.models.latent_diffusion", "params": {}}, "ldm.models.latent_diffusion"),
        ({"target": "math.pi", "params": {}}, "math.pi"),
    ],
)
def test_instantiate_errors_name_the_mistake(node, said):
    import ldm.models.latent_diffusion  # noqa: F401 (so that the module is an attribute of its package)

    with pytest.raises(ValueError, match=said) as caught:
        instantiate_from_config(node)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_not_called_a_missing_class(monkeypatch, tmp_path):
    """The class exists, what it imports does not: the message must name the package to install."""
    write(tmp_path / "needy_module.py", "import a_package_that_is_not_there\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="a_package_that_is_not_there"):
        instantiate_from_config({"target": "needy_module.Thing"})


def test_parameters_without_effect_are_dropped_with_one_debug_line(caplog):
    node = copy.deepcopy(tiny_config()["model"]["params"]["unet_config"])
    node["params"] |= {"legacy": False, "image_size": 32}
    with caplog.at_level(logging.DEBUG, "ldm.config"), torch.device("meta"):
        instantiate_from_config(node)
    lines = [record.getMessage() for record in caplog.records if "legacy" in record.getMessage()]
    assert len(lines) == 1
    assert "image_size" in lines[0]


def wrong(change) -> dict:
    content = tiny_config()
    change(content["model"]["params"])
    return content["model"]


WRONG_MODELS = {
    "unet parameter": (lambda p: p["unet_config"]["params"].update(num_res_block=1), "did you mean 'num_res_blocks'"),
    "model parameter": (lambda p: p.update(timestep=1000), "did you mean 'timesteps'"),
    "ddconfig": (lambda p: p["first_stage_config"]["params"]["ddconfig"].update(num_res_block=1), "num_res_block"),
    "ddconfig missing": (lambda p: p["first_stage_config"]["params"]["ddconfig"].pop("ch_mult"), "ch_mult"),
    "ddconfig no mapping": (lambda p: p["first_stage_config"]["params"].update(ddconfig=3), "ddconfig"),
    "text_config": (lambda p: p["cond_stage_config"]["params"]["text_config"].update(hiden_size=1), "hiden_size"),
    "key of the text": (lambda p: p["cond_stage_config"]["params"].update(frozen=True), "no parameter 'frozen'"),
    "conditioning": (lambda p: p.update(conditioning_key="concat"), "unknown conditioning_key 'concat'.*hybrid"),
    "parameterization": (lambda p: p.update(parameterization="epsilon"), "epsilon"),
    "weights without a loss for them": (lambda p: p.update(snr_offset=1.0), "min_snr_gamma is null"),
    "beta_schedule": (lambda p: p.update(beta_schedule="quadratic"), "quadratic"),
    "channels": (lambda p: p["unet_config"]["params"].update(in_channels=4), "in_channels 8"),
    "heads": (lambda p: p["unet_config"]["params"].update(num_head_channels=8), "num_head"),
    "widths": (lambda p: p["unet_config"]["params"].update(model_channels=20), "multiples of 32"),
    "a number for a list": (lambda p: p["unet_config"]["params"].update(channel_mult=4), "UNetModel"),
    "words for a number": (lambda p: p["unet_config"]["params"].update(model_channels="wide"), "UNetModel"),
    "part missing": (lambda p: p.pop("unet_config"), "unet_config"),
    "part empty": (lambda p: p.update(unet_config=None), "target"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_wrong_keys_and_values_of_a_model(name):
    change, said = WRONG_MODELS[name]
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        instantiate_from_config(wrong(change))


# What is shipped


def nodes(config: object) -> list[dict]:
    """Every mapping with a target, at any depth."""
    found: list[dict] = []
    if isinstance(config, dict):
        found += [config] if "target" in config else []
        for value in config.values():
            found += nodes(value)
    elif isinstance(config, list):
        for value in config:
            found += nodes(value)
    return found


def without_files(config: object) -> object:
    if isinstance(config, dict):
        return {key: without_files(value) for key, value in config.items() if key != "ckpt_path"}
    return config


def test_there_are_configs():
    assert {"v1-edit.yaml", "v1-inference.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_config_loads_and_names_what_exists(path):
    config = OmegaConf.to_container(load_config(path), resolve=True)
    for node in nodes(config):
        factory = get_class(node["target"])
        given = set(node.get("params") or {}) - NO_EFFECT.get(node["target"], set())
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            assert given <= set(parameters), node["target"]
        assert node["target"] not in ALIASES, "a shipped config uses our own names"
    if "model" in config:
        with torch.device("meta"):
            instantiate_from_config(without_files(config["model"]))
    if "training" in config:
        from ldm.training.settings import TrainSettings

        TrainSettings.of(OmegaConf.create(config))


def test_the_edit_config_is_the_text_config_with_eight_channels():
    folder = ROOT / "configs/stable-diffusion"
    edit, text = (OmegaConf.to_container(load_config(folder / f"v1-{n}.yaml")) for n in ("edit", "inference"))
    assert edit["model"]["params"].pop("conditioning_key") == "hybrid"
    assert text["model"]["params"].pop("conditioning_key") == "crossattn"
    assert edit["model"]["params"]["unet_config"]["params"].pop("in_channels") == 8
    assert text["model"]["params"]["unet_config"]["params"].pop("in_channels") == 4
    assert edit == text
