"""The weights that ship: they edit, guidance acts as it should, and training from them does not break them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ldm.checkpoint.read import read_checkpoint
from ldm.data.images import open_rgb, to_tensor
from ldm.inference.editor import ImageEditor
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import EditSettings, TextSettings
from ldm.models.build import load_model
from ldm.project import CONFIGS
from ldm.spriteworld.judging import measures as m
from ldm.spriteworld.judging import subject as subjects
from ldm.spriteworld.judging.editor import draw_edits, editing
from ldm.spriteworld.judging.recogniser import batch, load_recogniser, train_recognisers
from ldm.spriteworld.judging.reconstruction import first_stage_figures
from ldm.spriteworld.world.photos import write_photos, write_pictures
from ldm.spriteworld.world.scene import ANIMALS, COATS, SUBJECTS
from ldm.spriteworld.world.sentences import with_coat
from ldm.spriteworld.world.tensors import masks, pictures
from ldm.training.run import train
from ldm.training.settings import load_training_config

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "spriteworld"


@pytest.fixture(scope="module")
def editor():
    return ImageEditor.from_checkpoint(DATA / "editor.safetensors", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def recogniser():
    return load_recogniser(DATA / "recogniser.safetensors")


@pytest.fixture(scope="module")
def swaps():
    edits = draw_edits(16, 91, "class")
    before, was, will = (
        pictures([e.source for e in edits]),
        masks([e.source for e in edits]),
        masks([e.target for e in edits]),
    )
    return edits, before, was, will


@pytest.mark.parametrize("name", ["editor", "text-to-image", "first-stage", "recogniser", "recogniser-grey"])
def test_what_ships_is_small_half_precision_and_says_what_it_is(name):
    path = DATA / f"{name}.safetensors"
    checkpoint = read_checkpoint(path)
    assert path.stat().st_size <= 12e6
    assert {t.dtype for t in checkpoint.tensors.values() if t.is_floating_point()} == {torch.float16}
    assert checkpoint.metadata.get("config" if "recogniser" not in name else "accuracy")


def test_the_shipped_models_share_one_first_stage():
    """What a subject's photos, an edit and a picture from text become is then the same latent."""
    kept = [
        read_checkpoint(DATA / f"{name}.safetensors").tensors for name in ("first-stage", "editor", "text-to-image")
    ]
    own = {key: tensor for key, tensor in kept[0].items() if key.startswith("first_stage_model.")}
    assert len(own) > 50
    for other in kept[1:]:
        assert all(torch.equal(tensor, other[key]) for key, tensor in own.items())


def test_the_shipped_photos_and_pictures_are_what_their_commands_draw(tmp_path):
    for folder, write in ((DATA / "subjects", write_photos), (DATA / "pictures", write_pictures)):
        for shipped in sorted(path for path in folder.iterdir() if path.is_dir()):
            drawn = write(tmp_path / shipped.name, shipped.name)
            assert [path.name for path in drawn] == sorted(path.name for path in shipped.glob("*.png"))
            for path in drawn:
                assert open_rgb(path).tobytes() == open_rgb(shipped / path.name).tobytes()


def test_a_short_training_of_a_recogniser_learns_from_nothing():
    torch.manual_seed(0)
    models = train_recognisers(steps=40, batch_size=24)
    x, animal, subject = batch(seed=98, first=0, size=200)
    with torch.no_grad():
        for model in models:
            animals, subjects_ = model(x)
            assert F.cross_entropy(animals, animal) < 0.9 * math.log(len(ANIMALS))
            assert F.cross_entropy(subjects_, subject) < 0.9 * math.log(1 + len(SUBJECTS))


def settings(**more):
    return EditSettings.of_checkpoint(read_checkpoint(DATA / "editor.safetensors").metadata, steps=8, **more)


def test_class_swaps_are_recognised(editor, recogniser, swaps):
    edits, before, *_ = swaps
    x = editing(editor, settings())(before, [e.instruction for e in edits])
    right = [a == e.target.animal for a, e in zip(recogniser.animals(x), edits, strict=True)]
    assert sum(right) >= 14  # 99 of 100 over many; none by chance


def test_a_coat_that_is_named_comes(editor, swaps):
    """Where a class has two coats, the one that the instruction names, and the other when that is named."""
    edits, before, _, will = swaps
    two = [i for i, e in enumerate(edits) if len(COATS[e.target.animal]) == 2 and e.target.style != "grey"]

    def wearing(coat):
        return [replace(e.target, coat=COATS[e.target.animal][coat]) for e in (edits[i] for i in two)]

    for k in range(2):
        asked = [replace(edits[i], target=target) for i, target in zip(two, wearing(k), strict=True)]
        texts = [with_coat(edit).instruction for edit in asked]
        x = editing(editor, settings())(before[two], texts)
        truth, other = pictures(wearing(k)), pictures(wearing(1 - k))
        nearer = m.masked_psnr(x, truth, will[two]) > m.masked_psnr(x, other, will[two])
        assert nearer.float().mean() > 0.85


def test_more_text_scale_changes_more_and_more_image_scale_keeps_more(editor, swaps):
    """Kept is what a swap should leave alone: the background. With no text at all that is the picture's scale alone."""
    edits, before, was, will = swaps
    texts = [e.instruction for e in edits]

    def edited(**scales):
        return editing(editor, settings(**scales))(before, texts)

    by_text = [(edited(text_scale=text, image_scale=1.5) - before).abs().mean().item() for text in (1.0, 2.5, 5.0)]
    assert by_text == sorted(by_text)
    for text in (0.0, 0.5, 2.0):
        made = [edited(text_scale=text, image_scale=image) for image in (0.0, 0.5, 1.0)]
        lost = [m.background_l1(x, before, was, will).mean().item() for x in made]
        assert lost == sorted(lost, reverse=True)
        assert lost[0] > 1.1 * lost[-1]


def test_a_subjects_figures_for_one_that_always_answers_right_and_one_that_never_edits(recogniser):
    photos = to_tensor([open_rgb(path) for path in sorted((DATA / "subjects" / "biscuit").glob("*.png"))])
    asked = []

    def oracle(x, texts):
        asked.append(texts)
        wolves = subjects.source_scenes("wolf", len(x), 1)
        scenes = wolves if "wolf" in texts[0] else None
        if scenes is None or "sks" not in texts[0]:
            return x
        return pictures([subjects.true_scene(scene, "biscuit") for scene in scenes])

    best, _ = subjects.subject_figures(oracle, "biscuit", recogniser, photos, ("wolf",), n=12, seed=1)
    assert best["trained source: subject recognised"].mean == 1
    assert best["trained source: colour distance"].mean < 1e-3
    assert best["trained source: incomplete edit"].mean == 0
    assert best["trained source: roughness"].mean == pytest.approx(1)
    copied, _ = subjects.subject_figures(lambda x, _: x, "biscuit", recogniser, photos, ("wolf",), n=12, seed=1)
    assert copied["trained source: subject recognised"].mean == 0
    assert copied["trained source: incomplete edit"].mean == 1
    assert copied["trained source: background kept (dB)"].mean == 60
    assert copied["plain class: recognised"].mean == 0
    assert asked[0][0] == "replace the wolf with a sks dog"
    assert asked[-1][0] == "replace the wolf with a dog"


def trained_further(name, more, tmp_path):
    overrides = [
        "model.params.scheduler_config=null",
        "data.params.train.params.length=64",
        "data.params.batch_size=8",
        "data.params.num_workers=0",
        "training.max_steps=4",
        "training.sheet_every=0",
        "training.precision=fp32",
        *more,
    ]
    config = load_training_config(CONFIGS / "spriteworld" / f"{name}.yaml", overrides)
    return train(config, "go-on", tmp_path) / "checkpoints" / "step=4.safetensors"


def test_some_steps_from_the_shipped_first_stage_do_not_break_it(editor, tmp_path):
    more = [f"model.params.ckpt_path={DATA / 'first-stage.safetensors'}", "model.params.learning_rate=1e-4"]
    weights = trained_further("first-stage", [*more, "model.params.optimizer_config.params.muon_lr=0.001"], tmp_path)
    stage = load_model(DATA / "editor.safetensors", vae_ckpt=weights).first_stage_model
    before, now = (
        first_stage_figures(lambda x, s=s: s.decode(s.encode(x).mode()), n=16)
        for s in (editor.model.first_stage_model, stage)
    )
    for name in ("animals: inside the mask (dB)", "subjects: inside the mask (dB)"):
        assert now[name].mean != before[name].mean
        assert now[name].mean > before[name].mean - 1


def test_some_steps_from_the_shipped_text_to_image_do_not_break_it(recogniser, tmp_path):
    start = DATA / "text-to-image.safetensors"
    own = read_checkpoint(start).metadata["config"]["model"]["params"]["scale_factor"]  # of the first stage inside it
    more = [f"model.params.ckpt_path={start}", f"model.params.scale_factor={own}", "training.cache_latents=false"]
    weights = trained_further("text-to-image", more, tmp_path)
    prompts = [f"a {animal} in the meadow" for animal in ANIMALS for _ in range(4)]
    wanted = [animal for animal in ANIMALS for _ in range(4)]
    right = []
    for path in (start, weights):
        maker = ImageGenerator.from_checkpoint(read_checkpoint(path), device="cpu", precision="fp32")
        chosen = TextSettings.of_checkpoint(read_checkpoint(path).metadata, steps=8)
        x = to_tensor(maker.generate(prompts, chosen, seeds=range(len(prompts))))
        right.append(sum(a == b for a, b in zip(recogniser.animals(x), wanted, strict=True)))
    assert right[0] >= 18  # of 24; four by chance
    assert right[1] >= right[0] - 3


def test_some_steps_from_the_shipped_weights_do_not_break_them(tmp_path, recogniser, swaps):
    edits, before, *_ = swaps
    more = [f"model.params.ckpt_path={DATA / 'editor.safetensors'}", "training.cache_latents=false"]
    weights = trained_further("instruct-pix2pix", more, tmp_path)
    old, now = (load_model(path, precision="fp32").state_dict() for path in (DATA / "editor.safetensors", weights))
    name = "model.diffusion_model.out.2.weight"
    assert not torch.equal(old[name], now[name])
    trained = ImageEditor.from_checkpoint(weights, device="cpu", precision="fp32")
    x = editing(trained, settings())(before, [e.instruction for e in edits])
    right = [a == e.target.animal for a, e in zip(recogniser.animals(x), edits, strict=True)]
    assert sum(right) >= 14
    assert m.background_psnr(x, before, *swaps[2:]).mean() > 25
