"""Weights in a model: precision, channels, every key accounted for, one copy in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.models.build import load_model
from tests.checkpoint.files import (
    FIRST,
    LAST,
    UNET,
    VAE,
    alphas_cumprod,
    assert_same,
    build,
    config,
    ema_of,
    errors,
    lightning,
    linked,
    small_config,
)

ROOT = Path(__file__).resolve().parents[2]


# How it is put into a model


def test_half_precision_file_and_precisions(tmp_path, raw):
    halves = {n: t.half() if t.is_floating_point() else t for n, t in raw.items()}
    save_file(halves, tmp_path / "half.safetensors")
    for precision, unet, first_stage in (
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16, torch.float32),
    ):
        state = load_model(tmp_path / "half.safetensors", config(), precision=precision).state_dict()
        for name, tensor in state.items():
            kind = {UNET: unet, VAE: first_stage}.get(next((p for p in (UNET, VAE) if name.startswith(p)), ""))
            kind = halves[name].dtype if not halves[name].is_floating_point() else kind or torch.float32
            assert tensor.dtype == kind, (precision, name)
            assert torch.equal(tensor, halves[name].to(kind)), (precision, name)


def test_four_channels_into_eight_adds_zeros_and_says_so(tmp_path, raw):
    start = build(4, seed=3)
    save_file({n: t.clone() for n, t in start.state_dict().items()}, tmp_path / "sd.safetensors")
    model = build(8, seed=5)
    report = model.load_checkpoint(tmp_path / "sd.safetensors")
    weight = model.state_dict()[FIRST]
    assert weight.shape[1] == 8
    assert torch.equal(weight[:, :4], start.state_dict()[FIRST])
    assert weight[:, 4:].abs().max() == 0
    assert "4 new input channels" in report.summary()
    assert FIRST in report.summary()
    assert "zero" in report.summary()
    assert load_model(tmp_path / "sd.safetensors", config()).state_dict()[FIRST][:, 4:].abs().max() == 0


def test_three_channels_into_eight_are_no_beginning_of_an_editor(tmp_path, raw):
    save_file({**raw, FIRST: raw[FIRST][:, :3].clone()}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.weight \(32, 3, 3, 3\) for \(32, 8, 3, 3\)"):
        load_model(tmp_path / "odd.safetensors", config())


def test_eight_channels_into_four_is_an_error(tmp_path, raw):
    save_file(raw, tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.weight \(32, 8, 3, 3\) for \(32, 4, 3, 3\)"):
        load_model(tmp_path / "edit.safetensors", config(4))


def test_missing_misshaped_and_unexpected_are_named(tmp_path, raw):
    state = dict(raw)
    del state[LAST]
    state[f"{VAE}quant_conv.weight"] = torch.ones(8, 9, 1, 1)
    state["model.diffusion_model.surprise"] = torch.ones(2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors") as caught:
        load_model(tmp_path / "x.safetensors", config())
    message = str(caught.value)
    assert f"1 missing: {LAST}" in message
    assert f"{VAE}quant_conv.weight (8, 9, 1, 1) for (8, 8, 1, 1)" in message
    assert "1 unexpected: model.diffusion_model.surprise" in message
    assert "\n" not in message


def test_nothing_is_changed_by_a_checkpoint_that_does_not_fit(tmp_path, raw):
    state = {n: t for n, t in raw.items() if n != LAST}
    save_file(state, tmp_path / "x.safetensors")
    model = build(seed=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="missing"):
        model.load_checkpoint(tmp_path / "x.safetensors")
    assert_same(model.state_dict(), before)


def test_unexpected_alone_loads_with_a_report(tmp_path, raw, caplog):
    save_file(raw | {"control_model.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with caplog.at_level("WARNING"):
        load_model(tmp_path / "x.safetensors", config())
    assert "control_model.weight" in caplog.text


def test_another_noise_schedule_is_refused(tmp_path, raw):
    save_file(raw | {"alphas_cumprod": alphas_cumprod(end=0.02)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors.*noise schedule"):
        load_model(tmp_path / "x.safetensors", config())
    save_file(raw | {"alphas_cumprod": alphas_cumprod(steps=500)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="noise schedule"):
        load_model(tmp_path / "x.safetensors", config())


def test_a_part_in_several_files_is_read_whole_or_refused(folder, tmp_path, reference):
    target = linked(folder, tmp_path / "copy")
    (whole,) = (target / "unet").glob("*.safetensors")
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    shards = [target / "unet" / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, part in zip(shards, (names[:99], names[99:]), strict=True):
        save_file({n: tensors[n] for n in part}, shard)
    assert max(errors(load_model(target, config(vocabulary=49408)), reference).values()) < 2e-3
    shards[0].unlink()
    with pytest.raises(ValueError, match="holds 1 of the 2 files of diffusion_pytorch_model"):
        read_checkpoint(target)


def test_what_a_folders_scheduler_says_of_the_prediction_is_heard(folder, tmp_path):
    target = linked(folder, tmp_path / "copy")
    (target / "scheduler").mkdir()
    said = target / "scheduler" / "scheduler_config.json"
    said.write_text('{"prediction_type": "epsilon"}')
    load_model(target, config(vocabulary=49408))
    said.write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(ValueError, match=r"trained with parameterization 'v'.*set model\.params\.parameterization=v"):
        load_model(target, config(vocabulary=49408))
    for text in ("[", "[]", '{"prediction_type": "flow"}', '{"prediction_type": []}'):
        said.write_text(text)
        with pytest.raises(ValueError, match="does not say what the UNet predicts"):
            read_checkpoint(target)


@pytest.mark.parametrize(("name", "value"), [("scale_factor", 0.5), ("parameterization", "x0")])
def test_weights_that_mean_another_scale_or_prediction_are_refused(tmp_path, raw, name, value):
    carried = OmegaConf.to_container(config(), resolve=True)
    carried["model"]["params"][name] = value
    save_checkpoint(tmp_path / "x.safetensors", raw, {"config": carried})
    with pytest.raises(ValueError, match=rf"trained with {name} .*set model\.params\.{name}={value}"):
        load_model(tmp_path / "x.safetensors", config())
    assert getattr(load_model(tmp_path / "x.safetensors"), name) == value


MEASURE = """
import sys, threading, time, json
import torch
from omegaconf import OmegaConf
import ldm.models.latent_diffusion, ldm.modules.text
from transformers.models.clip.modeling_clip import CLIPTextModel
from ldm.checkpoint.read import read_checkpoint
from ldm.models.build import load_model
from ldm.modules.text import tokenize

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

path, precision = sys.argv[1], sys.argv[2]
config = OmegaConf.create(json.loads(sys.argv[3]))
load_model(sys.argv[4], OmegaConf.create(json.loads(sys.argv[5])))  # lazy imports, thread pools
start = private()
checkpoint = read_checkpoint(path)
held = private() - start
total = sum(t.numel() * t.element_size() for t in checkpoint.tensors.values())
peak, done = [start], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], private())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
model = load_model(path, config, precision=precision)
done.set(); thread.join()
size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
print(json.dumps({"held": held, "total": total, "peak": peak[0] - start, "model": size}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("suffix", "precision"), [(".ckpt", "bf16"), (".safetensors", "fp32")])
def test_memory_of_reading_and_loading(tmp_path, raw, suffix, precision):
    """Reading maps the file; loading keeps one copy in the model's precision (issue: model + 1 GiB at 7.7 GB)."""
    large = small_config()
    large["model"]["params"]["unet_config"]["params"]["model_channels"] = 96
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in instantiate_from_config(large["model"]).state_dict().items()}
    state = {n: torch.rand(s) if not n.endswith("ids") else torch.arange(77)[None] for n, s in shapes.items()}
    state |= {ema_of(n): t + 1 for n, t in state.items() if n.startswith("model.")}
    path = tmp_path / f"big{suffix}"
    torch.save(lightning(state), path) if suffix == ".ckpt" else save_file(state, path)
    assert path.stat().st_size > 150 << 20
    save_file(raw, tmp_path / "small.safetensors")
    args = [path, precision, json.dumps(large), tmp_path / "small.safetensors", json.dumps(small_config())]
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert out.returncode == 0, out.stderr[-2000:]
    seen = json.loads(out.stdout.splitlines()[-1])
    assert seen["total"] > 150 << 20
    assert seen["held"] < 8 << 20
    assert seen["model"] / 2 < seen["peak"] < seen["model"] + (32 << 20), seen
