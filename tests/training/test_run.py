"""Whole runs, small: they learn, they stop clearly, and a resumed run ends exactly where an unbroken one does."""

import csv
import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.read import read_checkpoint
from ldm.config import instantiate_from_config, load_config
from ldm.diffusion.parameterization import to_eps
from ldm.errors import UserError
from ldm.models.build import load_model
from ldm.project import CONFIGS
from ldm.training.callbacks import ProgressBar, evaluating
from ldm.training.run import train
from ldm.training.settings import TrainSettings

SPRITEWORLD = CONFIGS / "spriteworld"
SHIPPED = CONFIGS.parent / "data" / "spriteworld"


def first_stage_config(**training):
    config = load_config(SPRITEWORLD / "first-stage.yaml")
    config.model.params.ddconfig.ch_mult = [1, 1]
    config.model.params.ddconfig.num_groups = 8
    config.model.params.scheduler_config.params.warm_up_steps = 1
    config.data.params.batch_size = 2
    config.data.params.train = {"target": "tests.training.datasets.Pictures"}
    defaults = {"max_steps": 6, "precision": "fp32", "sheet_every": 0, "sheet": None, "save_every": 3, "log_every": 1}
    return OmegaConf.merge(config, {"training": {**defaults, **training}})


def editor_config(**training):
    """From nothing: a very small editor in the sprite world."""
    config = load_config(SPRITEWORLD / "instruct-pix2pix.yaml")
    params = config.model.params
    params.ckpt_path = None
    params.unet_config.params.update({"model_channels": 32, "context_dim": 32, "num_heads": 2})
    params.first_stage_config.params.ckpt_path = None
    params.cond_stage_config.params.text_config.update(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    params.scheduler_config.params.warm_up_steps = 1
    config.data.params.batch_size = 4
    config.data.params.num_workers = 0  # the first stage's runs have workers
    config.data.params.train = {"target": "tests.training.datasets.Triplets"}
    defaults = {"max_steps": 4, "precision": "fp32", "sheet_every": 0, "save_every": 2, "log_every": 1}
    return OmegaConf.merge(config, {"training": {**defaults, "cache_latents": False, **training}})


def adversarial_config(**training):
    """A first stage with a network of its loss', which is resumed, too."""
    config = first_stage_config(**training)
    config.model.params.lossconfig = {
        "target": "ldm.modules.first_stage_loss.AdversarialReconstructionLoss",
        "params": {"disc_width": 4, "disc_start": 2, "kl": 1e-3},
    }
    return config


def weights(run, step):
    return read_checkpoint(run / "checkpoints" / f"step={step}.safetensors").tensors


def losses(run):
    with open(run / "metrics" / "metrics.csv") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def config_with_dropout(**training):
    config = editor_config(**training)
    config.model.params.unet_config.params.dropout = 0.2
    return config


@pytest.mark.parametrize("make", [first_stage_config, adversarial_config, editor_config, config_with_dropout])
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(make, tmp_path, monkeypatch):
    steps, cut = (6, 3) if make in (first_stage_config, adversarial_config) else (4, 2)
    unbroken = train(make(keep_at=[steps]), "unbroken", tmp_path)

    from ldm.training import run as module

    original = module.StopOnSignal.on_train_batch_end

    def stop_at_cut(self, trainer, pl_module, *args):
        if trainer.global_step == cut:
            self.received = 15
        original(self, trainer, pl_module, *args)

    monkeypatch.setattr(module.StopOnSignal, "on_train_batch_end", stop_at_cut)
    broken = train(make(keep_at=[steps]), "broken", tmp_path)
    monkeypatch.undo()
    assert not (broken / "checkpoints" / f"step={steps}.safetensors").exists()
    train(load_config(broken / "config.yaml"), "", tmp_path, resume=broken)
    assert losses(broken) == losses(unbroken)  # one file, each step once
    assert not list((broken / "metrics").glob("part-*"))
    a, b = weights(unbroken, steps), weights(broken, steps)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def text_to_image_config(**training):
    config = editor_config(**training)
    config.data.params.train = {"target": "tests.training.datasets.Captions"}
    for name in ("dropout_image", "dropout_both", "change_weight"):
        del config.model.params.objective_config[name]
    config.model.params.conditioning_key = "crossattn"
    config.model.params.unet_config.params.in_channels //= 2
    return OmegaConf.merge(config, {"training": {"sheet": None, "edit_defaults": None}})


@pytest.mark.parametrize("make", [text_to_image_config, editor_config])
def test_a_short_training_from_nothing_lowers_the_loss(make, tmp_path):
    config = make(max_steps=60, save_every=60)
    config.model.params.first_stage_config.params.ckpt_path = str(SHIPPED / "first-stage.safetensors")
    run = train(config, "learns", tmp_path)
    found = losses(run)
    assert len(found) == 60
    assert sum(found[-20:]) < 0.7 * sum(found[:20])


def test_a_first_stage_learns_and_leaves_a_complete_folder(tmp_path):
    config = first_stage_config(max_steps=20, keep_at=[10, 20], sheet_every=20)
    config.training.sheet = {"target": "tests.training.datasets.Sheet"}
    run = train(config, "learns", tmp_path)
    found = losses(run)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics", "images", "checkpoints"}
    assert (run / "images" / "step=20.png").is_file()
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        "last.ckpt",
        "step=10.safetensors",
        "step=20.safetensors",
    }
    assert any(p.name.startswith("events.out.tfevents") for p in (run / "metrics").iterdir())


def test_a_decoder_learns_alone(tmp_path):
    config = first_stage_config(max_steps=4, keep_at=[2, 4])
    config.model.params.decoder_only = True
    with pytest.raises(ValueError, match="kl and whiten would have no effect"):
        train(config, "refused", tmp_path)
    config.model.params.lossconfig.params.kl = config.model.params.lossconfig.params.whiten = 0
    run = train(config, "decoder", tmp_path)
    a, b = weights(run, 2), weights(run, 4)
    moved = {".".join(name.split(".")[1:2]) for name in a if not torch.equal(a[name], b[name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert (
        "decoder_only"
        not in read_checkpoint(run / "checkpoints/step=4.safetensors").metadata["config"]["model"]["params"]
    )


def test_kept_weights_are_fp16_carry_their_config_and_load_for_editing(tmp_path):
    run = train(editor_config(keep_at=[4]), "editor", tmp_path)
    path = run / "checkpoints" / "step=4.safetensors"
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["step"] == 4
    assert checkpoint.metadata["edit_defaults"]["resolution"] == 64
    assert {t.dtype for t in checkpoint.tensors.values() if t.is_floating_point()} == {torch.float16}
    model = load_model(path)
    assert model.has_picture_input
    assert model.parameterization == "x0"


def test_frozen_parts_do_not_move_and_the_others_do(tmp_path):
    config = editor_config(max_steps=2, keep_at=[1, 2])
    config.model.params.use_ema = False
    config.model.params.cond_stage_trainable = False
    run = train(config, "frozen", tmp_path)
    a, b = weights(run, 1), weights(run, 2)
    moved = {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}
    assert moved == {"model"}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("max_step", 3, "did you mean 'max_steps'"),
        ("keep_at", 500, r"keep_at is 500; a list of whole numbers"),
        ("keep_at", None, r"keep_at is None; a list"),
        ("keep_at", ["a"], r"keep_at is \['a'\]; a list"),
        ("keep_at", [900], "names step 900, but the run has steps 1 to 800"),
        ("sheet_every", "x", "sheet_every is 'x'; a whole number is expected"),
        ("gradient_clip", "x", "gradient_clip is 'x'; a number or null is expected"),
        ("gradient_clip", 0, "gradient_clip is 0; a number above 0"),
        ("devices", 0, "devices is 0; a whole number from 1"),
        ("devices", -1, "devices is -1; a whole number from 1"),
    ],
)
def test_wrong_settings_are_one_line(key, value, says):
    with pytest.raises(ValueError, match=says):
        TrainSettings.of(OmegaConf.create({"training": {key: value}}))


def test_more_gpus_than_there_are_leave_no_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"devices is 5, but this machine has 1 GPU"):
        train(editor_config(devices=5), "many", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_what_lightning_refuses_is_one_line_and_leaves_no_run_folder(tmp_path, monkeypatch):
    from ldm.training import run as module

    def refuse(**chosen):
        raise module.MisconfigurationException("no such\nmachine")

    monkeypatch.setattr(module.pl, "Trainer", refuse)
    with pytest.raises(ValueError, match=r"^no such machine$"):
        train(editor_config(), "refused", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "name",
    ["reg_weight", "t_power", "dropout_text", "dropped_weight", "min_snr_gamma", "dream_detail_preservation"],
)
def test_a_parameter_that_is_no_number_is_named(name):
    config = editor_config()
    for value in ("x", -1, True, False):
        config.model.params.objective_config[name] = value
        with pytest.raises(UserError, match=rf"model\.params\.objective_config\.{name} is .*a number"):
            instantiate_from_config(config.model)


@pytest.mark.parametrize("name", ["eps", "v"])
def test_dream_moves_the_target_of_a_network_that_predicts_the_noise(name):
    config = editor_config()
    config.model.params.parameterization = name
    config.model.params.objective_config = {"dream_detail_preservation": 1.0}
    model = instantiate_from_config(config.model)
    shape = (2, model.latent_channels, 8, 8)
    z, noise, estimate = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    model.apply_model = lambda *_: estimate
    t = torch.tensor([300, 700])
    alpha, sigma = model.schedule.alpha_sigma(t, z)
    seen = to_eps(name, estimate, alpha * z + sigma * noise, alpha, sigma)
    noise_then = noise + sigma * (noise - seen)
    wanted = noise_then if name == "eps" else alpha * noise_then - sigma * z
    torch.testing.assert_close(model.p_losses(z, None, t, noise), (estimate - wanted).square().mean((1, 2, 3)))
    model.eval()  # what validates compares steps by the same noise
    wanted = noise if name == "eps" else alpha * noise - sigma * z
    torch.testing.assert_close(model.p_losses(z, None, t, noise), (estimate - wanted).square().mean((1, 2, 3)))


def test_dream_looks_once_without_a_gradient_and_learns_from_its_own_estimate():
    config = editor_config()
    config.model.params.objective_config.dream_detail_preservation = 0.0
    model, seen = instantiate_from_config(config.model), []
    estimate = torch.full((2, model.latent_channels, 8, 8), 0.5, requires_grad=True)

    def network(z_t, t, conditioning):
        seen.append((z_t, torch.is_grad_enabled()))
        return estimate

    model.apply_model = network
    z, noise = torch.randn(2, *estimate.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300, 700])
    losses = model.p_losses(z, None, t, noise)
    alpha, sigma = model.schedule.alpha_sigma(t, z)
    assert [enabled for _, enabled in seen] == [False, True]
    torch.testing.assert_close(seen[0][0], alpha * z + sigma * noise)
    torch.testing.assert_close(seen[1][0], (alpha * estimate + sigma * noise).detach())
    model.objective = replace(model.objective, dream_detail_preservation=None)
    assert model.parameterization == "x0"
    torch.testing.assert_close(losses, model.p_losses(z, None, t, noise))  # the target is the true latent all the same
    assert len(seen) == 3
    losses.sum().backward()
    assert estimate.grad.abs().min() > 0


def test_a_run_is_not_resumed_with_another_seed_or_accumulation(tmp_path):
    run = train(editor_config(max_steps=2, keep_at=[2]), "begun", tmp_path)
    kept = OmegaConf.load(run / "config.yaml")
    for key, value in (("accumulate", 2), ("seed", 5)):
        OmegaConf.save(OmegaConf.merge(kept, {"training": {key: value}}), run / "config.yaml")
        with pytest.raises(ValueError, match=rf"training\.{key} was .*, is {value}"):
            train(load_config(run / "config.yaml"), "", tmp_path, resume=run)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_what_looks_at_a_model_in_training_uses_its_averages_in_bf16_where_it_trains_so(precision):
    model = instantiate_from_config(editor_config().model)
    name, p = next(model.model.named_parameters())
    model.train()
    with torch.no_grad():
        p.add_(1)
    own = p.detach().clone()
    plugin = SimpleNamespace(forward_context=lambda: torch.autocast("cpu", torch.bfloat16))
    trainer = SimpleNamespace(optimizers=[], precision=precision, precision_plugin=plugin)
    with evaluating(trainer, model):
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16-mixed")
        assert not torch.is_grad_enabled()
        assert not model.training
        assert torch.allclose(p, own - 1, atol=1e-6), name
    assert model.training
    assert torch.equal(p, own)


def test_resuming_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/last\.ckpt"):
        train(first_stage_config(), "", tmp_path, resume=tmp_path / "absent")


def test_the_bar_of_a_resumed_run_begins_where_it_goes_on(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = ProgressBar(refresh_rate=10)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"train/loss": 0.25})
    trainer = SimpleNamespace(max_steps=800, global_step=500, current_epoch=1)
    bar.on_train_start(trainer)
    assert "500/800" in screen.getvalue()
    for trainer.global_step in (505, 510):
        bar.on_train_batch_end(trainer, None, None, None, 0)
    assert "505/800" not in screen.getvalue()
    assert "510/800" in screen.getvalue()
    assert "loss=0.25" in screen.getvalue()
    assert bar.train_progress_bar.format_dict["initial"] == 500  # the speed is that of this part
    bar.on_train_end()


def test_the_bar_is_set_where_lightning_goes_on_inside_an_epoch(tmp_path, monkeypatch):
    """From a file saved between two batches: Lightning then begins no epoch."""
    run = train(first_stage_config(max_steps=3, save_every=3), "part", tmp_path)
    config = OmegaConf.merge(OmegaConf.load(run / "config.yaml"), {"training": {"max_steps": 6}})
    bars = []
    monkeypatch.setattr(ProgressBar, "on_train_end", lambda self, *_: bars.append(self.train_progress_bar))
    train(config, "part", tmp_path, resume=run)
    assert [(bar.total, bar.initial) for bar in bars] == [(6, 3)]


def test_samples_that_lost_their_condition_count_as_little_as_dropped_weight_says():
    config = editor_config()
    dropout = {"dropout_text": 0.2, "dropout_image": 0.2, "dropout_both": 0.2}
    config.model.params.objective_config = {**dropout, "dropped_weight": 0.25}
    model, lost, logged = instantiate_from_config(config.model), [], {}
    null = model.get_learned_conditioning([""])

    def equal_losses(z, conditioning, t, noise, weight):
        no_text = (conditioning.c_crossattn == null).flatten(1).all(1)
        lost.append(no_text | (conditioning.c_concat == 0).flatten(1).all(1))
        return torch.ones(len(z), requires_grad=True)

    model.p_losses, model.log, model.log_dict = equal_losses, logged.__setitem__, lambda *_, **__: None
    pictures = {name: torch.rand(64, 3, 64, 64) * 2 - 1 for name in ("input", "edited")}
    loss = model.training_step({**pictures, "text": ["make it night"] * 64}, 0)
    share = lost[0].float().mean()
    assert 0.35 < share < 0.85
    torch.testing.assert_close(loss, 1 - 0.75 * share)
    model.objective = replace(model.objective, dropped_weight=1.0)
    torch.testing.assert_close(model.training_step({**pictures, "text": ["make it night"] * 64}, 0), torch.ones(()))


def test_a_dropped_weight_without_dropout_is_refused():
    config = editor_config()
    config.model.params |= {"dropout_text": 0.0, "dropout_image": 0.0, "dropout_both": 0.0}
    with pytest.raises(ValueError, match=r"dropped_weight is 0\.2, but nothing is dropped"):
        instantiate_from_config(config.model)
