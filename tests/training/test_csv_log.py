"""One metrics.csv from the parts of a run that was stopped and went on."""

import csv

from ldm.training.csv_log import keep_earlier_part, merge


def write(folder, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def merged(folder, *parts):
    for part in parts[:-1]:
        write(folder, part)
        keep_earlier_part(folder)
    write(folder, parts[-1])
    merge(folder)
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def train(step, loss="1"):
    return {"epoch": "0", "step": str(step), "train/loss": loss}


def test_steps_that_were_done_again_count_once(tmp_path):
    rows = merged(tmp_path, [train(i, "old") for i in range(6)], [train(i, "new") for i in range(4, 8)])
    assert [(row["step"], row["train/loss"]) for row in rows] == [(str(i), "old" if i < 4 else "new") for i in range(8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


def test_a_validation_at_the_step_that_a_run_resumes_from_stays(tmp_path):
    """It is logged with the number of the first batch after it, where the later part begins."""
    validation = {"epoch": "", "step": "4", "val/instance": "0.5"}
    old = [*(train(i, "old") for i in range(4)), validation, train(4, "old"), train(5, "old")]
    rows = merged(tmp_path, old, [train(i, "new") for i in range(4, 6)])
    assert [row for row in rows if "val/instance" in row] == [{"step": "4", "val/instance": "0.5"}]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == ["old"] * 4 + ["new"] * 2
    again = {"epoch": "", "step": "4", "val/instance": "0.6"}
    rows = merged(tmp_path, old, [again, train(4, "new")])
    assert [row["val/instance"] for row in rows if "val/instance" in row] == ["0.6"]
