"""The batch files: a run that was stopped goes back into the queue and is resumed; each array task takes its line."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(tmp_path):
    """A folder with the batch files, and stand-ins for srun and scontrol that write down what they are asked."""
    (tmp_path / "scripts" / "slurm").mkdir(parents=True)
    for name in ("train.sbatch", "subjects.sbatch"):
        shutil.copy(ROOT / "scripts" / "slurm" / name, tmp_path / "scripts" / "slurm" / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "scontrol"):
        code = '"${SRUN_CODE:-0}"' if name == "srun" else "0"
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\nexit {code}\n')
        (tools / name).chmod(0o755)
    return tmp_path


def submit(cluster, name, *args, code=0, **env):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cluster), "SRUN_CODE": str(code), **env}
    environment = {**os.environ, **slurm, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(cluster / "scripts" / "slurm" / name), *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    calls = (cluster / "calls").read_text().splitlines() if (cluster / "calls").exists() else []
    (cluster / "calls").unlink(missing_ok=True)
    return done, calls


def test_a_finished_run_is_not_queued_again(cluster):
    done, calls = submit(cluster, "train.sbatch", "--data", "d", SLURM_NTASKS_PER_NODE="5", SLURM_NNODES="2")
    assert done.returncode == 0
    assert calls == [
        "srun .venv/bin/python scripts/train.py --data d --logs logs/slurm-7 --devices 5 --num-nodes 2",
    ]


def test_a_stopped_run_is_queued_again_and_then_resumed(cluster):
    done, calls = submit(cluster, "train.sbatch", "--data", "d", code=143)
    assert done.returncode == 0
    assert calls[-1] == "scontrol requeue 7"
    run = cluster / "logs" / "slurm-7" / "2026-01-01T00-00-00_x"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    done, calls = submit(cluster, "train.sbatch", "--data", "d")
    assert f"--resume logs/slurm-7/{run.name}" in calls[0]
    assert "--data" not in calls[0]


def test_a_failed_run_fails_the_job(cluster):
    done, calls = submit(cluster, "train.sbatch", "--data", "d", code=2)
    assert done.returncode == 2
    assert len(calls) == 1


def test_each_task_of_an_array_takes_its_own_line(cluster):
    (cluster / "subjects.txt").write_text("photos/rex dog wolf\nphotos/tom cat lion\n")
    task = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"}
    done, calls = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", **task)
    assert done.returncode == 0, done.stderr
    assert "--photos photos/tom --class-word cat --source-words lion" in calls[0]
    assert "--data data/pairs/tom --ckpt c.ckpt --name tom --logs logs/slurm-9-1" in calls[1]
    done, _ = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", **{**task, "SLURM_ARRAY_TASK_ID": "5"})
    assert done.returncode == 2
    assert "no line 6" in done.stderr


def test_the_shell_reads_them_and_sbatch_finds_its_options():
    for path in (ROOT / "scripts" / "slurm").glob("*.sbatch"):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
        text = path.read_text()
        assert "#SBATCH --signal=TERM@120" in text
        assert "#SBATCH --requeue" in text
