"""DreamBooth's drift monitor: figures with known answers from drawn pictures, and a run that names its best step."""

import json

import pytest
import torch

from ldm.data.datamodule import PairDataModule
from ldm.data.images import open_rgb, to_images, to_tensor
from ldm.data.personalized import PersonalizedImages
from ldm.project import CONFIGS, SPRITEWORLD
from ldm.training import text_drift
from ldm.training.run import train
from ldm.training.settings import load_training_config
from tests.training.conftest import SMALL

PHOTOS = CONFIGS.parent / "data" / "spriteworld" / "subjects" / "biscuit"


def shipped(place):
    return to_tensor([open_rgb(path) for path in sorted((SPRITEWORLD / place).glob("*.png"))])


@pytest.fixture(scope="module")
def worlds():
    return shipped("subjects/biscuit"), shipped("pictures/dog")


def monitor(tmp_path, **more):
    data = PairDataModule(PersonalizedImages(str(PHOTOS), "dog", size=64))
    settings = {"width": 64, "height": 64}
    given = {"every": 1, "keep_at": [1, 2], "folder": tmp_path, "suffix": ".ckpt", "pictures": 12, "settings": settings}
    return text_drift.TextDriftMonitor(data, **{**given, **more})


def test_likeness_of_colours_tells_the_subject_from_other_dogs(worlds):
    subject, dogs = map(text_drift.colour_shares, worlds)
    assert torch.allclose(subject.square().sum(1), torch.ones(len(subject)))
    same = text_drift.colour_shares(worlds[0][:1]).expand(3, -1)
    assert text_drift.likeness(same) == pytest.approx(1, abs=1e-5)
    assert text_drift.likeness(same[:1], -same) == pytest.approx(-1, abs=1e-5)
    assert text_drift.likeness(subject) > text_drift.likeness(subject, dogs) + 0.03
    black, white = -torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert text_drift.likeness(text_drift.colour_shares(black), text_drift.colour_shares(white)) == 0


def test_figures_are_one_at_the_photos_and_zero_at_the_frozen_model(tmp_path, monkeypatch, worlds):
    subject, dogs = worlds
    watching = monitor(tmp_path)
    made = {}
    monkeypatch.setattr(text_drift.ImageGenerator, "__init__", lambda self, model: None)
    monkeypatch.setattr(text_drift.ImageGenerator, "generate", lambda self, texts, settings: to_images(made[texts[0]]))

    def measured(step, with_, without):
        made.update({"a sks dog": with_, "a dog": without})
        watching.rows[step] = watching.measure(None, step)
        return watching.rows[step]

    frozen = measured(0, dogs, dogs)
    assert (frozen["subject"], frozen["leak"], frozen["prior"]) == (0, 0, 1)
    good = measured(1, subject, dogs)
    assert good["subject"] == pytest.approx(1, abs=0.25)
    assert (good["leak"], good["prior"]) == (0, 1)
    leaked = measured(2, subject, subject[:1].expand_as(subject))
    assert leaked["leak"] > 0.5
    assert leaked["prior"] == pytest.approx(0, abs=1e-3)
    best = watching.best()
    assert best["step"] == 1
    assert best["score"] == pytest.approx(min(1, good["subject"]))
    assert "prior's diversity 0.00" in best["why"]


def test_photos_that_are_hardly_alike_do_not_blow_the_figures_up(tmp_path, monkeypatch):
    """Where photos differ from each other as much as from the frozen model's pictures, nothing can be gained on the
    way to them: noise must not decide, and the plain class's diversity still counts."""
    generator = torch.Generator().manual_seed(0)
    watching = monitor(tmp_path)
    watching.photos = torch.randn(5, 64, generator=generator)
    feature = {name: torch.randn(12, 64, generator=generator) for name in ("frozen", "one", "two")}
    rows = {}
    monkeypatch.setattr(text_drift.ImageGenerator, "__init__", lambda self, model: None)
    for step, name in enumerate(feature):
        monkeypatch.setattr(text_drift.ImageGenerator, "generate", lambda *_: to_images(torch.zeros(12, 3, 8, 8)))
        monkeypatch.setattr(watching, "_describe", lambda x, name=name: feature[name])
        rows[step] = watching.rows[step] = watching.measure(None, step)
        assert abs(rows[step]["subject"]) < 5
        assert watching.score(rows[step]) <= 1


def test_a_run_from_photos_measures_itself_and_names_its_best_step(tmp_path):
    few = {"scale": 2.0, "steps": 2, "sampler": "ddim", "width": 64, "height": 64}
    given = [key for key in SMALL if "source_word" not in key and "drift" not in key]
    given += [f"dataset.instance={PHOTOS}", f"dataset.class_images={PHOTOS.parents[1] / 'pictures' / 'dog'}"]
    given += ["training.max_steps=2", "training.keep_at=[1,2]", "training.drift_every=1"]
    given += ["model.params.first_stage_config.params.ckpt_path=data/spriteworld/first-stage.safetensors"]
    given += ["training.drift.params.pictures=2"]
    given += [f"training.drift.params.settings.{key}={value}" for key, value in few.items()]
    config = load_training_config(CONFIGS / "spriteworld" / "dreambooth.yaml", given)
    run = train(config, "photos", tmp_path)
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert set(best["steps"]) == {"0", "1", "2"}
    assert (run / "checkpoints" / best["weights"]).is_file()
    assert "drift/prior" in (run / "metrics" / "metrics.csv").read_text()


def test_what_cannot_be_measured_is_refused(tmp_path, pairs):
    from ldm.data.personalized_edit import PersonalizedEdit

    edits = PairDataModule(PersonalizedEdit(str(pairs / "training"), class_word="dog", source_word="wolf", size=64))
    with pytest.raises(ValueError, match="photos of a subject"):
        text_drift.TextDriftMonitor(edits, 1, [1], tmp_path, ".ckpt")
    with pytest.raises(ValueError, match="pictures is 1; to compare likeness 2 are needed"):
        monitor(tmp_path, pictures=1)
    with pytest.raises(ValueError, match=r"unknown key 'training\.drift\.params\.settings\.stpes'"):
        monitor(tmp_path, settings={"stpes": 3})
    one = PersonalizedImages(str(PHOTOS), "dog", size=64, limit=1)  # a single photo is enough
    assert text_drift.TextDriftMonitor(PairDataModule(one), 1, [1], tmp_path, ".ckpt").photos.shape[0] == 1
