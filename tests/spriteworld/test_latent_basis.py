"""Another basis for the latents: white without changing a picture, and a diffusion model that follows exactly."""

import copy

import pytest
import torch

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.diffusion.conditioning import Conditioning
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.build import config_for, load_model
from ldm.modules.first_stage_loss import correlation
from ldm.project import CONFIGS
from ldm.spriteworld.weights.conversions import editor_without_picture, follow_first_stage
from ldm.spriteworld.weights.first_stage import (
    first_stage_of,
    latent_scale,
    reconstruction_of,
    whiten_first_stage,
    widen_first_stage,
)
from ldm.spriteworld.weights.latent_basis import affine, follow, latents_of, responses, whiten, widen
from ldm.spriteworld.world.dataset import SpritePictures

DATA = CONFIGS.parent / "data" / "spriteworld"
EDITOR, STAGE = DATA / "editor.safetensors", DATA / "first-stage.safetensors"


@pytest.fixture(scope="module")
def x():
    drawn = SpritePictures(60, seed=3)
    return torch.stack([drawn[i]["edited"] for i in range(60)])


@torch.no_grad()
def rotated(stage, seed=0):
    """A first stage of the same pictures in turned latents, and the turn."""
    c = stage.embed_dim
    turn = torch.linalg.qr(torch.randn(c, c, generator=torch.Generator().manual_seed(seed)))[0]
    stage = copy.deepcopy(stage)
    stage.quant_conv.weight[:c, :, 0, 0] = turn @ stage.quant_conv.weight[:c, :, 0, 0]
    stage.quant_conv.bias[:c] = turn @ stage.quant_conv.bias[:c]
    stage.post_quant_conv.weight[:, :, 0, 0] = stage.post_quant_conv.weight[:, :, 0, 0] @ turn.T
    return stage, turn


@torch.no_grad()
def test_white_latents_give_the_same_pictures(x):
    stage = rotated(first_stage_of(STAGE))[0]
    before, apart = stage(x), correlation(stage.encode(x).mean)
    whiten(stage, x)
    z = stage.encode(x)
    assert correlation(z.mean) < 1e-4 < apart
    assert z.logvar.exp().sqrt().max() < 0.0501
    assert (stage(x) - before).abs().max() < 1e-3


@torch.no_grad()
def test_a_step_in_any_channel_means_as_much_to_the_picture(x):
    x = x[:16]  # their positions are enough samples, and every channel is decoded for each
    stage = rotated(first_stage_of(STAGE))[0]
    before, uneven = stage(x), responses(stage, x)
    whiten(stage, x, 1.0)
    assert (stage(x) - before).abs().max() < 1e-3
    z = latents_of(stage, x)
    assert z.square().mean().sqrt() == pytest.approx(1, abs=0.01)
    after = responses(stage, x, step=0.01)
    size, apart = after.diagonal(), after - torch.diag(after.diagonal())
    there = torch.cov(z.T).diagonal().sqrt() > 0.05  # channels that the decoder hardly looks at are hardly there
    assert there.sum() >= 6
    assert size[there].max() < 3 * size[there].min()
    assert apart[there][:, there].abs().max() < 0.5 * size[there].min()
    squares = torch.linalg.eigvalsh(uneven)  # a turn evens the diagonal out, not these
    assert squares.max() > 3 * squares.min()
    with pytest.raises(ValueError, match="power is 2; 0"):
        whiten(stage, x, 2)


@torch.no_grad()
def test_a_model_that_follows_a_turned_first_stage_computes_the_same_turned(x):
    model = load_model(EDITOR)
    stage, turn = rotated(model.first_stage_model)
    generator = torch.Generator().manual_seed(1)
    z, source = torch.randn(2, 4, stage.embed_dim, 8, 8, generator=generator).unbind(0)
    t, states = torch.tensor([10, 300, 600, 990]), model.get_learned_conditioning(["make it night"] * 4)
    wanted = model.apply_model(z, t, Conditioning(states, source))
    old = model.decode_first_stage(wanted)
    known, found = follow(model, stage, model.scale_factor, x)
    assert known == pytest.approx(1, abs=1e-6)
    assert found == pytest.approx(1, abs=1e-6)

    def turned(values):
        return torch.einsum("ij,bjhw->bihw", turn, values)

    got = model.apply_model(turned(z), t, Conditioning(states, turned(source)))
    assert torch.allclose(got, turned(wanted), atol=2e-3)
    assert torch.allclose(model.decode_first_stage(got), old, atol=2e-2)


def stage_of(channels, **other):
    """A small first stage with random weights."""
    ddconfig = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": channels, "resolution": 64}
    ddconfig |= {"in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0, "num_groups": 4}
    return AutoencoderKL({**ddconfig, **other}, embed_dim=channels).eval()


@torch.no_grad()
def test_a_wider_first_stage_makes_the_same_pictures_and_its_new_channels_can_learn(x):
    torch.manual_seed(0)
    stage, wider = stage_of(3), stage_of(5)
    widen(stage, wider)
    old, new = stage.encode(x), wider.encode(x)
    assert torch.allclose(new.mean[:, :3], old.mean, atol=1e-5)
    assert torch.allclose(new.logvar[:, :3], old.logvar, atol=1e-5)
    assert new.mean[:, 3:].std() > 0.01
    assert torch.allclose(new.logvar[:, 3:].exp().sqrt(), torch.tensor(0.05))
    assert torch.allclose(wider.decode(new.mean), stage.decode(old.mean), atol=1e-5)
    with torch.enable_grad():
        (wider(x[:4]) - x[:4]).square().mean().backward()
    assert wider.decoder.conv_in.weight.grad[:, 3:].abs().max() > 1e-6


def test_a_first_stage_is_widened_to_nothing_else():
    with pytest.raises(ValueError, match="3 channels cannot be widened to one of 3"):
        widen(stage_of(3), stage_of(3))
    with pytest.raises(ValueError, match="cannot be widened to this one: 'decoder"):
        widen(stage_of(3), stage_of(5, ch=16))
    with pytest.raises(ValueError, match="cannot be widened to this one: 'decoder"):
        widen(stage_of(3), stage_of(5, num_res_blocks=2))


@torch.no_grad()
def test_a_model_follows_to_a_wider_first_stage_and_computes_the_same_in_the_old_channels(x):
    model = load_model(EDITOR)
    stage = model.first_stage_model
    c = stage.embed_dim
    ddconfig = config_for(read_checkpoint(STAGE))["model"]["params"]["ddconfig"]
    wider = AutoencoderKL({**ddconfig, "z_channels": c + 4}, embed_dim=c + 4).eval()
    widen(stage, wider)
    generator = torch.Generator().manual_seed(1)
    z, source = torch.randn(2, 4, c, 8, 8, generator=generator).unbind(0)
    t, states = torch.tensor([10, 300, 600, 990]), model.get_learned_conditioning(["make it night"] * 4)
    wanted = model.apply_model(z, t, Conditioning(states, source))
    known, _ = follow(model, wider, model.scale_factor, x)
    assert known == pytest.approx(1, abs=1e-6)

    def more(values):
        return torch.cat([values, torch.randn(4, 4, 8, 8, generator=generator)], 1)

    got = model.apply_model(more(z), t, Conditioning(states, more(source)))
    assert torch.allclose(got[:, :c], wanted, atol=2e-3)
    assert got.shape[1] == c + 4


def test_an_affine_relation_is_found_and_its_rest_is_told():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 3, generator=generator).double()
    matrix, offset = torch.randn(2, 3, generator=generator).double(), torch.tensor([1.0, -2.0]).double()
    found = affine(a, a @ matrix.T + offset)
    assert torch.allclose(found[0], matrix)
    assert torch.allclose(found[1], offset)
    assert found[2] == pytest.approx(1)
    noise = torch.randn(500, 2, generator=generator).double()
    assert affine(a, noise)[2] < 0.05


def test_what_cannot_follow_is_refused(x):
    model = load_model(EDITOR)
    stage = model.first_stage_model
    model.parameterization = "eps"
    with pytest.raises(ValueError, match="predicts x0"):
        follow(model, stage, 1.0, x)
    model.parameterization = "x0"
    with pytest.raises(ValueError, match="latent of every 2 pixels, the model's of every 8"):
        follow(model, stage_of(16), 1.0, x)


def test_the_commands_write_weights_that_load(tmp_path):
    wide = widen_first_stage(STAGE, tmp_path / "wide.safetensors", 40)
    assert first_stage_of(wide).embed_dim == 40
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.allclose(reconstruction_of(wide)(x), reconstruction_of(STAGE)(x), atol=0.02)
    assert "100.0% of the old" in follow_first_stage(EDITOR, wide, tmp_path / "editor.safetensors", 60)
    assert load_model(tmp_path / "editor.safetensors").latent_channels == 40
    checkpoint = read_checkpoint(wide)
    del checkpoint.metadata["config"]["model"]["params"]["ddconfig"]["num_groups"]  # another default
    save_checkpoint(tmp_path / "other.safetensors", checkpoint.tensors, checkpoint.metadata)
    with pytest.raises(ValueError, match="divisible by num_groups"):
        follow_first_stage(EDITOR, tmp_path / "other.safetensors", tmp_path / "editor.safetensors", 60)
    white, editor = tmp_path / "white.safetensors", tmp_path / "editor.safetensors"
    whiten_first_stage(STAGE, white, 0.0, 60)
    assert latent_scale(white) == pytest.approx(1, abs=0.1)
    line = follow_first_stage(EDITOR, white, editor, 60)
    assert "100.0% of the old" in line
    model = load_model(editor)
    stage = first_stage_of(white)
    assert latents_of(model.first_stage_model, torch.zeros(1, 3, 64, 64)).equal(
        latents_of(stage, torch.zeros(1, 3, 64, 64))
    )
    assert model.scale_factor == pytest.approx(latent_scale(white), abs=1e-5)
    assert read_checkpoint(editor).metadata["edit_defaults"]


def test_an_editor_without_its_picture_computes_what_it_does_where_the_picture_is_dropped(tmp_path):
    path = editor_without_picture(EDITOR, tmp_path / "text.safetensors")
    editor, text = load_model(EDITOR), load_model(path)
    assert not text.has_picture_input
    assert "edit_defaults" not in read_checkpoint(path).metadata
    z, t = torch.randn(2, editor.latent_channels, 8, 8), torch.tensor([900, 20])
    with torch.no_grad():
        states = editor.get_learned_conditioning(["a dog on the beach", ""])
        dropped = editor.apply_model(z, t, Conditioning(states, torch.zeros_like(z)))
        seen = editor.apply_model(z, t, Conditioning(states, torch.randn_like(z)))
        bare = text.apply_model(z, t, Conditioning(text.get_learned_conditioning(["a dog on the beach", ""]), None))
    assert (bare - dropped).abs().max() < 1e-4
    assert (seen - dropped).abs().max() > 0.1
    with pytest.raises(ValueError, match="an editor is expected"):
        editor_without_picture(path, tmp_path / "again.safetensors")
