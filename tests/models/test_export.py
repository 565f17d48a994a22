"""What is exported is what was there: diffusers computes the same from the folder, and our loader reads both."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from PIL import Image
from transformers import CLIPTextModel

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.inference import EditSettings, ImageEditor
from ldm.models import export as exporting
from ldm.models.build import load_model
from ldm.models.export import export
from ldm.modules.text import tokenize
from tests.conftest import tiny_config


@pytest.fixture(scope="module", params=[8, 4])
def exported(request, tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("export"), tiny_config(request.param)
    torch.manual_seed(0)
    model = instantiate_from_config(config["model"])
    with torch.no_grad():
        for p in model.parameters():  # no layer at zero, and values that fp16 holds exactly
            p.copy_((p + 0.02 * torch.randn_like(p)).half())
    save_checkpoint(folder / "model.ckpt", model.state_dict(), {"config": config, "recipe": {"identifier": "sks"}})
    export(folder / "model.ckpt", folder / "diffusers")
    export(folder / "model.ckpt", folder / "out.safetensors")
    return folder, model.eval()


@torch.no_grad()
def test_diffusers_and_transformers_compute_the_same_from_the_folder(exported):
    folder, model = exported
    g = torch.Generator().manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(folder / "diffusers" / "unet").float()
    z = torch.randn(2, unet.config.in_channels, 16, 16, generator=g)
    t, context = torch.tensor([20, 700]), torch.randn(2, 7, 32, generator=g)
    ours = model.model.diffusion_model(z, t, context)
    assert (unet(z, t, context).sample - ours).norm() / ours.norm() < 1e-5
    vae = AutoencoderKL.from_pretrained(folder / "diffusers" / "vae")
    x = torch.rand(1, 3, 64, 64, generator=g) * 2 - 1
    assert torch.allclose(vae.encode(x).latent_dist.mean, model.encode_first_stage(x).mean, atol=1e-4)
    latent = torch.randn(1, 4, 8, 8, generator=g)
    assert torch.allclose(vae.decode(latent).sample, model.first_stage_model.decode(latent), atol=1e-4)
    assert vae.config.scaling_factor == pytest.approx(model.scale_factor)
    text = CLIPTextModel.from_pretrained(folder / "diffusers" / "text_encoder").float()
    tokens = tokenize(["replace the wolf with a sks dog"])
    states = model.get_learned_conditioning(["replace the wolf with a sks dog"])
    assert torch.allclose(text(tokens).last_hidden_state, states, atol=1e-4)


def test_both_exports_hold_the_weights_bit_for_bit(exported):
    folder, model = exported
    wanted = {k: v for k, v in model.state_dict().items() if "model" in k.split(".")[0] or k.startswith("cond")}
    for form in ("diffusers", "out.safetensors"):
        loaded = load_model(folder / form, None if form.startswith("out") else _config(model)).state_dict()
        different = [k for k, v in wanted.items() if k in loaded and not torch.equal(loaded[k], v)]
        assert not different
        assert len([k for k in wanted if k in loaded]) > 300


def _config(model):
    return OmegaConf.create(tiny_config(model.model.diffusion_model.in_channels))


def test_the_file_keeps_the_recipe_and_is_half_the_size(exported):
    folder, _ = exported
    content = read_checkpoint(folder / "out.safetensors")
    assert content.metadata["recipe"] == {"identifier": "sks"}
    assert {t.dtype for t in content.tensors.values()} == {torch.float16}
    assert (folder / "out.safetensors").stat().st_size < 0.6 * (folder / "model.ckpt").stat().st_size
    index = json.loads((folder / "diffusers" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_what_exists_is_not_overwritten_and_other_endings_are_refused(exported):
    folder, _ = exported
    with pytest.raises(ValueError, match="exists already"):
        export(folder / "model.ckpt", folder / "out.safetensors")
    with pytest.raises(ValueError, match="neither"):
        export(folder / "model.ckpt", folder / "out.bin")


@pytest.mark.parametrize("form", ["out.safetensors", "diffusers"])
def test_what_was_exported_edits_as_the_original_does(tiny_ckpt, tmp_path, form):
    """Up to the rounding of the weights to fp16."""
    export(tiny_ckpt, tmp_path / form)
    config = None if form == "out.safetensors" else OmegaConf.create(tiny_config())
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((64, 64))
    settings = EditSettings(text_scale=3.0, steps=3, resolution=64)
    made = []
    for ckpt, own in ((tiny_ckpt, None), (tmp_path / form, config)):
        editor = ImageEditor.from_checkpoint(ckpt, own, device="cpu", precision="fp32")
        made.append(np.asarray(editor.edit(photo, "make it night", settings, [1])[0]).astype(int))
    assert np.abs(made[0] - np.asarray(photo)).mean() > 20
    assert np.abs(made[0] - made[1]).mean() < 1


def test_the_file_recommends_what_the_checkpoint_does(tiny_model, tmp_path):
    said = {"config": tiny_config(), "edit_defaults": {"steps": 20}, "text_defaults": {"width": 64}, "step": 7}
    save_checkpoint(tmp_path / "model.ckpt", tiny_model.state_dict(), {**said, "other": 1})
    export(tmp_path / "model.ckpt", tmp_path / "out.safetensors")
    metadata = read_checkpoint(tmp_path / "out.safetensors").metadata
    assert {name: metadata.get(name) for name in (*said, "other")} == {**said, "other": None}


@pytest.mark.parametrize("form", ["out.safetensors", "diffusers"])
@pytest.mark.parametrize("part", ["UNet", "first stage"])
def test_an_export_that_computes_something_else_is_refused_and_removed(tiny_ckpt, tmp_path, monkeypatch, form, part):
    published, prefix = exporting.published, {"UNet": "model.", "first stage": "first_stage_model."}[part]

    def damaged(model):
        return {k: v * 1.2 if k.startswith(prefix) else v for k, v in published(model).items()}

    monkeypatch.setattr(exporting, "published", damaged)
    with pytest.raises(ValueError, match=rf"is not what .*tiny\.safetensors.* holds: the {part}"):
        export(tiny_ckpt, tmp_path / form)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_fp16_are_refused(tiny_model, tmp_path):
    state = {k: v * 1e6 if k == "model.diffusion_model.out.2.weight" else v for k, v in tiny_model.state_dict().items()}
    save_checkpoint(tmp_path / "model.ckpt", state, {"config": tiny_config()})
    with pytest.raises(ValueError, match="is not what"):
        export(tmp_path / "model.ckpt", tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_folder_that_could_not_be_written_leaves_nothing(tiny_ckpt, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_ckpt, tmp_path / "diffusers")
    assert not list(tmp_path.iterdir())
