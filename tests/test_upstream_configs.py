"""Configs of CompVis, DreamBooth and InstructPix2Pix build unmodified."""

import copy
import sys

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint.save import save_checkpoint
from ldm.config import get_class, instantiate_from_config, load_config
from tests.config_nodes import OLD, PAIR, personalization, scheduler, upstream
from tests.conftest import build_tiny, tiny_config

UNET = "model.diffusion_model."


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
