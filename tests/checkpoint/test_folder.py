"""Diffusers folders and bare parts give the same model as the published names."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.read import read_checkpoint
from ldm.cpu.packed import pack
from ldm.models.autoencoder import load_first_stage
from ldm.models.build import load_model
from tests.checkpoint.files import FIRST, TEXT, VAE, build, config, errors, linked
from tests.models.reference import relative


def test_diffusers_folder_gives_the_same_model(folder, reference):
    assert read_checkpoint(folder).format == "diffusers"
    assert max(errors(load_model(folder, config(vocabulary=49408)), reference).values()) < 2e-3


def test_the_loaded_model_is_as_exact_as_its_networks(folder, reference):
    """The networks themselves differ from diffusers' by less than 1e-5 (tests/models); loading must not cost that."""
    model = load_model(folder, config(vocabulary=49408))
    found = errors(model, reference)
    assert max(found.values()) < 1e-5, found
    pack(model.model)  # as ImageEditor does on a CPU
    pack(model.first_stage_model)
    found = errors(model, reference)
    assert max(found.values()) < 1e-5, found


def test_diffusers_folder_prefers_the_plain_file(folder, tmp_path, reference):
    """Stable Diffusion's own folder holds half-precision copies and one of raw weights ("non_ema") beside it."""
    target = linked(folder, tmp_path / "copy")
    unet = target / "unet"
    state = reference[0].state_dict()
    for variant in ("fp16", "bf16", "non_ema", "fp16.non_ema"):
        save_file({n: t + 1 for n, t in state.items()}, unet / f"diffusion_pytorch_model.{variant}.safetensors")
    assert max(errors(load_model(target, config(vocabulary=49408)), reference).values()) < 2e-3


def test_a_folder_without_a_part_says_which_names_are_missing(folder, tmp_path):
    (tmp_path / "unet").symlink_to(folder / "unet")
    with pytest.raises(ValueError, match=r"missing: .*(cond_stage_model|first_stage_model)"):
        load_model(tmp_path, config())


@pytest.mark.parametrize("old_names", [False, True])
def test_bare_first_stage_of_diffusers(tmp_path, lightning_ckpt, raw, reference, old_names):
    state = {n: t.contiguous() for n, t in reference[1].state_dict().items()}
    if old_names:
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            state = {n.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for n, t in state.items()}
        assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, tmp_path / "vae.safetensors")
    model = load_model(lightning_ckpt, config(), vae_ckpt=tmp_path / "vae.safetensors")
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert relative(model.decode_first_stage(z), reference[1].decode(z / 0.18215).sample) < 1e-5
    assert torch.equal(model.state_dict()[FIRST], raw[FIRST] + 1)  # the rest is left alone


def test_bare_first_stage_of_compvis(tmp_path, lightning_ckpt, raw):
    """Like kl-f8 and vae-ft-mse-840000: names without prefix, the discriminator beside them, its own EMA."""
    own = {n[len(VAE) :]: t + 3 for n, t in raw.items() if n.startswith(VAE)}
    others = {"loss.discriminator.main.0.weight": torch.ones(2), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": own | others, "global_step": 1}, tmp_path / "vae.ckpt")
    model = load_model(lightning_ckpt, config(), vae_ckpt=tmp_path / "vae.ckpt")
    for name, tensor in model.state_dict().items():
        if name.startswith(VAE):
            assert torch.equal(tensor, raw[name] + 3), name


def test_first_stage_out_of_a_whole_model(lightning_ckpt, raw):
    model = build(seed=5)
    summary = load_first_stage(model.first_stage_model, str(lightning_ckpt))
    assert torch.equal(model.first_stage_model.encoder.conv_in.weight, raw[f"{VAE}encoder.conv_in.weight"])
    assert "unexpected" not in summary  # the rest of the model is no surprise


def test_a_first_stage_file_without_a_first_stage(tmp_path, lightning_ckpt):
    save_file({"something.weight": torch.ones(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"vae\.safetensors.*missing"):
        load_model(lightning_ckpt, config(), vae_ckpt=tmp_path / "vae.safetensors")


def test_text_encoder_without_its_text_model_level(tmp_path, raw):
    """transformers 5 saves it so; loaded leniently it would stay random, and nothing would say so."""
    state = {n.replace(f"{TEXT}text_model.", TEXT): t for n, t in raw.items()}
    state = {n: t for n, t in state.items() if not n.endswith("position_ids")}
    assert f"{TEXT}embeddings.token_embedding.weight" in state
    torch.save(state, tmp_path / "x.ckpt")
    model = build(seed=5)
    report = model.load_checkpoint(tmp_path / "x.ckpt")
    assert (report.missing, report.unexpected) == ([], [])
    assert all(torch.equal(t, raw[n]) for n, t in model.state_dict().items())


def test_bare_parts_are_told_apart(folder):
    families = {}
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        families[part] = set(read_checkpoint(file).families())
    assert families == {"unet": {"unet"}, "vae": {"first stage"}, "text_encoder": {"text encoder"}}
