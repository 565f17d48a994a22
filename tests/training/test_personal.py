"""Personalising: the two halves of the loss, what moves and what stays, several processes, cut-off runs."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint.read import read_checkpoint
from ldm.config import instantiate_from_config, load_config
from ldm.data.datamodule import PairDataModule, collate
from ldm.data.encoded import EncodedPairs
from ldm.training.memory import parameter_counts
from ldm.training.prepare import encoder_of
from ldm.training.run import train
from tests.training.conftest import config, overrides

ROOT = Path(__file__).resolve().parents[2]


def logged(run, name):
    with open(run / "metrics" / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run, step):
    return read_checkpoint(run / "checkpoints" / f"step={step}.safetensors").tensors


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


def batch_and_model(pairs, dtype=torch.float64):
    c = config(pairs)
    torch.manual_seed(0)
    model = instantiate_from_config(c["model"]).to(dtype)
    with torch.no_grad():  # no layer at zero
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    data = instantiate_from_config(c["data"])
    data.streams = {k: EncodedPairs(v, encoder_of(model.float())) for k, v in data.streams.items()}
    model.to(dtype)
    items = [data.streams[name].item(i) | {"seed": torch.tensor(i)} for name in data.streams for i in (0, 1)]
    return items, model


def loss_and_gradients(model, items):
    batch = collate(items)
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
    model.zero_grad()
    model.log = model.log_dict = lambda *args, **kwargs: None
    z = model.latents(batch, _noise(batch))
    loss = model.training_step(batch, 0)
    loss.backward()
    assert z[0].shape[0] == len(items)
    return loss.item(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def _noise(batch):
    from ldm.models.randomness import BatchNoise

    return BatchNoise(torch.Generator(), 0, batch["seed"])


def test_one_concatenated_forward_equals_two_and_reg_weight_scales_its_half(pairs):
    items, model = batch_and_model(pairs)
    model.objective = replace(model.objective, reg_weight=0.5)
    both, gradients = loss_and_gradients(model, items)
    instance, g_instance = loss_and_gradients(model, [i for i in items if not i["is_reg"]])
    model.objective = replace(model.objective, reg_weight=1.0)
    reg, g_reg = loss_and_gradients(model, [i for i in items if i["is_reg"]])
    assert both == pytest.approx(instance + 0.5 * reg, rel=1e-6)
    worst = max(
        ((gradients[k] - g_instance[k] - 0.5 * g_reg[k]).norm() / (gradients[k].norm() + 1e-12)).item()
        for k in gradients
        if gradients[k].norm() > 1e-9
    )
    assert worst < 1e-5


def test_both_halves_are_logged_and_the_frozen_parts_stay(pairs, tmp_path):
    c = config(pairs, **{"model.params.cond_stage_trainable": "false", "training.keep_at": "[1,4]"})
    run = train(c, "halves", tmp_path)
    total, instance, reg = (logged(run, f"train/{name}") for name in ("loss", "instance", "reg"))
    assert len(total) == 4
    assert total == pytest.approx([a + b for a, b in zip(instance, reg, strict=True)], rel=1e-5)
    a, b = weights(run, 1), weights(run, 4)
    moved = {name for name in a if not torch.equal(a[name], b[name])}
    assert moved
    assert all(name.startswith("model.diffusion_model.") for name in moved)


def test_a_rate_of_a_millionth_moves_fp32_masters_under_bf16(pairs, begun, tmp_path):
    more = {"model.params.learning_rate": "1e-6", "training.precision": "bf16", "model.params.ckpt_path": begun}
    after = last(train(config(pairs, steps=3, **more), "millionth", tmp_path))
    before = read_checkpoint(begun).tensors
    names = [n for n in after if n.startswith(("model.diffusion_model.", "cond_stage_model.")) and n.endswith("weight")]
    assert {after[n].dtype for n in names} == {torch.float32}
    moved = [n for n in names if not torch.equal(after[n], before[n])]
    assert len(moved) > 0.95 * len(names)
    assert 1e-6 < max((after[n] - before[n]).abs().max().item() for n in moved) < 4e-6
    stage = [n for n in after if n.startswith("first_stage_model.")]
    assert stage
    assert all(torch.equal(after[n], before[n]) for n in stage)


def test_held_out_pairs_are_validated_at_fixed_noise_and_never_trained_on(pairs, tmp_path):
    c = config(pairs, steps=4, **{"training.validate_every": 2, "model.params.learning_rate": "1e-12"})
    data = instantiate_from_config(c["data"])
    subject = data.streams["instance"]
    assert len(subject.held_out) == 1
    assert len(subject.pairs) == 9
    assert not {p.id for p in subject.held_out} & {p.id for p in subject.pairs}
    run = train(c, "validated", tmp_path)
    values = logged(run, "val/instance")
    assert len(values) == 3  # steps 0, 2 and 4
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)  # nothing learned: nothing may change


def test_the_weights_file_says_what_it_was_made_from(pairs, tmp_path):
    run = train(config(pairs, steps=1, **{"training.weights_suffix": ".ckpt"}), "recipe", tmp_path)
    recipe = read_checkpoint(run / "checkpoints" / "step=1.ckpt").metadata["recipe"]
    assert recipe["identifier"] == "sks"
    assert recipe["class_word"] == "dog"
    assert recipe["reg_pairs"] == 7
    assert len(recipe["data_hash"]) == 16


def command(pairs, logs, **more):
    run = [sys.executable, str(ROOT / "scripts" / "train.py"), "configs/spriteworld/instruct2dream.yaml"]
    return [*run, *overrides(pairs, **more), "--logs", str(logs), "--threads", "1"]


def launched(args):
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


def test_two_processes_of_one_equal_one_process_of_two(pairs, begun, tmp_path):
    more = {"steps": 3, "training.save_every": 3, "model.params.ckpt_path": begun}
    # plain gradient descent: Adam would blow up the sign of gradients that are zero but for rounding
    more |= {"model.params.optimizer_config.target": "torch.optim.SGD", "model.params.optimizer_config.params": "null"}
    more |= {"model.params.learning_rate": 0.05}
    two = launched([*command(pairs, tmp_path / "two", **more), "--devices", "2"])
    wider = {**more, "data.params.batch_size": 2, "data.params.reg_batch_size": 2}
    one = launched(command(pairs, tmp_path / "one", **wider))
    assert len(list((tmp_path / "two").iterdir())) == 1  # one run folder, not one for each process
    a, b = last(two), last(one)
    assert a.keys() == b.keys()
    worst = max((a[n].double() - b[n].double()).abs().max().item() for n in a)
    assert worst < 1e-6
    start = read_checkpoint(begun).tensors
    moved = max((a[n] - v).abs().max().item() for n, v in start.items())
    assert moved > 1e-4  # a hundred times the difference that is allowed


def test_overrides_may_stand_after_flags(tmp_path):
    train_py = [sys.executable, ROOT / "scripts" / "train.py"]
    flags = ["configs/spriteworld/instruct2dream.yaml", "training.seed=1", "--name", "x", "trainnig.seed=2"]
    done = subprocess.run([*train_py, *flags, "--logs", tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "unknown key 'trainnig.seed'" in done.stderr


def test_under_torchrun_every_process_ends_well(pairs, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    run = launched([*torchrun, *command(pairs, tmp_path / "two", steps=1)[1:], "--devices", "2"])
    assert [run] == list((tmp_path / "two").iterdir())
    assert (run / "checkpoints" / "step=1.safetensors").is_file()


LONG = {"steps": 8, "training.accumulate": 2, "training.save_every": 2, "model.params.use_ema": True}


@pytest.fixture(scope="module")
def unbroken(pairs, tmp_path_factory):
    return launched(command(pairs, tmp_path_factory.mktemp("unbroken"), **LONG))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_ended_by_a_signal_and_resumed_it_ends_bit_for_bit_the_same(pairs, unbroken, tmp_path, number, code):
    process = subprocess.Popen(command(pairs, tmp_path / "b", **LONG), cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if list((tmp_path / "b").glob("*/checkpoints/last.ckpt")):
            break
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert process.wait() == code
    (run,) = (tmp_path / "b").iterdir()
    again = [sys.executable, str(ROOT / "scripts" / "train.py"), "--resume", str(run), "--threads", "1"]
    assert launched(again) == run
    a, b = weights(unbroken, 8), weights(run, 8)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_when_no_more_can_be_written_the_run_says_so_and_can_be_gone_on_with(pairs, tmp_path):
    """The kernel refuses to write files of more than half a MiB, as a full disk would in the middle of a checkpoint."""
    run = launched(command(pairs, tmp_path, steps=2))
    settings = (run / "config.yaml").read_text()
    changed = settings.replace("max_steps: 2", "max_steps: 4").replace("keep_at:\n  - 2", "keep_at:\n  - 4")
    (run / "config.yaml").write_text(changed)
    again = [sys.executable, str(ROOT / "scripts" / "train.py"), "--resume", str(run), "--threads", "1"]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))

    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=240, preexec_fn=full)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.ckpt", "step=2.safetensors"]
    assert launched(again) == run
    assert (run / "checkpoints" / "step=4.safetensors").is_file()


def test_parameters_are_counted_without_building_them(pairs):
    total, trained = parameter_counts(OmegaConf.create({"model": config(pairs)["model"]}))
    model = instantiate_from_config(config(pairs)["model"])
    assert total == sum(p.numel() for p in model.parameters())
    stage = sum(p.numel() for p in model.first_stage_model.parameters())
    assert trained == total - stage


def test_pairs_without_regularization_refuse_a_batch_of_them(pairs):
    with pytest.raises(ValueError, match="no regularization pairs"):
        PairDataModule({"target": "ldm.data.personalized_edit.PersonalizedEdit"}, reg_batch_size=2)


def test_a_run_begun_with_another_config_is_not_resumed(pairs, tmp_path):
    run = train(config(pairs, steps=1), "begun", tmp_path)
    kept = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(kept.replace("reg_weight: 1.0", "reg_weight: 0.5"))
    with pytest.raises(ValueError, match=r"model\.params\.objective_config\.reg_weight was 1\.0, is 0\.5"):
        train(load_config(run / "config.yaml"), "", tmp_path, resume=run)
    longer = OmegaConf.merge(OmegaConf.create(kept), {"training": {"max_steps": 2, "keep_at": [2]}})
    OmegaConf.save(longer, run / "config.yaml")
    train(load_config(run / "config.yaml"), "", tmp_path, resume=run)
    assert (run / "checkpoints" / "step=2.safetensors").is_file()


def test_what_cannot_be_trained_leaves_no_run_folder(pairs, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        train(config(tmp_path / "nowhere"), "none", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_told_to_stop_inside_an_accumulation_it_finishes_the_step_and_resumes_exactly(pairs, tmp_path, monkeypatch):
    from ldm.training import run as module

    more = {"steps": 4, "training.accumulate": 2, "model.params.use_ema": True}
    unbroken = train(config(pairs, **more), "unbroken", tmp_path)
    original = module.StopOnSignal.on_train_batch_end

    def told(self, trainer, pl_module, outputs, batch, batch_index):
        if batch_index == 2:  # the first half of the second step
            self.received = signal.SIGTERM
        original(self, trainer, pl_module, outputs, batch, batch_index)

    monkeypatch.setattr(module.StopOnSignal, "on_train_batch_end", told)
    broken = train(config(pairs, **more), "broken", tmp_path)
    monkeypatch.undo()
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt").metadata["global_step"] == 2
    train(load_config(broken / "config.yaml"), "", tmp_path, resume=broken)
    a, b = weights(unbroken, 4), weights(broken, 4)
    assert all(torch.equal(a[name], b[name]) for name in a)


class AveragedSGD(torch.optim.SGD):
    """As schedule-free optimisers do: the weights to use are others than those to train, and it must be told which."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.mode, self.begun = None, False

    def _shift(self, by):
        for group in self.param_groups:
            for p in group["params"] if self.begun else []:
                p.data.add_(by)

    def eval(self):
        if self.mode == "train":
            self._shift(1.0)
        self.mode = "eval"

    def train(self):
        if self.mode == "eval":
            self._shift(-1.0)
        self.mode = "train"

    def step(self, closure=None):
        assert self.mode == "train"
        self.begun = True
        return super().step(closure)


def test_an_optimiser_with_weights_of_its_own_for_use_is_asked_for_them(pairs, begun, tmp_path):
    optimiser = {"target": f"{__name__}.AveragedSGD", "params": "null"}
    more = {f"model.params.optimizer_config.{key}": value for key, value in optimiser.items()}
    more |= {"model.params.ckpt_path": begun, "model.params.learning_rate": 0.0, "training.validate_every": 1}
    run = train(config(pairs, steps=2, **more), "averaged", tmp_path)
    before, kept, trained = read_checkpoint(begun).tensors, weights(run, 2), last(run)
    name = "model.diffusion_model.out.2.weight"
    assert (kept[name].float() - before[name] - 1).abs().max() < 2e-3  # fp16
    assert (trained[name] - before[name]).abs().max() < 1e-5


def test_an_identifier_of_several_tokens_is_named_before_training(pairs, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        train(config(pairs, steps=1, **{"dataset.identifier": "my dog rex"}), "tokens", tmp_path)
    assert "'my dog rex' is 3 tokens" in caplog.text
