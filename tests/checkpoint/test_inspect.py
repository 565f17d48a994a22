"""What a checkpoint is said to hold, and which configs it is said to fit."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ldm.checkpoint.diffusers_format import UNET
from ldm.checkpoint.inspect import describe, fits, misfits
from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.modules.ema import ema_name
from tests.conftest import tiny_config

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "inspect_checkpoint.py"


def written(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def with_averages(tensors, share=1.0):
    """The weights with the averages of a share of the UNet's, as InstructPix2Pix's file has them."""
    names = [name for name in tensors if name.startswith(UNET)]
    chosen = names[: int(share * len(names))]
    return tensors | {f"model_ema.{ema_name(name.removeprefix('model.'))}": tensors[name].clone() for name in chosen}


def test_a_checkpoint_is_described_by_what_is_in_it(tmp_path, tiny_model):
    recipe = {"recipe": {"identifier": "sks", "class_word": "dog\n  step: 900"}, "step": 500}
    save_checkpoint(tmp_path / "a.safetensors", with_averages(tiny_model.state_dict()), recipe)
    said = describe(read_checkpoint(tmp_path / "a.safetensors"))
    for part in ("UNet input channels: 8", "UNet weights: raw and EMA", "step: 500", "identifier: sks", "float32"):
        assert part in said
    assert not [line for line in said.splitlines() if line.startswith("  step: 900")]
    parameters = sum(p.numel() for p in tiny_model.first_stage_model.parameters()) / 1e6
    (line,) = (line for line in said.splitlines() if line.strip().startswith("first stage"))
    assert f"{parameters:.2f} M" in line


def test_a_checkpoint_fits_its_own_config_and_no_other(tmp_path, tiny_ckpt):
    checkpoint = read_checkpoint(tiny_ckpt)
    assert fits(checkpoint, written(tmp_path / "own.yaml", tiny_config())) == (True, "")
    wide = tiny_config()
    wide["model"]["params"]["unet_config"]["params"]["model_channels"] = 64
    fine, why = fits(checkpoint, written(tmp_path / "wide.yaml", wide))
    assert not fine
    assert "mismatched (like model.diffusion_model." in why
    for other in ({"model": 5}, {"training": {"max_steps": 3}}):
        assert fits(checkpoint, written(tmp_path / "none.yaml", other)) is None


def test_every_key_that_does_not_fit_is_named(tmp_path, tiny_model):
    state = dict(tiny_model.state_dict())
    own = written(tmp_path / "own.yaml", tiny_config())
    save_checkpoint(tmp_path / "a.safetensors", state, {})
    assert misfits(read_checkpoint(tmp_path / "a.safetensors"), own) == []
    gone = sorted(name for name in state if name.startswith(UNET))[:9]
    for name in gone:
        del state[name]
    bent = "model.diffusion_model.out.2.bias"
    state[bent], state["model.diffusion_model.more"] = torch.zeros(3), torch.zeros(1)
    save_checkpoint(tmp_path / "b.safetensors", state, {})
    found = misfits(read_checkpoint(tmp_path / "b.safetensors"), own)
    assert found[:9] == [f"missing {name}" for name in gone]
    assert [line.split()[:2] for line in found[9:]] == [
        ["mismatched", bent],
        ["unexpected", "model.diffusion_model.more"],
    ]
    with pytest.raises(ValueError, match=r"and 4 more.* --keys lists every key"):
        tiny_model.load_checkpoint(tmp_path / "b.safetensors")
    assert misfits(read_checkpoint(tmp_path / "a.safetensors"), written(tmp_path / "none.yaml", {"model": 5})) == []


@pytest.mark.parametrize(("share", "fine"), [(1.0, True), (0.5, False)])
def test_half_of_the_averages_do_not_fit(tmp_path, tiny_model, share, fine):
    save_checkpoint(tmp_path / "a.safetensors", with_averages(tiny_model.state_dict(), share), {})
    found = fits(read_checkpoint(tmp_path / "a.safetensors"), written(tmp_path / "own.yaml", tiny_config()))
    assert found[0] == fine
    assert fine or "EMA" in found[1]
    lost = misfits(read_checkpoint(tmp_path / "a.safetensors"), tmp_path / "own.yaml")
    averages = sum(name.startswith(UNET) for name in tiny_model.state_dict())
    assert len(lost) == (0 if fine else averages - averages // 2)
    assert all(line.startswith("missing model_ema.diffusion_model") for line in lost)


def test_weights_that_mean_something_else_do_not_fit(tmp_path, tiny_model):
    own = written(tmp_path / "own.yaml", tiny_config())
    carried = tiny_config()
    carried["model"]["params"]["parameterization"] = "v"
    save_checkpoint(tmp_path / "v.safetensors", tiny_model.state_dict(), {"config": carried})
    fine, why = fits(read_checkpoint(tmp_path / "v.safetensors"), own)
    assert not fine
    assert "parameterization 'v'" in why
    other = torch.linspace(0.99, 0.1, 1000)
    save_checkpoint(tmp_path / "abar.safetensors", {**tiny_model.state_dict(), "alphas_cumprod": other}, {})
    fine, why = fits(read_checkpoint(tmp_path / "abar.safetensors"), own)
    assert not fine
    assert "noise schedule" in why
    nothing = written(tmp_path / "nothing.yaml", {"model": {"target": "torch.nn.Identity"}})
    assert fits(read_checkpoint(tmp_path / "v.safetensors"), nothing) == (
        False,
        "no tensor of the file has a place in it",
    )


def test_the_command_says_what_a_file_holds_and_what_it_fits(tmp_path, tiny_ckpt, monkeypatch, capsys):
    own = written(tmp_path / "own.yaml", tiny_config())
    wide = tiny_config()
    wide["model"]["params"]["unet_config"]["params"]["model_channels"] = 64
    wide = written(tmp_path / "wide.yaml", wide)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inspect_checkpoint.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return left.value.code, *capsys.readouterr()

    code, out, _ = run(tiny_ckpt, "--configs", own, wide)
    assert code == 0
    assert "UNet input channels: 8" in out
    assert f"  fits {own}\n" in out
    assert f"  does not fit {wide}: " in out
    keys = run(tiny_ckpt, "--configs", own, wide, "--keys")[1].splitlines()
    assert "    mismatched model.diffusion_model.out.2.weight" in "\n".join(keys)
    assert keys.index(f"  fits {own}") == next(i for i, line in enumerate(keys) if "does not fit" in line) - 1
    code, out, err = run(tmp_path / "gone.ckpt")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "gone.ckpt" in err


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("unet_config.params.num_heads", 0, "num_heads 0"),
        ("unet_config.params.num_heads", -4, "num_heads -4"),
        ("unet_config.params.model_channels", -96, "negative dimension"),
        ("first_stage_config.params.ddconfig.z_channels", -1, "negative dimension"),
        ("cond_stage_config.params.text_config.hidden_act", "foo", "foo"),
        ("cond_stage_config.params.text_config.hidden_size", "abc", "hidden_size"),
        ("cond_stage_config.params.max_length", 1, "a text of 1 tokens"),
    ],
)
def test_values_that_no_network_can_have_are_one_line(path, value, says):
    config = OmegaConf.create(tiny_config()["model"])
    OmegaConf.update(config, f"params.{path}", value)
    with torch.device("meta"), pytest.raises(ValueError, match=says) as caught:
        instantiate_from_config(config)
    assert "\n" not in str(caught.value)
