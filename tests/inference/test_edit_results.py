"""A result depends on its own photo, instruction and seed; masks, sweeps and recipes."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from ldm.checkpoint.save import save_checkpoint
from ldm.diffusion.samplers import SAMPLERS
from ldm.inference import recipe as recipe_module
from ldm.inference.edit_job import run_job
from ldm.inference.editor import ImageEditor
from ldm.inference.masking import soft_mask
from ldm.inference.recipe import read_recipe
from ldm.inference.settings import EditSettings, TextSettings
from tests.conftest import build_tiny, tiny_config
from tests.inference.photos import FAST, leftovers, photo, picture, pixels, rectangle
from tests.inference.planning import planned

# A result depends on its own photo, instruction and seed


def test_results_do_not_depend_on_the_batch(tmp_path, editor):
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        photo(tmp_path / "in" / f"{name}.png", 48, 40, seed)
    results, settings = {}, replace(FAST, steps=3, text_scale=8.0)
    for batch_size in (1, 2, 3):
        plan = ([str(tmp_path / "in")], ["go", "make it snow"], str(tmp_path / f"out{batch_size}"), settings, 7)
        written, failed = run_job(editor, planned(*plan, batch_size=batch_size))
        assert failed == 0
        results[batch_size] = {p.name: pixels(p) for p in written}
    for name, alone in results[1].items():
        for batch_size in (2, 3):
            assert np.abs(results[batch_size][name] - alone).max() <= 1, name
    shown = results[1]  # the pictures could tell
    assert np.abs(shown["a-go-7.png"] - shown["b-go-7.png"]).max() > 10
    assert np.abs(shown["a-go-7.png"] - shown["a-make-it-snow-7.png"]).max() > 5


def test_seeds_count_up_and_each_is_the_same_alone(editor):
    three = editor.edit(picture(48, 40), "go", FAST, seeds=[4])
    assert len(three) == 1
    named = editor.edit(picture(48, 40), "go", FAST, seeds=[4, 5, 6])
    counted = editor.edit([picture(48, 40)] * 3, "go", FAST, seeds=[4])
    alone = editor.edit(picture(48, 40), "go", FAST, seeds=[6])[0]
    for a, b in zip(named, counted, strict=True):
        assert np.abs(pixels(a) - pixels(b)).max() <= 1
    assert np.abs(pixels(named[2]) - pixels(alone)).max() <= 1
    assert np.abs(pixels(named[0]) - pixels(named[1])).max() > 20


def test_each_scale_weighs_its_own_condition(editor):
    """InstructPix2Pix, eq. 3: at text scale 0 the instruction says nothing; with both at 0 nor does the photo."""

    def edited(text: float, image: float, instruction: str = "go", seed: int = 0) -> np.ndarray:
        settings = replace(FAST, text_scale=text, image_scale=image)
        return pixels(editor.edit(picture(48, 40, seed), instruction, settings)[0])

    assert np.array_equal(edited(0, 2), edited(0, 2, "make it snow"))
    assert np.abs(edited(0, 2) - edited(0, 2, seed=1)).max() > 10
    assert np.array_equal(edited(0, 0), edited(0, 0, "make it snow", seed=1))
    assert np.abs(edited(8, 1) - edited(8, 1, "make it snow")).max() > 5


def test_editing_does_not_touch_the_global_random_state(editor):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    editor.edit(picture(), "go", FAST)
    assert torch.equal(torch.rand(3), expected)


def test_misfitting_batches_are_errors(editor):
    with pytest.raises(ValueError, match="2 seeds"):
        editor.edit([picture()] * 3, "go", FAST, seeds=[1, 2])
    with pytest.raises(ValueError, match="different shapes"):
        editor.edit([picture(64, 64), picture(64, 30)], "go", FAST)
    with pytest.raises(ValueError, match="instruction is empty"):
        editor.edit(picture(), " ", FAST)
    with pytest.raises(ValueError, match="narrow"):
        editor.edit(picture(900, 100), "go", FAST)
    with pytest.raises(ValueError, match="photo"):
        editor.edit([], "go", FAST)


def test_a_text_to_image_model_cannot_edit():
    with pytest.raises(ValueError, match="from text alone"):
        ImageEditor(build_tiny(4))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_progress_is_told_as_often_as_promised(tmp_path, editor, sampler):
    job = planned(
        [str(photo(tmp_path / "a.png"))], ["go"], str(tmp_path / "out"), replace(FAST, steps=4, sampler=sampler), 1
    )
    steps = []
    run_job(editor, job, lambda: steps.append(1))
    assert len(steps) == job.total_steps == 4


# Masks


def test_outside_the_mask_the_photo_is_bit_equal(tmp_path, editor):
    source, mask = picture(90, 70), rectangle(90, 70, (20, 10, 70, 60))
    inside = np.asarray(mask) > 0
    for settings in (FAST, replace(FAST, steps=1, sampler="ddim")):
        (edited,) = editor.edit(source, "go", settings, mask=mask)
        assert np.array_equal(pixels(edited)[~inside], pixels(source)[~inside])
        assert np.abs(pixels(edited) - pixels(source))[inside].max() > 20
    # feathered: at the edge of the mask the edit comes in softly, in the middle it is the edit itself
    (whole,) = editor.edit(source, "go", FAST)
    (edited,) = editor.edit(source, "go", FAST, mask=mask)
    assert np.array_equal(pixels(edited)[30:40, 40:50], pixels(whole)[30:40, 40:50])
    edge = np.abs(pixels(edited) - pixels(source))[10, 20:70].mean()
    assert edge < np.abs(pixels(whole) - pixels(source))[10, 20:70].mean()


def test_the_mask_is_soft_inwards():
    weights = soft_mask(rectangle(300, 200, (50, 40, 250, 160)))
    inside = np.asarray(rectangle(300, 200, (50, 40, 250, 160))) > 0
    assert weights[~inside].max() == 0
    across = weights[40:100, 150]  # from the upper edge to the middle
    assert 0 < across[0] < 0.2
    assert (np.diff(across) >= -1e-6).all()
    assert np.diff(across).max() < 0.3
    assert across[-1] == pytest.approx(1, abs=1e-5)


def test_a_dark_hole_in_a_light_mask_stays_the_photos(editor):
    """Also where light lies all around, and the soft edge would reach in from every side."""
    source = picture(90, 70)
    for hole in ((40, 30, 41, 31), (40, 30, 45, 32), (0, 0, 90, 1)):
        mask = Image.new("L", (90, 70), 255)
        mask.paste(0, hole)
        dark = np.asarray(mask) == 0
        (edited,) = editor.edit(source, "go", FAST, mask=mask)
        assert np.array_equal(pixels(edited)[dark], pixels(source)[dark])
        assert np.abs(pixels(edited) - pixels(source))[~dark].max() > 20


def test_masks_of_other_kinds(editor):
    source = picture(60, 60)
    box = (10, 10, 50, 50)
    inside = np.asarray(rectangle(60, 60, box)) > 0
    for mask in (
        rectangle(60, 60, box).convert("RGB"),
        rectangle(60, 60, box).convert("1"),
        rectangle(60, 60, box).convert("P"),
    ):
        (edited,) = editor.edit(source, "go", FAST, mask=mask)
        assert np.array_equal(pixels(edited)[~inside], pixels(source)[~inside])
    (edited,) = editor.edit(source, "go", FAST, mask=Image.new("L", (60, 60), 255))
    assert np.array_equal(pixels(edited), pixels(editor.edit(source, "go", FAST)[0]))  # all light: the plain edit
    (edited,) = editor.edit(source, "go", FAST, mask=rectangle(60, 60, (30, 30, 31, 31)))  # a single pixel
    changed = np.abs(pixels(edited) - pixels(source)).max(-1)
    assert changed.astype(bool).sum() <= 1


def test_mask_with_the_working_size_kept(editor):
    source, mask = picture(90, 70), rectangle(90, 70, (30, 20, 60, 50))
    (edited,) = editor.edit(source, "go", replace(FAST, keep_size=False), mask=mask)
    (plain,) = editor.edit(source, "go", replace(FAST, keep_size=False))
    assert edited.size == plain.size
    assert np.abs(pixels(edited) - pixels(plain))[0].max() > 0  # the corner is the photo's, not the edit's


def test_masks_that_do_not_work(tmp_path, editor):
    with pytest.raises(ValueError, match="mask is 40 x 40, the photo 60 x 60"):
        editor.edit(picture(60, 60), "go", FAST, mask=Image.new("L", (40, 40), 255))
    with pytest.raises(ValueError, match="no light part"):
        editor.edit(picture(60, 60), "go", FAST, mask=Image.new("L", (60, 60), 0))
    source = photo(tmp_path / "a.png")
    (tmp_path / "mask.png").write_bytes(b"no mask")
    job = planned([str(source)], ["go"], str(tmp_path / "out"), FAST, 1, mask=str(tmp_path / "mask.png"))
    with pytest.raises(ValueError, match=r"mask\.png"):
        run_job(editor, job)
    assert not (tmp_path / "out").exists()


# Sweeps


def test_a_sweep_gives_one_sheet_over_all_scales(tmp_path, editor):
    source = photo(tmp_path / "a.png", 64, 64)
    job = planned(
        [str(source)], ["make it night"], str(tmp_path / "x.png"), FAST, 3, sweep=([1.0, 7.5], [1.0, 1.5, 3.0])
    )
    assert job.total_steps == 2 * 3 * FAST.steps
    steps = []
    written, failed = run_job(editor, job, lambda: steps.append(1))
    assert (written, failed, len(steps)) == ([tmp_path / "x.png"], 0, job.total_steps)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".png"].count("x.png") == 1
    sheet = pixels(tmp_path / "x.png")
    assert sheet.shape[1] > 4 * 256  # the photo and three columns
    assert sheet.shape[0] > 2 * 256

    def shown(image: Image.Image) -> bool:
        """Whether the sheet holds the picture (enlarged four times without smoothing) somewhere."""
        small = pixels(image)
        probe = np.repeat(np.repeat(small[30:34], 4, 0), 4, 1)
        rows = [y for y in range(sheet.shape[0] - 16) if (sheet[y] == probe[0, 0]).all(-1).any()]
        for y in rows:
            for x in np.flatnonzero((sheet[y, : sheet.shape[1] - 255] == probe[0, 0]).all(-1)):
                if np.array_equal(sheet[y : y + 16, x : x + 256], probe):
                    return True
        return False

    assert shown(Image.open(source))
    for text in (1.0, 7.5):
        for image in (1.0, 1.5, 3.0):
            settings = replace(FAST, text_scale=text, image_scale=image)
            assert shown(editor.edit(picture(64, 64), "make it night", settings, [3])[0]), (text, image)
    assert not shown(editor.edit(picture(64, 64), "make it night", replace(FAST, text_scale=20.0), [3])[0])


def test_a_sweeps_sheet_carries_its_recipe_with_all_scales_and_may_be_a_jpeg(tmp_path, editor):
    source = str(photo(tmp_path / "a.png", 64, 64))
    rectangle(64, 64, (5, 5, 30, 30)).save(tmp_path / "mask.png")
    sweep, mask = ([1.0, 7.5], [1.5]), str(tmp_path / "mask.png")
    for name in ("x.png", "x.jpg"):
        written, _ = run_job(editor, planned([source], ["go"], str(tmp_path / name), FAST, 3, 1, sweep, mask))
        assert written == [tmp_path / name]
    recipe = read_recipe(tmp_path / "x.png")
    assert (recipe["text_scale"], recipe["image_scale"]) == ([1.0, 7.5], [1.5])
    assert (recipe["instruction"], recipe["seed"], recipe["steps"], recipe["mask"]) == ("go", 3, 2, "mask.png")


# Recipes


def test_a_recipe_gives_the_picture_again(tmp_path, editor):
    source = photo(tmp_path / "a.png", 48, 40)
    settings = EditSettings(
        text_scale=4.0,
        image_scale=1.25,
        steps=3,
        sampler="dpmpp_2m_sde",
        resolution=64,
        guidance_interval=(0.1, 10.0),
        negative="blurry",
    )
    job = planned([str(source)], ["mach es grün, “sks” 夜"], str(tmp_path / "x.png"), settings, 123)
    run_job(editor, job)
    recipe = read_recipe(tmp_path / "x.png")
    assert (recipe["instruction"], recipe["seed"], recipe["sampler"]) == ("mach es grün, “sks” 夜", 123, "dpmpp_2m_sde")
    assert (recipe["text_scale"], recipe["image_scale"], recipe["steps"]) == (4.0, 1.25, 3)
    assert (recipe["checkpoint_hash"], recipe["precision"]) == (editor.provenance.checkpoint_hash, "fp32")
    assert recipe["input"] == "a.png"
    names = set(asdict(settings))
    again = EditSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items() if k in names})
    assert again == replace(settings, spacing=settings.noise_spacing)
    (edited,) = editor.edit(Image.open(source), recipe["instruction"], again, [recipe["seed"]])
    assert np.array_equal(pixels(edited), pixels(tmp_path / "x.png"))


def test_every_setting_is_in_the_recipe(tmp_path, editor):
    job = planned([str(photo(tmp_path / "a.png"))], ["go"], str(tmp_path / "x.png"), FAST, 1)
    run_job(editor, job)
    assert set(asdict(FAST)) <= set(read_recipe(tmp_path / "x.png"))


def test_what_else_changes_the_picture_changes_the_recipe(tmp_path, tiny_ckpt):
    """Another first stage gives another picture: the two recipes must not be equal."""
    other = {k: v.clone() for k, v in build_tiny(seed=9).first_stage_model.state_dict().items()}
    save_file(other, tmp_path / "vae.safetensors")
    source = photo(tmp_path / "a.png")
    recipes, shown = [], []
    for name, vae in (("x.png", None), ("y.png", tmp_path / "vae.safetensors")):
        editor = ImageEditor.from_checkpoint(tiny_ckpt, None, vae, device="cpu", precision="fp32")
        run_job(editor, planned([str(source)], ["go"], str(tmp_path / name), FAST, 1))
        recipes.append(read_recipe(tmp_path / name))
        shown.append(pixels(tmp_path / name))
    assert not np.array_equal(*shown)
    assert recipes[0] != recipes[1]


def test_a_named_config_is_in_the_recipe_with_what_it_says(tmp_path, tiny_model):
    ckpt, config = tmp_path / "bare.safetensors", OmegaConf.create(tiny_config())
    save_checkpoint(ckpt, tiny_model.state_dict(), {})
    source = photo(tmp_path / "a.png")
    told = []
    for parameterization in ("eps", "v"):
        config.model.params.parameterization = parameterization
        OmegaConf.save(config, tmp_path / "my.yaml")
        editor = ImageEditor.from_checkpoint(ckpt, tmp_path / "my.yaml", device="cpu")
        run_job(editor, planned([str(source)], ["go"], str(tmp_path / "x.png"), FAST, 1))
        told.append(read_recipe(tmp_path / "x.png")["config"])
    assert [text.split()[0] for text in told] == ["my.yaml"] * 2
    assert told[0] != told[1]


def test_the_recipe_of_a_very_large_picture_is_read(tmp_path, monkeypatch):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("instruct2dream", json.dumps({"seed": 3}))
    picture(64, 64).save(tmp_path / "large.png", pnginfo=info)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own alarm, an error from twice as many pixels on
    assert read_recipe(tmp_path / "large.png") == {"seed": 3}
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(recipe_module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="64 x 64 pixels are too many"):
        read_recipe(tmp_path / "large.png")


def test_recipes_that_are_not_there(tmp_path, editor):
    photo(tmp_path / "plain.png")
    photo(tmp_path / "plain.jpg")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("instruct2dream", "{ not JSON")
    picture().save(tmp_path / "damaged.png", pnginfo=info)
    for name in ("plain.png", "plain.jpg", "broken.png", "empty.png", "damaged.png"):
        with pytest.raises(ValueError, match=name) as caught:
            read_recipe(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_recipe(tmp_path / "gone.png")


# What a checkpoint recommends


def test_a_checkpoints_own_settings_are_the_start():
    metadata = {"edit_defaults": {"text_scale": 2.5, "steps": 20, "sampler": "dpmpp_2m", "resolution": 64}}
    settings = EditSettings.of_checkpoint(metadata, steps=5, text_scale=None, negative="")
    assert (settings.text_scale, settings.steps, settings.sampler, settings.resolution) == (2.5, 5, "dpmpp_2m", 64)
    assert EditSettings.of_checkpoint({}) == EditSettings()


@pytest.mark.parametrize(
    "defaults",
    [
        {"step": 20},
        {"steps": "many"},
        {"steps": 2.5},
        {"steps": None},
        {"steps": 0},
        {"sampler": ["euler"]},
        {"sampler": "none"},
        {"resolution": "512"},
        {"text_scale": "high"},
        {"guidance_interval": 3},
        {"negative": 7},
        ["steps"],
        "steps",
        7,
    ],
)
def test_nonsense_that_a_checkpoint_recommends_is_refused(tmp_path, defaults):
    metadata = json.loads(json.dumps({"edit_defaults": defaults}))
    source = photo(tmp_path / "a.png")
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        planned([str(source)], ["go"], str(tmp_path / "out"), EditSettings.of_checkpoint(metadata), 1)


@pytest.mark.parametrize(
    "defaults", [{"step": 20}, {"steps": "many"}, {"scale": None}, {"sampler": ["ddim"]}, {"width": 0}, ["steps"], 7]
)
def test_nonsense_that_a_checkpoint_recommends_for_text_to_image_is_refused(defaults):
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        TextSettings.of_checkpoint({"text_defaults": defaults})
    fine = TextSettings.of_checkpoint({"text_defaults": {"scale": 3, "steps": 20}}, steps=5)
    assert (fine.scale, fine.steps) == (3, 5)


def test_an_interrupted_job_leaves_whole_pictures_only(tmp_path, editor, monkeypatch):
    photo(tmp_path / "in" / "a.png", seed=1)
    photo(tmp_path / "in" / "b.png", seed=2)
    job = planned([str(tmp_path / "in")], ["go"], str(tmp_path / "out"), FAST, 1)
    real, calls = Image.Image.save, []

    def failing(self, target, *args, **options):
        calls.append(target)
        if len(calls) == 2:
            shutil.copy(job.tasks[0].output, target)
            raise KeyboardInterrupt
        return real(self, target, *args, **options)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        run_job(editor, job)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a-go-1.png"]
    assert leftovers(tmp_path) == []
