"""Latents with pictures: they come back from their files as they were put in, and a decoder learns from them."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.read import read_checkpoint
from ldm.config import instantiate_from_config, load_config
from ldm.project import CONFIGS
from ldm.spriteworld.weights.first_stage import first_stage_of
from ldm.spriteworld.weights.latent_pictures import LatentPictures, save_latent_pictures
from ldm.spriteworld.world.dataset import SpritePictures
from ldm.training.run import train

DATA = CONFIGS.parent / "data" / "spriteworld"


def items(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, 16, 16), generator=g) / 127.5 - 1
    return torch.randn(n, 5, 2, 2, generator=g).half().float(), x, torch.randint(1, 9, (n, 1, 16, 16), generator=g)


def test_several_files_are_one_set_and_every_pixel_comes_back(tmp_path):
    kept = [items(4, 0), items(3, 1)]
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for path, part in zip(files, kept, strict=True):
        save_latent_pictures(path, *part)
    found = LatentPictures(files)
    assert len(found) == 7
    wanted = [torch.cat(values) for values in zip(*kept, strict=True)]
    for i in range(7):
        item = found[i]
        assert torch.equal(item["z"], wanted[0][i])
        assert torch.allclose(item["edited"], wanted[1][i], atol=1e-6)
        assert torch.equal(item["weight"], wanted[2][i].float())


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_latent_pictures(path, *items())
    save_file({"z": torch.zeros(1)}, other)
    with pytest.raises(FileNotFoundError, match=r"spriteworld\.py latents"):
        LatentPictures(str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match="holds no latents with pictures"):
        LatentPictures(str(other))
    z, x, weight = items()
    save_latent_pictures(other, z[:, :3], x, weight)
    with pytest.raises(ValueError, match="'z' of different shapes"):
        LatentPictures([str(path), str(other)])
    save_latent_pictures(other, z, x[..., :8], weight)
    with pytest.raises(ValueError, match="'edited' of different shapes"):
        LatentPictures([str(path), str(other)])
    save_latent_pictures(other, z[:2], x, weight)
    with pytest.raises(ValueError, match="as many of each"):
        LatentPictures(str(other))
    other.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable file of latents"):
        LatentPictures(str(other))
    with pytest.raises(ValueError, match="not finite"):
        save_latent_pictures(tmp_path / "c.safetensors", z * 1e6, x, weight)
    assert not (tmp_path / "c.safetensors").exists()
    with pytest.raises(ValueError, match="empty"):
        LatentPictures([])


def decoder_config(files, **training):
    config = load_config(CONFIGS / "spriteworld" / "first-stage-decoder.yaml")
    config.data.params.train.params.files = files
    config.data.params.batch_size = 8
    config.model.params.scheduler_config.params.warm_up_steps = 0
    config.training.update({"precision": "fp32", "sheet_every": 0, "log_every": 1, **training})
    return config


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Pictures with latents that are moved by a constant, as no encoder makes them."""
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    drawn = SpritePictures(16, seed=6)
    x = torch.stack([drawn[i]["edited"] for i in range(16)])
    with torch.no_grad():
        z = first_stage_of(DATA / "first-stage.safetensors").encode(x).mean
    save_latent_pictures(path, z + 0.3, x, torch.ones_like(x[:, :1]))
    return path, z + 0.3, x


def test_a_decoder_learns_to_draw_from_latents_as_they_come(tmp_path, moved):
    path, z, x = moved
    config = decoder_config(str(path), max_steps=12)
    config.model.params.ckpt_path = str(DATA / "first-stage.safetensors")
    config.model.params.ema_decay = 0.5
    before = first_stage_of(DATA / "first-stage.safetensors")
    run = train(config, "decoder", tmp_path)
    after = first_stage_of(run / "checkpoints" / "step=12.safetensors")
    with torch.no_grad():
        errors = [(stage.decode(z) - x).square().mean() for stage in (before, after)]
        assert errors[1] < 0.5 * errors[0]
    kept = read_checkpoint(run / "checkpoints" / "step=12.safetensors").tensors
    assert not [name for name in kept if "loss." in name]


def test_the_average_is_of_the_first_stage_alone():
    config = decoder_config("none", max_steps=1)
    config.model.params.ckpt_path = str(DATA / "first-stage.safetensors")
    model = instantiate_from_config(config.model)
    assert any(name.startswith("loss.discriminator") for name, _ in model.named_parameters())
    assert not [name for name, _ in model.model_ema.named_buffers() if "loss" in name]


def test_latents_that_a_first_stage_cannot_learn_from_are_refused_before_there_is_a_run(tmp_path, moved):
    config = decoder_config(str(moved[0]), max_steps=1)
    config.model.params.ckpt_path = None
    config.model.params.decoder_only = False
    with pytest.raises(ValueError, match="set decoder_only: true"):
        train(config, "refused", tmp_path)
    save_latent_pictures(tmp_path / "other.safetensors", *items())
    config = decoder_config(str(tmp_path / "other.safetensors"), max_steps=1)
    config.model.params.ckpt_path = None
    with pytest.raises(ValueError, match=r"latents of \(5, 2, 2\) .* makes \(32, 2, 2\)"):
        train(config, "refused", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]
