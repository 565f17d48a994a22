"""Another basis for the latents: white without changing a picture, and a diffusion model that follows exactly."""

import copy

import pytest
import torch

from ldm.checkpoint import read_checkpoint
from ldm.diffusion.conditioning import Conditioning
from ldm.evaluation import spriteworld_jobs as jobs
from ldm.models.build import CONFIGS, load_model
from ldm.models.latent_basis import affine, follow, latents_of, responses, whiten
from ldm.modules.reconstruction import correlation
from ldm.spriteworld.dataset import SpritePictures

DATA = CONFIGS.parents[1] / "data" / "spriteworld"
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
    stage = rotated(jobs.first_stage_of(STAGE))[0]
    before, apart = stage(x), correlation(stage.encode(x).mean)
    whiten(stage, x)
    z = stage.encode(x)
    assert correlation(z.mean) < 1e-4 < apart
    assert z.logvar.exp().sqrt().max() < 0.0501
    assert (stage(x) - before).abs().max() < 1e-3


@torch.no_grad()
def test_a_step_in_any_channel_means_as_much_to_the_picture(x):
    stage = rotated(jobs.first_stage_of(STAGE))[0]
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
    assert uneven.diagonal().max() > 3 * uneven.diagonal().min()
    with pytest.raises(ValueError, match="power is 2; 0"):
        whiten(stage, x, 2)


@torch.no_grad()
def test_a_model_that_follows_a_turned_first_stage_computes_the_same_turned(x):
    model = load_model(EDITOR)
    stage, turn = rotated(model.first_stage_model)
    generator = torch.Generator().manual_seed(1)
    z, source = torch.randn(2, 4, 16, 8, 8, generator=generator).unbind(0)
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
    other = copy.deepcopy(stage)
    other.embed_dim = 4
    with pytest.raises(ValueError, match="4 channels, the model 16"):
        follow(model, other, 1.0, x)


def test_the_two_commands_write_weights_that_load(tmp_path):
    white, editor = tmp_path / "white.safetensors", tmp_path / "editor.safetensors"
    jobs.whiten_first_stage(STAGE, white, 0.0, 60)
    assert jobs.latent_scale(white) == pytest.approx(1, abs=0.1)
    said = jobs.follow_first_stage(EDITOR, white, editor, 60)
    assert "100.0% of the old" in said
    model = load_model(editor)
    stage = jobs.first_stage_of(white)
    assert latents_of(model.first_stage_model, torch.zeros(1, 3, 64, 64)).equal(
        latents_of(stage, torch.zeros(1, 3, 64, 64))
    )
    assert model.scale_factor == pytest.approx(jobs.latent_scale(white), abs=1e-5)
    assert read_checkpoint(editor).metadata["edit_defaults"]
