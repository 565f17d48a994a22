"""More features a layer: the same function at first, copies that learn apart, and nothing else accepted."""

import pytest
import torch

from ldm.checkpoint.read import read_checkpoint
from ldm.models.build import config_for
from ldm.project import CONFIGS
from ldm.spriteworld.weights.first_stage import reconstruction_of, widen_first_stage
from ldm.spriteworld.weights.net2wider import net2wider
from ldm.spriteworld.world.dataset import SpritePictures
from tests.spriteworld.test_latent_basis import stage_of

STAGE = CONFIGS.parent / "data" / "spriteworld" / "first-stage.safetensors"


@pytest.fixture(scope="module")
def x():
    drawn = SpritePictures(12, seed=4)
    return torch.stack([drawn[i]["edited"] for i in range(12)])


@pytest.mark.parametrize("widths", [(16, [1, 2]), (8, [3, 2]), (8, [2, 6]), (24, [1, 2])])
def test_a_wider_network_computes_the_same(x, widths):
    torch.manual_seed(0)
    stage, wider = stage_of(3), stage_of(3, ch=widths[0], ch_mult=widths[1])
    for p in stage.parameters():  # normalisations of their own, too
        p.data += 0.05 * torch.randn_like(p)
    with torch.no_grad():
        before = (wider(x) - stage(x)).abs().max()
        net2wider(stage, wider)
        assert before > 0.1
        assert torch.allclose(wider.encode(x).mean, stage.encode(x).mean, atol=1e-4)
        assert torch.allclose(wider(x), stage(x), atol=1e-4)
    assert sum(p.numel() for p in wider.parameters()) > sum(p.numel() for p in stage.parameters())


def test_copies_of_a_feature_learn_apart(x):
    torch.manual_seed(0)
    stage, wider = stage_of(3), stage_of(3, ch=16)
    net2wider(stage, wider)
    (wider(x) - x).square().mean().backward()
    first, second = wider.decoder.up[0].block[0].conv1.weight.grad.unflatten(0, (-1, 2)).unbind(1)
    assert (first - second).norm() > 0.05 * first.norm()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"ch": 12}, "no whole multiple"),
        ({"ch": 4}, "no whole multiple"),
        ({"ch_mult": [2, 2]}, "other layers: 'decoder.up.0.block.0.nin_shortcut"),
        ({"num_res_blocks": 2}, "other layers"),
    ],
)
def test_a_network_that_is_not_the_same_but_wider_is_refused(other, says):
    with pytest.raises(ValueError, match=says):
        net2wider(stage_of(3), stage_of(3, **other))


def test_the_command_writes_a_wider_first_stage(x, tmp_path):
    config = config_for(read_checkpoint(STAGE))["model"]["params"]["ddconfig"]
    now = [config["ch"] * factor for factor in config["ch_mult"]]
    wide = widen_first_stage(STAGE, tmp_path / "wide.safetensors", features=[2 * n for n in now])
    assert torch.allclose(reconstruction_of(wide)(x), reconstruction_of(STAGE)(x), atol=0.02)
    written = config_for(read_checkpoint(wide))["model"]["params"]["ddconfig"]
    assert [written["ch"] * factor for factor in written["ch_mult"]] == [2 * n for n in now]
    for wrong in (now[:-1], [n + 1 for n in now], [0 for _ in now]):
        with pytest.raises(ValueError, match="as many multiples of them are expected"):
            widen_first_stage(STAGE, tmp_path / "no.safetensors", features=wrong)
    assert not (tmp_path / "no.safetensors").exists()
