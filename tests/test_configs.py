"""Configs: merging, overrides, errors that name the mistake; every shipped YAML, upstream's YAMLs, and the pins."""

import copy
import inspect
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

from ldm.checkpoint.save import save_checkpoint
from ldm.config import ALIASES, NO_EFFECT, anchored, get_class, instantiate_from_config, load_config
from tests.conftest import build_tiny, tiny_config

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
UNET = "model.diffusion_model."


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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


# Overrides


@pytest.fixture
def run(tmp_path) -> Path:
    text = "training: {max_steps: 800, seed: 23, lr: 1.0e-6}\nmodel: {target: x.Y, params: {ch: 3, weight: 1.0}}\n"
    return write(tmp_path / "run.yaml", text)


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


# Upstream's files, as they are published


def upstream(target: str, own: dict, in_channels: int, resolution: int, prefix: str = "") -> dict:
    """The model section of an upstream YAML."""
    return {
        "base_learning_rate": 1.0e-4,
        "target": f"{prefix}{target}",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "num_timesteps_cond": 1,
            "log_every_t": 200,
            "timesteps": 1000,
            "channels": 4,
            "cond_stage_trainable": False,
            "monitor": "val/loss_simple_ema",
            "scale_factor": 0.18215,
            **own,
            "unet_config": {
                "target": f"{prefix}ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 32,
                    "in_channels": in_channels,
                    "out_channels": 4,
                    "model_channels": 320,
                    "attention_resolutions": [4, 2, 1],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 4, 4],
                    "num_heads": 8,
                    "use_spatial_transformer": True,
                    "transformer_depth": 1,
                    "context_dim": 768,
                    "use_checkpoint": True,
                    "legacy": False,
                },
            },
            "first_stage_config": {
                "target": f"{prefix}ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "monitor": "val/rec_loss",
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": resolution,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 2, 4, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                    },
                    "lossconfig": {"target": "torch.nn.Identity"},
                },
            },
            "cond_stage_config": {"target": f"{prefix}ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
        },
    }


def scheduler(warm_up: int, prefix: str = "") -> dict:
    params = {"warm_up_steps": [warm_up], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
    return {"target": f"{prefix}ldm.lr_scheduler.LambdaLinearScheduler", "params": params}


def personalization(vectors: int) -> dict:
    params = {
        "placeholder_strings": ["*"],
        "initializer_words": ["sculpture"],
        "per_image_tokens": False,
        "num_vectors_per_token": vectors,
        "progressive_words": False,
    }
    return {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": params}


PAIR = {"first_stage_key": "edited", "cond_stage_key": "edit", "conditioning_key": "hybrid"}
OLD = "stable_diffusion."  # InstructPix2Pix's first published files name their classes below this folder
UPSTREAM = {
    "instruct-pix2pix generate": upstream(
        "ldm.models.diffusion.ddpm_edit.LatentDiffusion",
        {**PAIR, "image_size": 16, "use_ema": True, "load_ema": True, "scheduler_config": scheduler(0)},
        8,
        256,
    ),
    "instruct-pix2pix generate, first edition": upstream(
        "ldm.models.diffusion.ddpm_edit.LatentDiffusion",
        {**PAIR, "image_size": 16, "use_ema": True, "load_ema": True, "scheduler_config": scheduler(0, OLD)},
        8,
        256,
        OLD,
    ),
    "instruct-pix2pix train": upstream(
        "ldm.models.diffusion.ddpm_edit.LatentDiffusion",
        {**PAIR, "image_size": 32, "use_ema": True, "load_ema": False, "scheduler_config": scheduler(0)},
        8,
        256,
    ),
    "stable diffusion v1-inference": upstream(
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        {
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 64,
            "conditioning_key": "crossattn",
            "use_ema": False,
            "scheduler_config": scheduler(10000),
            "personalization_config": personalization(100),
        },
        4,
        256,
    ),
    "dreambooth v1-finetune_unfrozen": upstream(
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        {
            "reg_weight": 1.0,
            "first_stage_key": "image",
            "cond_stage_key": "caption",
            "image_size": 64,
            "cond_stage_trainable": True,
            "conditioning_key": "crossattn",
            "use_ema": False,
            "embedding_reg_weight": 0.0,
            "unfreeze_model": True,
            "model_lr": 1.0e-6,
            "personalization_config": personalization(1),
        },
        4,
        512,
    ),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_configs_build_unmodified(tmp_path, name):
    OmegaConf.save(OmegaConf.create({"model": UPSTREAM[name]}), tmp_path / "upstream.yaml")
    config = load_config(tmp_path / "upstream.yaml")
    with torch.device("meta"):
        model = instantiate_from_config(config.model)
    params = UPSTREAM[name]["params"]
    state = model.state_dict()
    own = {n: tuple(t.shape) for n, t in state.items() if not n.startswith("model_ema.")}
    assert sum(n.startswith(UNET) for n in own) == 686
    assert sum(n.startswith("first_stage_model.") for n in own) == 248
    assert sum(n.startswith("cond_stage_model.") for n in own) == 197
    assert len(own) == 1131
    channels = params["unet_config"]["params"]["in_channels"]
    assert own[f"{UNET}input_blocks.0.0.weight"] == (320, channels, 3, 3)
    assert own[f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_v.weight"] == (1280, 768)
    assert own["first_stage_model.decoder.mid.block_1.conv1.weight"] == (512, 512, 3, 3)
    assert own["cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"] == (77, 768)
    averages = [n for n in state if n.startswith("model_ema.")]
    assert len(averages) == (686 + 2 if params["use_ema"] else 0)
    assert model.scale_factor == 0.18215
    assert model.has_picture_input == (channels == 8)
    assert model.schedule.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=1e-4)
    trains = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trains == ({"model", "cond_stage_model"} if params["cond_stage_trainable"] else {"model"})


def test_upstream_data_sections_build_unmodified(tmp_path):
    """What DreamBooth's and InstructPix2Pix's YAML files say of their data; the folder is told on the command line."""
    for name in ("photos", "pairs"):
        (tmp_path / name).mkdir()
    for name in ("photos/a.png", "photos/b.png", "pairs/0_0.png", "pairs/0_1.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name)
    for path, given in (
        ("ldm.data.personalized.PersonalizedBase", {"data_root": str(tmp_path / "photos"), "class_word": "dog"}),
        ("ldm.data.personalized_edit.PersonalizedBase", {"data_root": str(tmp_path / "pairs"), "class_word": "dog"}),
    ):
        given |= {"source_word": "wolf"} if "edit" in path else {}
        stream = {"size": 64, "set": "train", "per_image_tokens": False, "repeats": 100, **given}
        streams = {"train": {"target": path, "params": stream}}
        streams |= {"reg": {"target": path, "params": {**stream, "reg": True, "repeats": 10}}}
        node = {"batch_size": 1, "num_workers": 2, "wrap": False, **streams}
        data = instantiate_from_config({"target": "main.DataModuleFromConfig", "params": node})
        assert data.streams["instance"].identifier == "sks"
        assert data.streams["reg"].reg
        assert len(data.streams["instance"]) == 100 * len(data.streams["instance"].entries)
    (tmp_path / "pairs" / "metadata.jsonl").write_text(
        '{"input": "0_0.png", "edited": "0_1.png", "instruction": "go"}\n'
    )
    params = {"path": str(tmp_path / "pairs"), "cache_dir": "data/", "min_resize_res": 64, "max_resize_res": 64}
    triplets = instantiate_from_config(
        {"target": "edit_dataset.EditDataset", "params": {**params, "crop_res": 64, "flip_prob": 0.5}}
    )
    assert triplets.item(0)["text"] == "go"


def test_a_package_of_an_extra_is_named_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'instruct2dream\[adam8bit\]'"):
        get_class("bitsandbytes.optim.AdamW8bit")


def test_upstream_scheduler_by_its_old_name():
    schedule = instantiate_from_config(scheduler(10000)).schedule
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(5000) == pytest.approx(0.5, abs=1e-3)
    assert schedule(20000) == pytest.approx(1.0, abs=1e-3)


def test_weight_of_the_regularization_half_is_read():
    node = copy.deepcopy(UPSTREAM["dreambooth v1-finetune_unfrozen"])
    node["params"]["reg_weight"] = 0.25
    with torch.device("meta"):
        assert instantiate_from_config(node).objective.reg_weight == 0.25


def test_ckpt_path_is_loaded_and_an_absent_one_is_named(tmp_path):
    """InstructPix2Pix's train.yaml starts from Stable Diffusion: 4 channels into 8."""
    content = tiny_config(8)
    start = build_tiny(4, seed=4)
    save_checkpoint(tmp_path / "sd.safetensors", start.state_dict(), {})
    content["model"]["target"] = "ldm.models.diffusion.ddpm_edit.LatentDiffusion"
    content["model"]["params"] |= {"use_ema": True, "ckpt_path": str(tmp_path / "sd.safetensors")}
    model = instantiate_from_config(content["model"])
    name = f"{UNET}input_blocks.0.0.weight"
    state = model.state_dict()
    assert torch.equal(state[name][:, :4], start.state_dict()[name])
    assert state[name][:, 4:].abs().max() == 0
    assert torch.equal(state["model_ema.diffusion_modelinput_blocks00weight"], state[name])  # the average starts there
    content["model"]["params"]["ckpt_path"] = "stable_diffusion/models/v1-5-pruned-emaonly.ckpt"
    with pytest.raises(FileNotFoundError, match=r"v1-5-pruned-emaonly\.ckpt"):
        instantiate_from_config(content["model"])


# The three files that say what is installed


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed}


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    here = [line for line in lines if line and ((marker := Requirement(line).marker) is None or marker.evaluate())]
    found = requirements(here)
    assert all(re.fullmatch(r"==[^*,]+", str(r.specifier)) for r in found.values()), "constraints pin exactly"
    return {name: next(iter(r.specifier)).version for name, r in found.items()}


def test_every_dependency_is_pinned_inside_its_range(project, pins):
    base = requirements(project["dependencies"])
    needed = {"torch", "pytorch-lightning", "omegaconf", "transformers", "einops", "kornia", "pillow", "numpy"}
    assert needed | {"safetensors", "instant-clip-tokenizer", "tqdm"} <= set(base)
    for name, requirement in {**base, **requirements(project["optional-dependencies"]["dev"])}.items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is outside {requirement.specifier}"
    for extra in project["optional-dependencies"].values():
        for name, requirement in requirements(extra).items():
            assert name not in pins or pins[name] in requirement.specifier
    assert pins["torch"] == "2.13.0"
    assert not {"torchvision", "gradio", "peft", "bitsandbytes", "wandb"} & set(base)


def test_pins_for_every_python_can_be_installed_on_the_oldest(project):
    """Without a marker a pin must run on the oldest Python; with one, that one must have a pin of its own."""
    from importlib.metadata import PackageNotFoundError, metadata

    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    oldest = {"python_version": "3.10"}
    assert "3.10" in SpecifierSet(project["requires-python"])
    for pin in pinned:
        elsewhere = pin.marker is not None and not pin.marker.evaluate(oldest)
        assert not elsewhere or any(p.name == pin.name and p.marker.evaluate(oldest) for p in pinned if p.marker)
        if pin.marker is None:
            try:
                wants = metadata(pin.name)["Requires-Python"]
            except PackageNotFoundError:  # optional, like taming
                continue
            assert wants is None or SpecifierSet(wants).contains("3.10"), f"{pin} does not run on Python 3.10"


def test_the_conda_environment_installs_the_same_project(project):
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yaml"))
    assert environment["name"] == project["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-c constraints.txt" in pip
    assert any(re.fullmatch(r"-e \.(\[.*\])?", line) for line in pip)
    assert len(pip) == 2, "what is installed is said in pyproject.toml alone"
    (python,) = (entry for entry in conda if entry.startswith("python="))
    version = python.partition("=")[2].strip("=")
    assert SpecifierSet(project["requires-python"]).contains(version)
    assert {entry.split("=")[0] for entry in conda} == {"python", "pip"}
    assert project["requires-python"] == ">=3.10,<3.13"


def test_the_installed_versions_are_the_pinned_ones(pins):
    from importlib.metadata import PackageNotFoundError, version

    for name in ("torch", "transformers", "omegaconf", "safetensors", "pillow"):
        try:
            found = version(name)
        except PackageNotFoundError:  # pragma: no cover
            pytest.fail(f"{name} is not installed")
        assert found.split("+")[0] == pins[name], name


def test_shipped_files_are_found_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "w.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create(
        {"dataset": {"root": "gone"}, "model": {"ckpt_path": "data/w.ckpt", "params": {"x": "${dataset.root}/a"}}}
    )
    found = anchored(config, tmp_path / "root")
    assert found.model.ckpt_path == str(tmp_path / "root" / "data" / "w.ckpt")
    assert found.model.params.x == "gone/a"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.ckpt").touch()
    assert anchored(config, tmp_path / "root").model.ckpt_path == "data/w.ckpt"  # the user's own comes first
