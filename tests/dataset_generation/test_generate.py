"""The command: what it makes, shares between processes and refuses."""

import json
import shutil
from types import SimpleNamespace

import pytest

from ldm.data.pairs import find_pairs
from ldm.data.personalized_edit import PersonalizedEdit
from ldm.dataset_generation import generate as dataset_job
from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.plan import (
    plan_edits,
    plan_instance,
    plan_regularization,
    plan_subject_edits,
)
from ldm.dataset_generation.request import PairRequest
from ldm.errors import UserError
from ldm.models.build import ModelSource
from tests.dataset_generation.stand_ins import Doubtful, FakeEditor, files, maker, photo, whole_plan

# Where this process stands


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # a batch script without srun does all the work
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, (0, 1)),  # srun --ntasks 1
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 2)),
        ({"SLURM_NTASKS": "4"}, (0, 1)),
    ],
)
def test_torchrun_and_slurm_say_which_share_is_ours(monkeypatch, variables, place):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dataset_job.rank_and_world() == place


@pytest.mark.parametrize("rank", ["2", "-1", "x", "0.5"])
def test_a_place_that_is_none_is_refused(monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=f"RANK={rank}"):
        dataset_job.rank_and_world()


def test_the_command_makes_a_dataset_of_the_good_pictures(generate, tmp_path, photos):
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    code, out, said = generate("--seed", 4, "--cfg-text", 3, "--steps", 9)
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "broken.png" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(p["folder"], p["photo"]) for p in manifest["pairs"]] == [
        *(("training", f"{name}.png") for name in "abc"),
        *(("regularization", f"{name}.png") for name in "ab"),
    ]
    assert manifest["pairs"][0]["seed"] == 4
    assert {name: manifest["settings"][name] for name in ("text_scale", "image_scale", "steps", "resolution")} == {
        "text_scale": 3.0,
        "image_scale": 1.5,
        "steps": 9,
        "resolution": 64,
    }


def test_regularization_pictures_are_told_for_each_source_word(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    photo(tmp_path / "foxes" / "f.png", 6)
    reg = ["--reg-photos", f"wolf={tmp_path / 'wolves'}", f"red fox={tmp_path / 'foxes'}"]
    code, _, _ = generate("--source-words", "wolf", "red fox", *reg, **{"source-words": None, "num-reg": 4})
    assert code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reg = [(p["source_word"], p["photo"], p["direction"]) for p in manifest["pairs"] if p["folder"] != "training"]
    assert reg == [("wolf", "w.png", "forward"), ("red fox", "f.png", "forward")] * 2
    assert len(manifest["pairs"]) == 6 + 4


def test_source_words_without_a_folder_get_round_trips_and_a_word_is_said(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    photo(tmp_path / "dogs" / "d.png", 6)
    reg = ["--source-words", "wolf", "fox", "--reg-photos", f"wolf={tmp_path / 'wolves'}"]
    code, _, said = generate(*reg, **{"source-words": None, "num-reg": 5, "class-photos": tmp_path / "dogs"})
    assert code == 0
    assert said.count("no --reg-photos of fox") == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reg = [(p["source_word"], p["photo"], p["direction"]) for p in manifest["pairs"] if p["folder"] != "training"]
    assert reg == ([("wolf", "w.png", "forward"), ("fox", "d.png", "round trip")] * 3)[:5]


def test_two_processes_by_the_command_write_one_manifest(generate, tmp_path, photos, monkeypatch):
    seen = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, _, said = generate()
        seen.append((code, "share is done" in said, (tmp_path / "out" / "manifest.json").exists()))
    assert seen == [(0, True, False), (0, False, True)]


def test_pairs_set_aside_are_told_and_none_at_all_is_an_error(generate, tmp_path, photos):
    code, _, said = generate(editor=FakeEditor(lambda text, seed, _: "blank" if seed % 10_000_000 == 1 else ""))
    assert code == 0
    assert "1 of training (b.png) was set aside: blank" in said
    shutil.rmtree(tmp_path / "out")
    code, _, said = generate(editor=FakeEditor(lambda *_: "unchanged"))
    assert code == 2
    assert "no instance pair passed the gates (unchanged)" in said
    shutil.rmtree(tmp_path / "out")
    code, _, said = generate(editor=FakeEditor(lambda *_: "not finite"))
    assert code == 2
    assert "(not finite); try --precision fp32" in said


def test_one_photo_is_enough_but_a_word_is_said_about_it(generate, tmp_path):
    photo(tmp_path / "photos" / "a.png")
    code, _, said = generate("--source-words", "wolf", "fox", "cat", **{"source-words": None, "num-reg": 0})
    assert code == 0
    assert "1 photo(s)" in said
    assert "3 source words for 1 photos" in said
    assert len(find_pairs(tmp_path / "out" / "training")) == 3
    assert not (tmp_path / "out" / "regularization").exists()


WRONG = {
    "no folder": ({"photos": "gone"}, "gone"),
    "empty folder": ({"photos": "hollow"}, "hollow"),
    "only texts": ({"photos": "texts"}, "texts"),
    "only broken pictures": ({"photos": "broken"}, "none of the 1 pictures"),
    "source word is the class word": ({"source-words": "Dog"}, "is the class word"),
    "empty class word": ({"class-word": " "}, "class word is empty"),
    "empty source edit": ({"source-edits": " "}, "source edit ' '"),
    "field in a source edit": ({"source-edits": "take the {thing} off"}, "no other field than {word}"),
    "negative number": ({"num-reg": -1}, "--num-reg is -1"),
    "no batch": ({"batch-size": 0}, "--batch-size is 0"),
    "no pair per photo": ({"per-photo": 0}, "--per-photo is 0"),
    "negative seed": ({"seed": -1}, "seed"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "other word": ({"reg-photos": "fox=photos"}, "fox"),
    "empty pictures": ({"reg-photos": "wolf=hollow"}, "hollow"),
    "sampler": ({"sampler": "eulr"}, "eulr"),
    "scale": ({"cfg-text": -1}, "text_scale is -1"),
    "no config": ({"config": "gone.yaml"}, "gone.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(generate, tmp_path, photos, name, monkeypatch):
    changes, said = WRONG[name]
    (tmp_path / "hollow").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    code, out, err = generate(**changes)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("gates: {blanc: 0.1}", "gates.blanc"),
        ("settings: {step: 3}", "settings.step"),
        ("gate: {blank: 0.1}", "gate"),
        ("gates: {unchanged: 0.5, destroyed: 0.1}", "destroyed"),
        ("gates: {attempts: many}", "attempts"),
        ("gates: 3", "gates"),
        ("settings: {steps: many}", "steps"),
        ("settings: {guidance_interval: 5}", "guidance_interval is 5; a list of 2 numbers"),
        ("settings: {guidance_interval: [1, many]}", "guidance_interval"),
        ("settings: {guidance_interval: [5, 1]}", "needs 0 <= low < high"),
    ],
)
def test_a_slip_in_the_config_is_told_in_one_line(generate, tmp_path, photos, config, said):
    (tmp_path / "pairs.yaml").write_text(config)
    code, out, err = generate(config=tmp_path / "pairs.yaml")
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_the_config_sets_gates_and_settings_and_the_command_line_wins(tmp_path):
    (tmp_path / "pairs.yaml").write_text("settings: {text_scale: 3.0, steps: 7}\ngates: {attempts: 9, blank: 0.01}")
    request = PairRequest(
        ModelSource("no.ckpt"), ("a.png",), "dog", ("wolf",), tmp_path, tmp_path / "pairs.yaml", settings={"steps": 5}
    )
    settings, gates = request.how({"edit_defaults": {"text_scale": 2.0, "image_scale": 1.2}})
    assert (settings.text_scale, settings.image_scale, settings.steps) == (3.0, 1.2, 5)
    assert gates == Gates(attempts=9, blank=0.01)
    for told, interval in (("[0.5, 9]", (0.5, 9.0)), ("null", None)):
        (tmp_path / "pairs.yaml").write_text(f"settings: {{guidance_interval: {told}}}")
        assert request.how({})[0].guidance_interval == interval


def test_without_a_class_word_the_command_says_which_option_is_missing(generate, photos):
    code, _, err = generate(**{"class-word": None})
    assert code == 2
    assert "--class-word is needed" in err


def test_a_clip_judges_every_pair_by_its_own_words_and_is_noted(tmp_path, photos):
    clip = Doubtful()
    manifest = maker(tmp_path / "out", clip=clip).run(whole_plan(photos))
    assert manifest["clip"] == "doubtful"
    assert manifest["pairs"] == []
    assert {note["set_aside"] for note in manifest["set_aside"]} == {"not what was asked (CLIP)"}
    assert ["a photo of a dog", "a photo of a wolf"] in clip.asked  # reverse
    assert ["a photo of a wolf", "a photo of a dog"] in clip.asked  # forward
    with pytest.raises(ValueError, match="begun with other"):
        maker(tmp_path / "out", clip=SimpleNamespace(name="other"))


def test_a_clip_that_is_not_there_is_one_line(generate, tmp_path, photos):
    code, _, said = generate(clip=tmp_path / "nothing")
    assert code == 2
    assert "cannot be loaded" in said


# Pairs that keep other edits what they were


def test_other_edits_take_the_sentences_in_turn_over_all_pictures(photos):
    texts = ["make the {word} red", "make it night"]
    plan = plan_edits({"wolf": photos[:2], "fox": photos[2:]}, texts, 16, 7)
    assert len({p.id for p in plan}) == 16
    assert [p.instruction for p in plan[1::2]] == ["make it night"] * 8
    assert {(p.instruction, p.photo.stem) for p in plan[::2]} == {
        ("make the wolf red", "a"),
        ("make the wolf red", "b"),
        ("make the fox red", "c"),
    }
    assert {(p.folder, p.direction) for p in plan} == {("regularization", "edit")}
    many = plan_edits({"wolf": photos * 20, "fox": photos * 20}, texts, 20, 7)
    assert [sum(p.source_word == word for p in many) for word in ("wolf", "fox")] == [10, 10]
    others = plan_regularization({"wolf": photos}, 30, 7) + plan_instance(photos, ["wolf"], 5, 7)
    assert not {p.seed for p in plan} & {p.seed for p in others}


@pytest.mark.parametrize("text", ["", "  ", "make the {animal} red", "make it {"])
def test_another_edit_that_says_nothing(photos, text):
    with pytest.raises(ValueError, match="regularization edit"):
        plan_edits({"wolf": photos}, ["make it night", text], 4, 0)


def test_other_edits_are_made_and_trained_with_their_own_sentences(generate, tmp_path, photos):
    photo(tmp_path / "wolves" / "w.png", 5)
    edits = ["--reg-photos", f"wolf={tmp_path / 'wolves'}", "--reg-edits", "make the {word} red", "make it night"]
    code, _, _ = generate(*edits, **{"num-reg": 2, "num-reg-edits": 4})
    assert code == 0
    reg = tmp_path / "out" / "regularization"
    data = PersonalizedEdit(str(reg), reg=True, size=16)
    said = ["replace the wolf with a dog"] * 2 + ["make the wolf red", "make it night"] * 2
    assert [data.item(i)["text"] for i in range(6)] == said
    assert (reg / "edit-0000_0.png").read_bytes() == (tmp_path / "wolves" / "w.png").read_bytes()
    again = files(tmp_path / "out")
    code, _, _ = generate(*edits, **{"num-reg": 2, "num-reg-edits": 4})
    assert (code, files(tmp_path / "out")) == (0, again)
    code, _, _ = generate(*edits, **{"num-reg": 4, "num-reg-edits": 4})  # more swaps: the rest stays
    assert code == 0
    now = files(tmp_path / "out" / "regularization")
    assert len(now) == 2 * 8
    assert all(now[name] == content for name, content in files(reg).items())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source_words"] == ["wolf"]
    code, _, said = generate("--reg-edits", "make it day", edits[0], edits[1], **{"num-reg": 4, "num-reg-edits": 4})
    assert code == 2
    assert "sentences" in said


def test_other_edits_may_change_the_background_but_must_change_something(tmp_path, photos):
    """A result that a class swap could not have is kept; an unchanged one is made again."""
    plan = plan_edits({"wolf": photos}, ["make it night"], 2, 0)
    notes = {}
    for fault in ("destroyed", "unchanged"):
        made = maker(tmp_path / fault, FakeEditor(lambda *_, fault=fault: fault))
        notes[fault] = made.run(plan)
    assert len(notes["destroyed"]["pairs"]) == 2
    assert [note["set_aside"] for note in notes["unchanged"]["set_aside"]] == ["unchanged"] * 2


def test_a_number_of_other_edits_without_sentences(generate):
    code, _, said = generate(**{"num-reg-edits": 4})
    assert code == 2
    assert "--num-reg-edits needs --reg-edits" in said


# Pairs that ask for other edits of the subject by its name


def test_edits_of_the_subject_take_the_sentences_in_turn_over_all_photos(photos):
    texts = ["make the {word} red", "put the {word}  in the forest"]
    plan = plan_subject_edits(photos, "dog", texts, 6, 7)
    assert [p.instruction for p in plan[:2]] == [
        "make the {identifier} dog red",
        "put the {identifier} dog in the forest",
    ]
    assert [p.prompt for p in plan[:2]] == ["make the dog red", "put the dog in the forest"]
    assert {(p.prompt[0], p.photo.stem) for p in plan} == {(text, name) for text in "mp" for name in "abc"}
    assert {(p.folder, p.direction, p.source_word) for p in plan} == {("training", "edit", "dog")}
    others = plan_instance(photos, ["wolf"], 5, 7) + plan_edits({"wolf": photos}, ["make it night"], 20, 7)
    assert not {p.seed for p in plan} & {p.seed for p in others}
    assert not {(p.folder, p.id) for p in plan} & {(p.folder, p.id) for p in others}


@pytest.mark.parametrize("given", [{"reg-photos": "wolf=photos"}, {"num-reg": 0}], ids=["no word", "no pair"])
def test_class_photos_that_nothing_is_made_from_are_warned_of(generate, tmp_path, photos, given):
    given = {k: str(v).replace("wolf=photos", f"wolf={tmp_path / 'photos'}") for k, v in given.items()}
    code, _, said = generate(**given, **{"class-photos": tmp_path / "photos"})
    assert code == 0
    assert "--class-photos has no effect" in said


@pytest.mark.parametrize("text", ["", "make it night", "make the {word} {colour}", "make the {word} red }"])
def test_an_edit_of_the_subject_without_its_name_is_refused(photos, text):
    with pytest.raises(ValueError, match="subject edit"):
        plan_subject_edits(photos, "dog", ["make the {word} red", text], 4, 0)


def test_edits_of_the_subject_are_made_without_and_trained_with_the_identifier(generate, tmp_path, photos):
    editor = FakeEditor()
    edits = ["--subject-edits", "make the {word} red", "put the {word} in the forest"]
    code, _, _ = generate(*edits, editor=editor, **{"num-reg": 1, "num-subject-edits": 4})
    assert code == 0
    training = tmp_path / "out" / "training"
    data = PersonalizedEdit(str(training), "zwx", size=16)
    said = ["make the zwx dog red", "put the zwx dog in the forest"] * 2
    assert [data.item(i)["text"] for i in range(7)] == ["replace the wolf with a zwx dog"] * 3 + said
    assert (training / "edit-0000_0.png").read_bytes() == (tmp_path / "photos" / "a.png").read_bytes()
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())["pairs"]
    asked = [record["instruction"] for pair in made if pair["direction"] == "edit" for record in pair["made"]]
    assert asked == ["make the dog red", "put the dog in the forest"] * 2
    again = files(tmp_path / "out")
    code, _, _ = generate(*edits, **{"num-reg": 1, "num-subject-edits": 4})
    assert (code, files(tmp_path / "out")) == (0, again)


def test_ten_edits_of_the_subject_for_each_sentence_unless_a_number_is_given(generate, tmp_path, photos):
    code, _, _ = generate("--subject-edits", "make the {word} red", **{"num-reg": 0})
    assert code == 0
    assert len(list((tmp_path / "out" / "training").glob("edit-*_1.png"))) == 10
    code, _, said = generate(**{"num-subject-edits": 4})
    assert code == 2
    assert "--num-subject-edits needs --subject-edits" in said


def test_edits_of_the_subject_do_not_stand_for_pairs_that_show_it(generate, tmp_path, photos):
    refused = FakeEditor(lambda text, *_: "unchanged" if text.startswith("replace") else "")
    code, _, said = generate("--subject-edits", "make the {word} red", editor=refused)
    assert code == 2
    assert "no instance pair passed the gates (unchanged)" in said
