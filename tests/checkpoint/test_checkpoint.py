"""Checkpoints of every format: what is read, what is reported, what is refused, and that nothing in a file runs."""

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.cpu.packed import pack
from ldm.diffusion.conditioning import Conditioning
from ldm.files import fingerprint
from ldm.models.autoencoder import load_first_stage
from ldm.models.build import load_model
from ldm.modules.text import tokenize
from tests.conftest import randomize, tiny_config
from tests.models.reference import diffusers_unet, diffusers_vae, relative, transformers_text

ROOT = Path(__file__).resolve().parents[2]
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
LAST = "model.diffusion_model.out.2.bias"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


class EarlyStopping:
    """Stands for the callback classes that Lightning 1.x writes as dictionary keys."""


def small_config(in_channels: int = 8, vocabulary: int = 514) -> dict:
    content = tiny_config(in_channels)
    content["model"]["params"]["cond_stage_config"]["params"]["text_config"]["vocab_size"] = vocabulary
    return content


def config(in_channels: int = 8, vocabulary: int = 514):
    return OmegaConf.create(small_config(in_channels, vocabulary))


def build(in_channels: int = 8, seed: int = 5):
    return randomize(instantiate_from_config(config(in_channels)["model"]), seed).eval()


def alphas_cumprod(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> torch.Tensor:
    betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    return torch.from_numpy(np.cumprod(1 - betas)).float()


def ema_of(name: str) -> str:
    return "model_ema." + name[len("model.") :].replace(".", "")


@pytest.fixture(scope="module")
def raw() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in build(seed=0).state_dict().items()}


@pytest.fixture(scope="module")
def published(raw) -> dict[str, torch.Tensor]:
    """Everything that a published file holds: weights, averages (each 1 larger), schedule, loss."""
    state = dict(raw)
    state |= {ema_of(n): t + 1 for n, t in raw.items() if n.startswith("model.")}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int)}
    state |= {"alphas_cumprod": alphas_cumprod(), "betas": torch.rand(1000), "logvar": torch.zeros(1000)}
    state |= {"first_stage_model.loss.logvar": torch.zeros(())}
    return state


def lightning(state: dict[str, torch.Tensor]) -> dict:
    moments = {"step": 3, "exp_avg": torch.ones(3), "exp_avg_sq": np.float32(2.0)}
    return {
        "epoch": 2,
        "global_step": 22000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(state),
        "callbacks": {EarlyStopping: {"best_model_score": np.float64(0.25), "monitor": "val/loss", "dirpath": "x"}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "lr_lambdas": [None], "done": {1, 2}}],
    }


@pytest.fixture(scope="module")
def lightning_ckpt(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lightning") / "instruct-pix2pix-00-22000.ckpt"
    torch.save(lightning(published), path)
    return path


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


# What is read


def test_lightning_file_is_read_whole(lightning_ckpt, published):
    checkpoint = read_checkpoint(lightning_ckpt)
    assert_same(checkpoint.tensors, published)
    assert checkpoint.metadata["global_step"] == 22000
    assert checkpoint.metadata["pytorch-lightning_version"] == "1.4.2"
    assert checkpoint.has_ema
    sizes = {family: len(tensors) for family, tensors in checkpoint.families().items()}
    n = sum(name.startswith("model.") for name in published)
    assert sizes["unet"] == n
    assert sizes["unet (EMA)"] == n + 2
    assert sizes["schedule"] == 3
    assert sizes["first stage"] > 0
    assert sizes["text encoder"] > 0


@pytest.mark.parametrize(("weights", "added", "used"), [("raw", 0, "raw"), ("ema", 1, "ema"), ("auto", 1, "ema")])
def test_raw_and_ema_are_chosen(lightning_ckpt, raw, weights, added, used):
    model = build(seed=5)
    report = model.load_checkpoint(lightning_ckpt, weights)
    assert (report.weights, report.missing, report.unexpected, report.mismatched) == (used, [], [], [])
    for name, tensor in model.state_dict().items():
        expected = raw[name] + added if name.startswith("model.") else raw[name]
        assert torch.equal(tensor, expected), name


def test_a_loaded_model_owns_its_weights(lightning_ckpt):
    """None is a view of the mapped file, which may be replaced or deleted while the model is in use."""
    checkpoint = read_checkpoint(lightning_ckpt)
    mapped = {t.untyped_storage().data_ptr() for t in checkpoint.tensors.values()}
    for weights in ("raw", "ema"):
        state = load_model(checkpoint, config(), weights=weights).state_dict()
        assert not mapped & {t.untyped_storage().data_ptr() for t in state.values()}


def test_load_model_takes_ema_by_itself(lightning_ckpt, raw):
    model = load_model(lightning_ckpt, config())
    state = model.state_dict()
    assert torch.equal(state[FIRST], raw[FIRST] + 1)
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert torch.equal(load_model(lightning_ckpt, config(), weights="raw").state_dict()[FIRST], raw[FIRST])


def test_auto_without_ema_is_raw(tmp_path, raw):
    save_file(raw, tmp_path / "raw.safetensors")
    assert build(seed=5).load_checkpoint(tmp_path / "raw.safetensors").weights == "raw"


def test_ema_that_is_not_there_is_an_error(tmp_path, raw):
    save_file(raw, tmp_path / "raw.safetensors")
    with pytest.raises(ValueError, match="EMA weights missing"):
        load_model(tmp_path / "raw.safetensors", config(), weights="ema")


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_ema_that_is_half_there_is_an_error_and_never_mixed(tmp_path, published, weights):
    half = {n: t for n, t in published.items() if not n.startswith("model_ema.diffusion_modeloutput_blocks")}
    torch.save(lightning(half), tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match=r"EMA weights missing .*output_blocks.*weights: raw"):
        load_model(tmp_path / "half.ckpt", config(), weights=weights)
    load_model(tmp_path / "half.ckpt", config(), weights="raw")


def test_unknown_choice_of_weights(lightning_ckpt):
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        build().load_checkpoint(lightning_ckpt, "best")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_format_reads_equal(tmp_path, published, zipped, protocol):
    content = lightning(published)
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert_same(checkpoint.tensors, published)
    assert checkpoint.metadata["global_step"] == 22000


def test_bare_state_dict_and_safetensors_read_equal(tmp_path, published):
    torch.save(published, tmp_path / "bare.bin")
    save_file(published, tmp_path / "x.safetensors")
    assert_same(read_checkpoint(tmp_path / "bare.bin").tensors, published)
    assert_same(read_checkpoint(tmp_path / "x.safetensors").tensors, published)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_and_layout_of_tensor(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "same storage": base[2],
        "expanded": torch.tensor([3.0]).expand(4, 2),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    kinds = ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    state |= {kind: torch.tensor([0, 1, 1]).to(getattr(torch, kind)) for kind in kinds}
    torch.save({"state_dict": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "x.pt").tensors, {n: t.detach() for n, t in state.items()})


def test_safetensors_are_told_whatever_the_length_of_their_header(tmp_path):
    """The file begins with that length: some begin with the byte 0x80 as pickles do, or with the PK of a zip."""
    path = tmp_path / "x.safetensors"
    for first in (b"\x80", b"PK"):
        for n in range(0, 30000, 8):
            header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"a":"%s"}}' % (b"x" * n)
            header += b" " * (-len(header) % 8)
            length = struct.pack("<Q", len(header))
            if length.startswith(first):
                break
        assert length.startswith(first)
        path.write_bytes(length + header + struct.pack("<f", 2.5))
        assert read_checkpoint(path).tensors["w"].tolist() == [2.5]


def test_names_do_not_decide_the_format(tmp_path, raw):
    save_file(raw, tmp_path / "wrong.ckpt")
    torch.save({"state_dict": raw}, tmp_path / "wrong.safetensors")
    assert read_checkpoint(tmp_path / "wrong.ckpt").format == "safetensors"
    assert_same(read_checkpoint(tmp_path / "wrong.safetensors").tensors, raw)


# The diffusers folder, and parts by themselves


@pytest.fixture(scope="module")
def reference():
    return randomize(diffusers_unet(8), 11), randomize(diffusers_vae(), 12), randomize(transformers_text(), 13)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("diffusers")
    for part, name in zip(reference, ("unet", "vae", "text_encoder"), strict=True):
        part.save_pretrained(path / name, safe_serialization=True)
    return path


def errors(model, reference) -> dict[str, float]:
    unet, vae, encoder = reference
    z, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 77, 32)
    picture, x = torch.randn(2, 4, 8, 8), torch.rand(1, 3, 64, 64) * 2 - 1
    words = ["turn the wolf into a sks dog"]
    with torch.no_grad():
        eps = model.apply_model(z, t, Conditioning(context, picture))
        states = encoder(input_ids=tokenize(words)).last_hidden_state
        return {
            "eps": relative(eps, unet(torch.cat([z, picture], 1), t, context).sample),
            "mode": relative(model.encode_first_stage(x).mode(), vae.encode(x).latent_dist.mode()),
            "picture": relative(model.decode_first_stage(z), vae.decode(z / 0.18215).sample),
            "states": relative(model.get_learned_conditioning(words), states),
        }


def linked(folder, target):
    """A copy of a diffusers folder that may be changed."""
    for part in ("unet", "vae", "text_encoder"):
        (target / part).mkdir(parents=True)
        for file in (folder / part).glob("*.safetensors"):
            (target / part / file.name).symlink_to(file)
    return target


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


# Saving, telling apart


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_saved_checkpoints_come_back(tmp_path, raw, suffix):
    path = tmp_path / f"x{suffix}"
    metadata = {"config": small_config(), "identifier": "sks", "steps": 800}
    save_checkpoint(path, raw, metadata)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, raw)
    assert {k: checkpoint.metadata[k] for k in metadata} == metadata
    assert torch.equal(load_model(path).state_dict()[FIRST], raw[FIRST])  # the config inside is used
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_saving_is_all_or_nothing(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"x{suffix}"
    save_checkpoint(path, {"w": torch.ones(3)}, {"steps": 1})
    before = path.read_bytes()

    def failing(*args, **kwargs):
        target = next(a for a in args if isinstance(a, (str, Path)))
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", failing)
    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"w": torch.zeros(3)}, {"steps": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "y.safetensors", {"w": torch.zeros(3)}, {"bad": object()})
    with pytest.raises(ValueError, match=r"end in \.safetensors or \.ckpt"):
        save_checkpoint(tmp_path / "y.pth", {"w": torch.zeros(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_fingerprint_tells_checkpoints_apart(tmp_path, raw, folder):
    first, second, third = (tmp_path / f"{n}.safetensors" for n in "abc")
    changed = {n: t.clone() for n, t in raw.items()}
    changed[LAST][0] += 1e-3
    save_file(raw, first)
    save_file(raw, second)
    save_file(changed, third)
    assert fingerprint(first) == fingerprint(second) == fingerprint(first)
    assert fingerprint(first) != fingerprint(third)
    assert len(fingerprint(first)) == 16
    assert fingerprint(folder) == fingerprint(folder) != fingerprint(first)


def test_fingerprint_of_a_large_file_reads_little_and_sees_a_training_step(tmp_path):
    """A training step changes every weight: any block that is read tells."""
    path = tmp_path / "large"
    data = np.random.default_rng(0).integers(0, 256, 80 << 20, dtype=np.uint8)
    data.tofile(path)
    before = fingerprint(path)
    assert before == fingerprint(path)
    data[::4096] ^= 1
    data.tofile(path)
    assert fingerprint(path) != before
    for place in (5, -5):
        data[place] ^= 1
        data.tofile(path)
        after = fingerprint(path)
        data[place] ^= 1
        data.tofile(path)
        assert fingerprint(path) != after


# Files that are no checkpoints


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint and touch every value in it."""
    tensors = read_checkpoint(path).tensors
    for value in tensors.values():
        value.sum()
    return tensors


def refused(path: Path, error: type[Exception] = ValueError) -> str:
    """Read what must be refused; return the message, one line that names the file, without that name."""
    with pytest.raises(error) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message, message
    assert "\n" not in message, message
    return message.replace(str(path), "")


def quiet_read(path: Path) -> dict[str, torch.Tensor] | None:
    """Read; return the tensors, or None if the file is refused in the proper way. Nothing else may come."""
    try:
        return read_all(path)
    except ValueError:
        refused(path)
        return None


def zip_of(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


NO_CHECKPOINTS = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><title>Just a moment</title></html>", "web page"),
    "html after a line": (b"\n\n <html lang='en'>", "web page"),
    "xml error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7703807346\n", "LFS pointer"),
    "text": (b"Not Found", "neither"),
    "one byte": (b"P", "neither"),
    "json": (b'{"error": "Repository not found"}', "neither"),
    "number": (pickle.dumps(3, protocol=2), "no PyTorch checkpoint"),
    "zip signature only": (b"PK\x03\x04", "truncated"),
    "pickle opcode only": (b"\x80", "truncated"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints(tmp_path, name):
    content, said = NO_CHECKPOINTS[name]
    (tmp_path / "x.ckpt").write_bytes(content)
    assert said in refused(tmp_path / "x.ckpt")


def test_absent_folder_without_parts_and_other_archives(tmp_path):
    refused(tmp_path / "absent.ckpt", FileNotFoundError)
    (tmp_path / "unet").mkdir()
    assert "diffusers" in refused(tmp_path)
    zip_of(tmp_path / "letter.ckpt", {"word/document.xml": b"<document/>"})
    assert "zip archive" in refused(tmp_path / "letter.ckpt")
    zip_of(tmp_path / "two.ckpt", {"a/data.pkl": b"N.", "b/data.pkl": b"N."})
    refused(tmp_path / "two.ckpt")
    zip_of(tmp_path / "none.ckpt", {"archive/data.pkl": b"\x80\x02N."})
    assert "not a dictionary" in refused(tmp_path / "none.ckpt")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.ckpt")
    assert "not a dictionary" in refused(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "hollow.ckpt")
    assert "no tensors" in refused(tmp_path / "hollow.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    assert "not a dictionary" in refused(tmp_path / "tensor.ckpt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_anywhere(tmp_path, kind):
    whole = tmp_path / "whole"
    state = {"a.weight": torch.rand(20, 7), "b.weight": torch.rand(11).half()}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(lightning(state), whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    assert len(read_checkpoint(whole).tensors) == 2
    path = tmp_path / "x.ckpt"
    offsets = {*range(40), *range(40, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}
    for offset in sorted(offsets):
        path.write_bytes(data[:offset])
        refused(path)


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x02}", b"\xff\0\0\0\0\0\0\0{"])
def test_random_bytes(tmp_path, head):
    path = tmp_path / "x.ckpt"
    for seed in range(40):
        path.write_bytes(head + np.random.default_rng(seed).bytes(300))
        refused(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_crash(tmp_path, kind):
    """One bit changed: it may still read (a weight changed), or is refused; nothing else."""
    whole, path = tmp_path / "whole", tmp_path / "x.ckpt"
    state = {"a.weight": torch.rand(2, 3)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save({"state_dict": state}, whole, _use_new_zipfile_serialization=kind == "zip")
    data = bytearray(whole.read_bytes())
    random = np.random.default_rng(1)
    for offset in sorted(random.choice(len(data), min(len(data), 250), replace=False)):
        damaged = data.copy()
        damaged[offset] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        assert all(value.numel() < 1000 for value in (quiet_read(path) or {}).values())


def lying(header: dict | bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def with_ours(metadata: str) -> bytes:
    return lying({"__metadata__": {"instruct2dream": metadata}, **entry([4], [0, 16])})


LYING_SAFETENSORS = {
    "longer than the file": lying(entry([4], [0, 16]), length=1 << 40),
    "data beyond the end": lying(entry([400], [0, 1600])),
    "shape larger than data": lying(entry([1 << 40], [0, 16])),
    "backwards": lying(entry([4], [16, 0])),
    "negative": lying(entry([-4], [0, 16])),
    "overflow": lying(entry([1 << 62, 4], [0, 16])),
    "unknown type": lying(entry([4], [0, 16], "F7")),
    "no JSON": lying(b"{ this is no JSON "),
    "a list": lying(b'{"w": [1, 2]}   '),
    "our metadata no JSON": with_ours("{"),
    "our metadata a list": with_ours("[1]"),
    "our metadata a number": with_ours("3"),
    "our metadata deep": with_ours("[" * 200000),
}


@pytest.mark.parametrize("name", LYING_SAFETENSORS)
def test_lying_safetensors(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(LYING_SAFETENSORS[name])
    refused(tmp_path / "x.safetensors")


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert "compressed archive" in refused(tmp_path / "packed.ckpt")


@pytest.mark.parametrize("entry_name", ["archive/data.pkl", "archive/byteorder"])
def test_an_archive_that_unpacks_a_thousandfold_is_refused(tmp_path, entry_name):
    """The pickle itself compressed, or what is read beside it: it is never unpacked."""
    path = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(entry_name, "w") as stream,
    ):
        stream.write(b"\x80\x02")
        for _ in range(8):
            stream.write(b"N0" * (2 << 20))
        stream.write(b"N.")
    if entry_name != "archive/data.pkl":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data.pkl", dump({}))
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


# Hostile pickles: nothing runs


class Evil:
    """Pickled, it is a call of ``function(*args)``; unpickled by ``pickle`` itself, the call is made."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Storage:
    """Pickled by ``dump``, it is a stored array of a claimed length, name and type."""

    def __init__(self, numel=4, key="0", kind=torch.FloatStorage, tag="storage"):
        self.saved_id = (tag, kind, key, "cpu", numel)


def tensor(*args: object) -> Evil:
    """Pickled by ``dump``, it is a tensor of these arguments: storage, offset, size, stride."""
    return Evil(torch._utils._rebuild_tensor_v2, *args, False, OrderedDict())


HONEST = tensor(Storage(), 0, (4,), (1,))


def dump(content: object, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.saved_id if isinstance(obj, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol).dump(content)
    return out.getvalue()


CONTAINERS = ("zip", "legacy")
FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def contained(path: Path, program: bytes, container: str, keys: tuple[str, ...] = ("0",)) -> Path:
    """Write a pickle program as a checkpoint with one stored array "0" of four floats."""
    if container == "zip":
        zip_of(path, {"archive/data.pkl": program, "archive/data/0": FLOATS, "archive/version": b"3\n"})
    elif container == "legacy":
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
        tail = [struct.pack("<q", 4) + FLOATS for _ in keys]
        path.write_bytes(b"".join([*head, program, pickle.dumps(list(keys), 2), *tail]))
    else:
        path.write_bytes(program)
    return path


def places(evil: object) -> dict[str, dict]:
    weights = {"w": torch.arange(4.0)}
    return {
        "value": {"state_dict": weights, "x": evil},
        "first": {"a": evil, "state_dict": weights},
        "key": {"state_dict": weights, evil: 1},
        "key of callbacks": {"state_dict": weights, "callbacks": {evil: {"best": 1}}},
        "nested": {"state_dict": weights, "optimizer_states": [{"state": ({"a": [evil, (evil,)]},)}]},
        "among the weights": {"state_dict": {**weights, "v": evil}},
        "weight's name": {"state_dict": {**weights, evil: torch.ones(2)}},
        "in a set": {"state_dict": weights, "done": {evil}},
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", list(places(None)))
def test_code_in_a_file_never_runs_and_the_weights_are_read(tmp_path, place, zipped, protocol):
    marker = tmp_path / "MARKER"
    content = places(Evil(os.mkdir, str(marker)))[place]
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    tensors = quiet_read(tmp_path / "x.ckpt")
    assert not marker.exists()
    assert torch.equal(tensors["w"], torch.arange(4.0))
    # the file is really dangerous: PyTorch, told to trust it, runs the code
    with contextlib.suppress(FileExistsError):
        torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert marker.exists()


def named(name: str) -> bytes:
    """The opcodes that push ``module:attribute`` (STACK_GLOBAL)."""
    parts = (part.encode() for part in name.split(":"))
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def programs(marker: str) -> dict[str, bytes]:
    """Pickle programs that create the marker file when ``pickle`` runs them."""
    shell, code = text(f"touch {marker}"), text(f"open({marker!r}, 'w').close()")
    system, rebuild = named("os:system"), named("torch._utils:_rebuild_tensor_v2")
    module = call(named("importlib:import_module"), text("os"))
    mapped = call(named("builtins:map"), system, b"](" + shell + b"e")
    run, ordered = call(system, shell), named("collections:OrderedDict")
    inner = pickle.dumps(Evil(os.system, f"touch {marker}"), 2)
    with tempfile.TemporaryDirectory() as place:
        file = contained(Path(place) / "x", inner, "legacy").read_bytes()
    bodies = {
        "system": run,
        "exec": call(named("builtins:exec"), code),
        "eval": call(named("builtins:eval"), code),
        "names of Python 2": b"\x80\x02" + call(b"c__builtin__\neval\n", code),
        "GLOBAL": call(b"cposix\nsystem\n", shell),
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "NEWOBJ": named("builtins:tuple") + b"(" + mapped + b"t\x81",
        "NEWOBJ_EX": named("builtins:tuple") + b"(" + mapped + b"t}\x92",
        "getattr": call(call(named("builtins:getattr"), module, text("system")), shell),
        "dotted name": call(named("os:path.os.system"), shell),
        "dotted name in torch": call(named("torch.serialization:os.system"), shell),
        "partial": call(call(named("functools:partial"), system, shell)),
        "list of a map": call(named("builtins:list"), mapped),
        "pickle in a pickle": call(named("pickle:loads"), raw_bytes(inner)),
        "torch's storage from bytes": call(named("torch.storage:_load_from_bytes"), raw_bytes(file)),
        "torch's rebuild from type": call(
            named("torch._tensor:_rebuild_from_type_v2"), system, named("builtins:int"), b"(" + shell + b"t", b"}"
        ),
        "argument of a rebuild": call(rebuild, run, b"K\0", b")", b")"),
        "argument of a parameter": call(named("torch._utils:_rebuild_parameter"), run, b"\x89", b"}"),
        "argument of a size": call(named("torch:Size"), mapped),
        "items of a dictionary": call(ordered, mapped),
        "__setstate__ of a dictionary": call(ordered) + b"}" + text("__setstate__") + system + b"sb" + shell + b"b",
        "state of a function": rebuild + b"}" + text("x") + run + b"sb",
    }
    return {name: b"\x80\x04" + body + b"." for name, body in bodies.items()}


@pytest.mark.parametrize("container", [*CONTAINERS, "bare"])
@pytest.mark.parametrize("name", list(programs("m")))
def test_hostile_programs_never_run(tmp_path, name, container):
    marker = tmp_path / "MARKER"
    path = contained(tmp_path / "x.ckpt", programs(str(marker))[name], container)
    assert quiet_read(path) is None
    assert not marker.exists()


@pytest.mark.parametrize("name", list(programs("m")))
def test_hostile_programs_are_really_hostile(tmp_path, name):
    """Guards the test above: Python's own unpickler makes the marker."""
    marker = tmp_path / "MARKER"
    with contextlib.suppress(Exception):  # many fail after the deed, and the deed is what counts
        pickle.loads(programs(str(marker))[name])
    assert marker.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_arguments_that_are_code(tmp_path, container):
    marker = tmp_path / "MARKER"
    evil = Evil(os.system, f"touch {marker}")
    for storage in (Storage(evil), Storage(4, evil), Storage(4, "0", evil), Storage(tag=evil)):
        path = contained(tmp_path / "x.ckpt", dump({"w": tensor(storage, 0, (4,), (1,))}), container)
        assert quiet_read(path) is None
    for place in range(4):
        args = [evil if i == place else arg for i, arg in enumerate((Storage(), 0, (4,), (1,)))]
        assert quiet_read(contained(tmp_path / "x.ckpt", dump({"w": tensor(*args)}), container)) is None
    assert not marker.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_calls_that_load_another_file_do_not(tmp_path, container):
    """torch.load and its kin, on a second, hostile file."""
    marker, other = tmp_path / "MARKER", tmp_path / "other.pt"
    torch.save({"x": Evil(os.system, f"touch {marker}")}, other)
    for function in ("torch:load", "torch.serialization:load", "torch.jit:load", "numpy:load", "torch.hub:load"):
        program = b"\x80\x04" + call(named(function), text(str(other))) + b"."
        assert quiet_read(contained(tmp_path / "x.ckpt", program, container)) is None
    assert not marker.exists()


def against_the_reader() -> dict[str, bytes]:
    """Programs that change what the reader itself has built, and use that."""
    ordered, first = named("collections:OrderedDict"), named("torch._utils:_rebuild_parameter")
    rebuild, system = named("torch._utils:_rebuild_tensor_v2"), named("os:system")
    storage, weight = dump(Storage())[2:-1], dump(HONEST)[2:-1]

    def changed(attribute: str, value: bytes) -> bytes:
        return call(ordered) + b"}" + text(attribute) + value + b"sb"

    def entry_of(name: str, value: bytes) -> bytes:
        return text(name) + value + b"s"

    weights = b"}" + entry_of("w", weight)
    beyond = b"(" + first + storage + b"RK\0(M\xff\xfft(K\x01tt"  # the storage itself, offset, size, stride
    bodies = {
        "slot of a function": first + b"(N}" + text("_function") + system + b"stb",
        "dictionary of a function": first + b"}" + text("_function") + system + b"sb",
        "slot of a type": named("torch:FloatStorage") + b"(N}" + text("dtype") + b"Nstb",
        "items of the file": changed("items", first),
        "items of the file, inert": changed("items", system),
        "get of the file": changed("get", system),
        "items of the weights": b"}" + entry_of("state_dict", changed("items", first)),
        "keys of the metadata": b"}"
        + entry_of("state_dict", weights)
        + entry_of("instruct2dream", changed("keys", system)),
        "state of a tensor": b"}" + entry_of("w", weight + beyond + b"b"),
        "tensor instead of a storage": b"}" + entry_of("w", call(rebuild, dump((HONEST, torch.float32))[2:-1])),
        "extension code": b"\x82\x01",
        "buffer": b"\x97",
        "state of a class": system + b"}b",
        "add to a placeholder": call(system) + b"(K\x01\x90",
        "append to a placeholder": call(system) + b"K\x01a",
        "item of a tensor": weight + b"K\xffK\x01s",
        "name with a zero": b"\x8c\x01\0\x8c\x01\0\x93",
        "name with a surrogate": b"V\\ud800\nV\\ud800\n\x93",
    }
    return {name: b"\x80\x04" + body + b"." for name, body in bodies.items()}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_memo_that_would_fill_the_memory_is_refused(tmp_path, container):
    bomb = b"\x80\x04}r" + struct.pack("<I", 1 << 27) + b"."  # a few bytes that make pickle set aside 2 GiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="absurd amount of memory"):
        read_checkpoint(contained(tmp_path / "x.ckpt", bomb, container))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(against_the_reader()))
def test_programs_against_the_reader_itself(tmp_path, name, container):
    """Refused in one line, or read without harm; never another error, never a value outside the file."""
    tensors = quiet_read(contained(tmp_path / "x.ckpt", against_the_reader()[name], container))
    for value in (tensors or {}).values():
        assert value.numel() <= 4


HUGE = 1 << 40
CLAIMS = {
    "more than stored": (Storage(1000), 0, (1000,), (1,)),
    "view beyond": (Storage(), 0, (5,), (1,)),
    "offset beyond": (Storage(), 4, (1,), (1,)),
    "offset far beyond": (Storage(), 1 << 60, (1,), (1,)),
    "negative offset": (Storage(), -1, (4,), (1,)),
    "negative size": (Storage(), 0, (-4,), (1,)),
    "negative stride": (Storage(), 3, (4,), (-1,)),
    "stride beyond": (Storage(), 0, (2,), (4,)),
    "huge stride": (Storage(), 0, (2,), (1 << 62,)),
    "overflowing": (Storage(), 0, (1 << 31, 1 << 31, 4), (1 << 31, 1 << 31, 1 << 31)),
    "sizes without strides": (Storage(), 0, (2, 2), (1,)),
    "huge": (Storage(HUGE), 0, (HUGE,), (1,)),
    "huge size only": (Storage(), 0, (HUGE,), (1,)),
    "beyond 64 bits": (Storage(1 << 70), 0, (1 << 70,), (1,)),
    "negative length": (Storage(-4), 0, (4,), (1,)),
    "wider type": (Storage(4, "0", torch.DoubleStorage), 0, (4,), (1,)),
    "another array": (Storage(4, "1"), 0, (4,), (1,)),
    "array outside": (Storage(4, "../data.pkl"), 0, (4,), (1,)),
    "unknown type": (Storage(4, "0", dict), 0, (4,), (1,)),
    "no storage": (Storage(tag="module"), 0, (4,), (1,)),
    "words": (Storage("four"), 0, (4,), (1,)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(CLAIMS))
def test_tensors_that_lie_are_refused(tmp_path, name, container):
    tensors = quiet_read(contained(tmp_path / "x.ckpt", dump({"w": tensor(*CLAIMS[name])}), container))
    # a lie about the stored array's length may be passed over where the tensor itself lies inside the array
    assert tensors is None or (name == "negative length" and tensors["w"].tolist() == [1, 2, 3, 4])


@pytest.mark.parametrize("container", CONTAINERS)
def test_honest_tensors_of_the_same_making_are_read(tmp_path, container):
    """Guards the test above."""
    views = {"w": HONEST, "v": tensor(Storage(), 1, (3,), (1,)), "s": tensor(Storage(), 3, (), ())}
    tensors = quiet_read(contained(tmp_path / "x.ckpt", dump(views), container))
    assert {name: value.tolist() for name, value in tensors.items()} == {"w": [1, 2, 3, 4], "v": [2, 3, 4], "s": 4}


@pytest.mark.parametrize("keys", [(), ("0", "1")])
def test_legacy_list_of_arrays_that_is_not_the_one_in_use_is_refused(tmp_path, keys):
    """An array that is left out has no data in the file: its tensor would hold what memory held before."""
    assert quiet_read(contained(tmp_path / "x.ckpt", dump({"w": HONEST}), "legacy", keys)) is None


# A config inside a checkpoint chooses among our own classes only


def evil_configs(marker: Path) -> dict[str, object]:
    run = {"target": "os.system", "params": {"command": f"touch {marker}"}}
    popen = {"target": "subprocess.Popen", "params": {"args": ["touch", str(marker)]}}
    hidden = f"{{target:os.system,params:{{command:'touch {marker}'}}}}"
    ours = "ldm.models.build.instantiate_from_config"

    def inside(node: object, **more: object) -> dict:
        content = small_config()
        content["model"]["params"]["unet_config"] = node
        return {**content, **more}

    return {
        "whole model": {"model": popen},
        "part": inside(run),
        "list": inside([run]),
        "as YAML text": OmegaConf.to_yaml(OmegaConf.create(inside(run))),
        "as JSON text": json.dumps(inside(run)),
        "made by a resolver": inside(f"${{oc.create:{hidden}}}"),
        "decoded by a resolver": inside(f'${{oc.decode:"{hidden}"}}'),
        "name by interpolation": inside({**run, "target": "${place}"}, place="os.system"),
        "through a function of ours": inside({"target": ours, "params": {"node": run}}),
        "the same, hidden": inside({"target": ours, "params": {"node": f"${{oc.create:{hidden}}}"}}),
        "name in a list": inside({**run, "target": ["os.system"]}),
        "module": inside({**run, "target": "ldm.models.latent_diffusion.torch"}),
        "a number": 3,
        "a list": [1],
    }


@pytest.mark.parametrize("name", list(evil_configs(Path("m"))))
def test_a_config_in_a_file_cannot_choose_code(tmp_path, raw, name):
    marker = tmp_path / "MARKER"
    checkpoint = Checkpoint(Path("x.ckpt"), "ckpt", raw, {"config": small_config()})
    assert load_model(checkpoint)  # an honest config loads
    checkpoint.metadata["config"] = evil_configs(marker)[name]
    error: object = None
    try:
        load_model(checkpoint)
    except Exception as caught:
        error = caught
    time.sleep(0.05)
    assert not marker.exists()
    assert isinstance(error, ValueError)


def test_evil_configs_are_really_evil(tmp_path):
    """Guards the test above: as a config of the user's own, which may name anything, the code runs."""
    marker = tmp_path / "MARKER"
    for name in ("part", "made by a resolver", "decoded by a resolver"):
        with contextlib.suppress(Exception):
            instantiate_from_config(OmegaConf.create(evil_configs(marker)[name])["model"])
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_hostile_config_is_refused_from_either_format(tmp_path, raw, suffix):
    marker = tmp_path / "MARKER"
    save_checkpoint(tmp_path / f"x{suffix}", raw, {"config": evil_configs(marker)["part"]})
    with pytest.raises(ValueError, match=r"names 'os\.system'"):
        load_model(tmp_path / f"x{suffix}")
    assert not marker.exists()
