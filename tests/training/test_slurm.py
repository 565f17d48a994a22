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


TASK = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"}


def subjects(cluster, *lines):
    (cluster / "subjects.txt").write_text("".join(f"{line}\n" for line in lines))


def test_each_task_of_an_array_takes_its_own_line(cluster):
    subjects(cluster, "photos/rex\tdog\twolf", "photos/my tom\tmaine coon\tmountain lion")
    done, calls = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", **TASK)
    assert done.returncode == 0, done.stderr
    assert "--photos photos/my tom --class-word maine coon --source-words mountain lion --ckpt c.ckpt" in calls[0]
    assert "--data data/pairs/my tom --ckpt c.ckpt --name my tom --logs logs/slurm-9-1" in calls[1]
    done, _ = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", **{**TASK, "SLURM_ARRAY_TASK_ID": "5"})
    assert done.returncode == 2
    assert "no line 6" in done.stderr


@pytest.mark.parametrize(
    "line", ["photos/tom cat lion", "photos/tom\tcat", "photos/tom\tcat\tlion\ttiger", "photos/tom\t\tlion"]
)
def test_a_line_that_has_not_three_fields_is_refused(cluster, line):
    subjects(cluster, "photos/rex\tdog\twolf", line)
    done, calls = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", **TASK)
    assert (done.returncode, calls) == (2, [])
    assert "line 2 of subjects.txt" in done.stderr
    assert "tab" in done.stderr


@pytest.mark.parametrize(("code", "returned", "last"), [(143, 0, "scontrol requeue 7"), (2, 2, None)])
def test_pairs_that_were_stopped_are_queued_again_and_failed_ones_are_not(cluster, code, returned, last):
    subjects(cluster, "photos/rex\tdog\twolf")
    task = {**TASK, "SLURM_ARRAY_TASK_ID": "0"}
    done, calls = submit(cluster, "subjects.sbatch", "subjects.txt", "c.ckpt", code=code, **task)
    assert done.returncode == returned
    assert "generate_dataset.py" in calls[0]
    assert calls[1:] == ([last] if last else [])


def test_the_shell_reads_them_and_sbatch_finds_its_options():
    for path in (ROOT / "scripts" / "slurm").glob("*.sbatch"):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
        text = path.read_text()
        assert "#SBATCH --signal=TERM@120" in text
        assert "#SBATCH --requeue" in text
