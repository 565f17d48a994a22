"""Whole evaluations, small: holes are marked, stopped ones go on, results can be compared, bad suites get one line."""

import csv
import json
import re
import runpy
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import weights_of
from ldm.checkpoint.save import save_checkpoint
from ldm.data.images import to_tensor
from ldm.evaluation import methods as methods_module
from ldm.evaluation import report
from ldm.evaluation.compare import compare
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.methods import read_methods
from ldm.evaluation.report import best_of
from ldm.evaluation.results import BOUNDS, Record, Results, as_markdown
from ldm.evaluation.statistics import Interval
from ldm.evaluation.suites import read_suite
from ldm.inference.recipe import read_recipe
from ldm.spriteworld.judging.recogniser import load_recogniser

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "spriteworld"
GIVEN = [
    f"dreambooth={DATA / 'text-to-image.safetensors'}",
    f"instruct_pix2pix={DATA / 'editor.safetensors'}",
]


def suite_content(tmp_path):
    photo = tmp_path / "photo.png"
    Image.open(DATA / "pictures/wolf/01.png").save(photo)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 60))
    mask.save(tmp_path / "mask.png")
    prompts = {"dreambooth": "a {identifier} {class_word}", "instruct_pix2pix": "replace the wolf with a {class_word}"}
    drawn = {"scenes": 2, "seed": 5, "animal": "wolf", "style": "day"}
    return {
        "name": "small",
        "about": "A <b>small</b> suite & its holes.",
        "seeds": [3],
        "batch_size": 2,
        "settings": {"dreambooth": {"steps": 2}, "instruct_pix2pix": {"steps": 2}},
        "subjects": {
            "biscuit": {"photos": str(DATA / "subjects/biscuit"), "class_word": "dog", "world": "biscuit"},
        },
        "cases": [
            {"name": "drawn", "subject": "biscuit", "kind": "replacement", "reach": "local", "drawn": drawn,
             "answer": {"subject": "biscuit"}, "prompts": prompts},
            {"name": "real", "subject": "biscuit", "kind": "accessorisation", "reach": "local",
             "picture": "photo.png", "mask": "mask.png", "prompts": prompts,
             "caption_before": "a wolf", "caption_after": "a dog"},
            {"name": "hole", "subject": "biscuit", "kind": "art rendition", "reach": "global",
             "picture": "missing/00.jpg", "prompts": prompts},
            {"name": "plain", "subject": "biscuit", "kind": "prior", "reach": "local", "drawn": drawn,
             "answer": {"animal": "dog"}, "prompts": {"dreambooth": "a {class_word} {where}"}},
        ],
    }  # fmt: skip


def write(tmp_path, content):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def run(tmp_path, output, given=GIVEN, content=None):
    suite = read_suite(write(tmp_path, content or suite_content(tmp_path)), ROOT)
    recogniser = load_recogniser(DATA / "recogniser.safetensors")
    return evaluate(suite, read_methods(given, suite), {}, {"dino": "none here"}, recogniser, output, precision="fp32")


class Colours:
    """In the place of a backbone: a picture's mean colour as unit features."""

    name, preprocessing = "mean colour", "none"

    def images(self, images):
        return F.normalize(torch.stack([to_tensor(image)[0].add(1).mean((1, 2)) for image in images]), dim=1)


def coloured_suite(tmp_path, colours=("red", "lime", "blue"), **more):
    """A suite of one subject, whose photos are plain colours; the first one is edited."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(colours):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i:02d}.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(folder / "00-mask.png")
    case = {
        "name": "hat", "subject": "rex", "kind": "accessorisation", "reach": "local", "picture": "photos/00.png",
        "mask": "photos/00-mask.png", "prompts": {"instruct_pix2pix": "give it a hat"},
    }  # fmt: skip
    subjects = {"rex": {"photos": "photos", "class_word": "dog"}}
    return {"name": "colours", "subjects": subjects, "cases": [case | more]}


def bounds(tmp_path, content):
    """What an evaluation says without any method."""
    return evaluate(read_suite(write(tmp_path, content), ROOT), [], {"dino": Colours()}, {}, None, tmp_path / "out")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("evaluation")
    return tmp_path, run(tmp_path, tmp_path / "out")


class Page(HTMLParser):
    """Collects what a browser would be asked to fetch, the pictures, and tags left open."""

    VOID = frozenset({"meta", "img"})

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_complete_file(done):
    tmp_path, _results = done
    page = Page()
    page.feed((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.sources) == 3  # a sheet for every case that could be run
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "Not run: put the picture at 'missing/00.jpg'" in page.text
    assert "A <b>small</b> suite & its holes." in page.text  # escaped
    assert "Left out: dino (none here)" in page.text
    for name in ("DreamBooth", "InstructPix2Pix", *BOUNDS):
        assert name in page.text


def test_every_picture_has_its_row_its_file_and_its_recipe(done):
    tmp_path, results = done
    made = [r for r in results.records if r.file]
    assert len(made) == 2 * 2 + 2 * 1 + 2
    for record in made:
        recipe = read_recipe(tmp_path / "out" / record.file)
        assert (recipe["prompt"], recipe["seed"], recipe["method"]) == (record.prompt, record.seed, record.method)
    with open(tmp_path / "out/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    inputs = {(row["case"], row["index"]): row["input"] for row in rows}
    assert all(len(row["input"]) == 16 and row["input"] == inputs[row["case"], row["index"]] for row in rows)
    assert len(set(inputs.values())) >= 2 + 1  # two scenes and a photo
    assert len(rows) == len(results.records)
    assert {row["method"] for row in rows} == {"dreambooth", "instruct_pix2pix", *BOUNDS}
    same = [r for r in made if r.case == "drawn" and r.index == 1]
    assert len({r.seed for r in same}) == 1 < len(same)  # all methods draw the same
    assert next(r.prompt for r in made if r.case == "plain").startswith("a dog ")


def test_bounds_bound_and_holes_are_named(done):
    tmp_path, results = done
    summary = results.summary()
    replaced = summary["replacement"]
    assert replaced["exact answer"]["subject recognised"].mean == 1
    assert replaced["input copied"]["background kept (dB)"].mean == 60
    assert replaced["real photos"]["subject recognised"].mean >= 0.9
    prior = summary["prior (the plain class)"]
    assert set(prior["real photos"]) == {"PRES (recogniser)"}  # how alike the subject is to itself
    assert prior["real photos"]["PRES (recogniser)"].mean > prior["input copied"]["PRES (recogniser)"].mean
    assert "PRES (recogniser)" not in replaced["real photos"]
    assert replaced["input copied"]["background L1"].mean == 0
    assert "second subject" in replaced["instruct_pix2pix"]
    assert "second subject" not in replaced["dreambooth"]  # from text alone everything stands elsewhere
    real = [r for r in results.records if r.case == "real" and r.method == "input copied"]
    assert real[0].measures["background L1"] == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert list(content["holes"]) == ["hole"]
    assert content["methods"][0]["hash"]
    assert "| real photos |" in as_markdown(results, "replacement")


def test_masks_are_no_photos_and_a_photo_is_never_compared_with_itself(tmp_path):
    results = bounds(tmp_path, coloured_suite(tmp_path))
    found = {
        name: [r.measures["DINO"] for r in results.records if r.method == name]
        for name in ("input copied", "real photos")
    }
    assert found == {"input copied": [0], "real photos": [0, 0, 0]}


def test_edits_of_a_folder_of_the_photos_are_compared_with_none_of_them(tmp_path):
    content = coloured_suite(tmp_path, picture="photos", mask=None, reach="global")
    results = bounds(tmp_path, content)
    copies = [r for r in results.records if r.method == "input copied"]
    assert len(copies) == 3
    assert not any("DINO" in r.measures for r in copies)


def test_nothing_is_compared_with_the_only_photo_when_that_is_edited(tmp_path):
    content = coloured_suite(tmp_path, ("red",))
    suite = read_suite(write(tmp_path, content), ROOT)
    methods = read_methods(GIVEN[1:], suite)
    made = evaluate(suite, methods, {"dino": Colours()}, {}, None, tmp_path / "made", precision="fp32")
    assert {r.method for r in made.records} == {"instruct_pix2pix", "input copied"}
    assert not any("DINO" in r.measures for r in made.records)
    page = Page()
    page.feed((tmp_path / "made/report.html").read_text(encoding="utf-8"))
    assert "No photo of rex but what is edited: DINO and CLIP-I are not measured here." in page.text
    results = bounds(tmp_path, content)
    assert [r.method for r in results.records] == ["input copied"]
    assert "DINO" not in results.records[0].measures
    assert "background L1" in results.records[0].measures


def test_the_real_photos_of_a_group_are_those_of_its_subjects(tmp_path):
    content = coloured_suite(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "first")
    more = coloured_suite(tmp_path, ("white", "black"))
    content["subjects"] = {"rex": {"photos": "first", "class_word": "dog"}, "tom": more["subjects"]["rex"]}
    rex, tom = content["cases"][0], more["cases"][0]
    rex |= {"picture": "first/00.png", "mask": "first/00-mask.png"}
    tom |= {"name": "snow", "subject": "tom", "kind": "recontextualisation", "reach": "global"}
    content["cases"] = [rex, tom]
    summary = bounds(tmp_path, content).summary()
    counts = {group: rows["real photos"]["DINO"].n for group, rows in summary.items()}
    assert counts == {
        "all edits": 5, "global edits": 2, "local edits": 3, "accessorisation": 3, "recontextualisation": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ("photos/00-mask.png", None),
        ("photos/01-mask.png", "no mask at 'photos/01-mask.png': how well"),
        (None, "no mask: how well"),
    ],
)
def test_the_report_says_where_no_mask_is(tmp_path, mask, says):
    results = bounds(tmp_path, coloured_suite(tmp_path, mask=mask))
    page = Page()
    page.feed((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert ("background L1" in results.records[0].measures) == (says is None)
    assert says in page.text if says else "no mask" not in page.text
    assert page.open == []


def test_a_folder_of_masks_only_is_a_hole(tmp_path):
    content = coloured_suite(tmp_path)
    for i in range(3):
        (tmp_path / f"photos/{i:02d}.png").rename(tmp_path / f"{i:02d}.png")
    content["cases"][0]["picture"] = "00.png"
    with pytest.raises(ValueError, match="put photos of rex"):
        read_suite(write(tmp_path, content), ROOT)


def test_called_again_it_makes_only_what_is_missing(done, monkeypatch):
    tmp_path, results = done
    made = [tmp_path / "out" / r.file for r in results.records if r.file]
    before = {path: path.read_bytes() for path in made}
    gone = next(path for path in made if "instruct_pix2pix" in str(path))
    pixels = np.asarray(Image.open(gone), float)
    gone.unlink()
    asked = []
    whole = methods_module.save_image
    monkeypatch.setattr(methods_module, "save_image", lambda i, path, t: (asked.append(path), whole(i, path, t)))
    run(tmp_path, tmp_path / "out")
    assert asked == [gone]
    assert all(path.read_bytes() == before[path] for path in made if path != gone)
    assert np.abs(np.asarray(Image.open(gone), float) - pixels).max() <= 1  # batches round differently


def test_other_settings_make_the_pictures_again(done, tmp_path):
    folder, _ = done
    content = suite_content(folder)
    content["settings"]["dreambooth"]["steps"] = 1
    results = run(folder, folder / "out2", content=content)
    seen = {read_recipe(folder / "out2" / r.file)["steps"] for r in results.records if r.file}
    assert seen == {1, 2}


def test_another_precision_makes_the_pictures_again(done):
    folder, results = done
    wanted = [r for r in results.records if r.file]
    assert {read_recipe(folder / "out" / r.file)["precision"] for r in wanted} == {"fp32"}
    assert results.made_with["precision"] == "fp32"
    for path in (folder / "out" / r.file for r in wanted):
        recipe = read_recipe(path)
        assert methods_module._is_there(path, recipe)
        assert not methods_module._is_there(path, {**recipe, "precision": "bf16"})
    assert results.made_with["photos"].keys() == {"biscuit"}


def record(case, method, index, seed, **measures):
    """A picture's figures; as in a suite, every input has seeds of its own."""
    seed += 1000 * index
    return Record(case, "replacement", "local", "biscuit", method, index, seed, "p", f"input {index}", "f", measures)


def test_all_methods_are_averaged_over_the_same_pictures(tmp_path):
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    done, kept = "instruction done", "background L1"
    records = [record("drawn", "dreambooth", i, 3, **{done: 1.0}) for i in range(2)]
    records += [record("drawn", "instruct_pix2pix", i, 3, **{done: 1.0, kept: 0.5}) for i in range(2)]
    records += [record("real", "instruct_pix2pix", i, 3, **{done: 0.0, kept: 0.1}) for i in range(2)]
    records += [record("real", "input copied", i, 3, **{kept: 0.0}) for i in range(2)]
    results = Results(suite, [], records, {}, {}, {}, {})
    rows = results.summary()["all edits"]
    assert rows["instruct_pix2pix"][done].mean == rows["dreambooth"][done].mean == 1.0
    assert rows["instruct_pix2pix"][done].n == 2
    assert rows["instruct_pix2pix"][kept].mean == pytest.approx(0.3), "the other method does not have this one at all"
    assert rows["instruct_pix2pix"][kept].n == 4
    apart = [r for r in records if (r.case, r.method) in (("drawn", "dreambooth"), ("real", "instruct_pix2pix"))]
    rows = Results(suite, [], apart, {}, {}, {}, {}).summary()["all edits"]
    assert (rows["dreambooth"][done].mean, rows["instruct_pix2pix"][done].mean) == (1.0, 0.0)


def test_seeds_of_one_picture_do_not_make_an_interval_narrower(tmp_path):
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    values = [0.1, 0.5, 0.9, 0.2, 0.4]
    once = [record("drawn", "instruct_pix2pix", i, 0, **{"background L1": v}) for i, v in enumerate(values)]
    often = [
        record("drawn", "instruct_pix2pix", i, seed, **{"background L1": v})
        for seed in range(4)
        for i, v in enumerate(values)
    ]
    found = [
        Results(suite, [], records, {}, {}, {}, {}).summary()["all edits"]["instruct_pix2pix"]["background L1"]
        for records in (once, often)
    ]
    assert found[0].low == pytest.approx(found[1].low)
    assert found[0].high == pytest.approx(found[1].high)


def test_other_inputs_under_the_same_names_make_the_pictures_again(done):
    folder, _ = done
    before = run(folder, folder / "out3")
    made = [folder / "out3" / r.file for r in before.records if r.case == "drawn" and r.method == "instruct_pix2pix"]
    inputs = [read_recipe(path)["input"] for path in made]
    content = suite_content(folder)
    content["cases"][0]["drawn"] = {**content["cases"][0]["drawn"], "seed": 6}
    run(folder, folder / "out3", content=content)
    assert all(read_recipe(path)["input"] != old for path, old in zip(made, inputs, strict=True))


def test_two_results_are_compared_picture_by_picture(done, tmp_path):
    folder, _ = done
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((folder / "out/results.json").read_text())
    for record in content["records"]:
        if record["method"] == "dreambooth" and "exact (dB)" in record["measures"]:
            record["measures"]["exact (dB)"] += 2.0
    (other / "results.json").write_text(json.dumps(content))
    table = compare(folder / "out", other)
    row = next(line for line in table.splitlines() if line.startswith("| dreambooth | exact (dB)"))
    assert "| +2.0 | " in row  # of two inputs no interval is known
    assert re.search(r"\| instruct_pix2pix \| exact \(dB\) .* \| \+0.0 \| \d", table)
    content["suite"] = "another"
    (other / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(folder / "out", other)
    with pytest.raises(FileNotFoundError, match="no results"):
        compare(tmp_path, folder / "out")


def test_a_change_is_starred_only_over_inputs_enough(tmp_path):
    for inputs, seeds, star in ((5, 1, True), (4, 3, False), (1, 12, False)):
        for name, by in (("a", 0.0), ("b", 0.1)):
            records = [
                {**RECORD, "input": f"input {i}", "index": i, "seed": s, "measures": {"DINO": 0.5 + 0.01 * i + by}}
                for i in range(inputs)
                for s in range(seeds)
            ]
            folder = tmp_path / f"{name}{inputs}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps({"suite": "s", "records": records, "methods": []}))
        table = compare(tmp_path / f"a{inputs}", tmp_path / f"b{inputs}")
        assert ("[+0.100, +0.100] *" in table) == star
        assert "+0.100" in table


def test_few_inputs_have_no_interval_and_no_best(tmp_path):
    """Twelve pictures of three inputs are three draws; of one input an interval would have no width at all."""
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    for inputs, known in ((1, False), (4, False), (5, True)):
        records = [
            record("drawn", method, i, seed, **{"instruction done": value})
            for method, value in (("dreambooth", 1.0), ("instruct_pix2pix", 0.0))
            for i in range(inputs)
            for seed in range(3)
        ]
        results = Results(suite, [], records, {}, {}, {}, {})
        rows = results.summary()["all edits"]
        value = rows["instruct_pix2pix"]["instruction done"]
        assert (value.n, value.draws, value.known) == (3 * inputs, inputs, known)
        assert (best_of(rows, "instruction done", ()) == "dreambooth") == known
        assert ("[" in as_markdown(results).splitlines()[-1]) == known


def test_the_same_picture_from_text_is_one_draw_in_whatever_cases_it_stands(tmp_path):
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    words = "a sks cat in a baseball field"
    records = [
        Record(case, "replacement", "local", "biscuit", method, 0, seed, words, "one", "f", {"exact (dB)": 9.0 + seed})
        for case in ("drawn", "real")
        for seed in range(4)
        for method in ("dreambooth", "instruct_pix2pix")
    ]
    rows = Results(suite, [], records, {}, {}, {}, {}).summary()["all edits"]
    assert rows["dreambooth"]["exact (dB)"].draws == 1
    other = [replace(r, subject="domino") for r in records if r.case == "real"]  # other weights, another picture
    two = Results(suite, [], [r for r in records if r.case == "drawn"] + other, {}, {}, {}, {}).summary()["all edits"]
    assert two["dreambooth"]["exact (dB)"].draws == 2
    assert rows["instruct_pix2pix"]["exact (dB)"].draws == 2  # an editor made two edits of one picture


def test_methods_without_a_common_picture_are_not_ranked_and_the_report_says_so(tmp_path):
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    done = "instruction done"
    records = [record("drawn", "dreambooth", i, 3, **{done: 1.0}) for i in range(6)]
    records += [record("real", "instruct_pix2pix", i, 3, **{done: 0.0}) for i in range(6)]
    results = Results(suite, [], records, {}, {}, {}, {})
    assert results.unshared() == {"all edits": [done], "local edits": [done]}
    rows = results.summary()["all edits"]
    assert best_of(rows, done, ()) == "dreambooth"
    table = report._table(rows, (), results.unshared()["all edits"])
    assert 'class="best"' not in table
    assert f"each method over its own: {done}." in table
    both = records + [record("real", "dreambooth", i, 3, **{done: 1.0}) for i in range(6)]
    assert Results(suite, [], both, {}, {}, {}, {}).unshared() == {}


def test_another_mask_or_caption_is_another_case(tmp_path):
    def asked(**more):
        for path in (tmp_path / "photos").glob("*"):
            path.unlink()
        if (tmp_path / "photos").is_dir():
            (tmp_path / "photos").rmdir()
        content = coloured_suite(tmp_path, **more)
        if more.get("mask"):
            Image.new("L", (64, 64)).save(tmp_path / "photos/01-mask.png")
        return bounds(tmp_path, content).made_with["cases"]

    first = asked()
    assert asked() == first
    assert len({first, asked(mask="photos/01-mask.png"), asked(caption_after="a dog"), asked(caption_before="a")}) == 4


def test_a_mask_that_leaves_no_background_is_named_before_anything_is_made(tmp_path):
    content = coloured_suite(tmp_path)
    Image.new("L", (64, 64), 255).save(tmp_path / "photos/00-mask.png")
    with pytest.raises(ValueError, match=r"00-mask\.png' covers the whole picture"):
        bounds(tmp_path, content)
    assert not (tmp_path / "out").exists()


def test_sides_that_a_network_cannot_make_are_refused_before_anything_is_made(tmp_path):
    content = suite_content(tmp_path)
    content["settings"]["dreambooth"]["width"] = 100
    suite = read_suite(write(tmp_path, content), ROOT)
    with pytest.raises(ValueError, match="dreambooth in settings of suite 'small': width is 100; a multiple of 16"):
        read_methods(GIVEN, suite)


def test_the_prior_is_asked_of_every_picture_of_a_folder(tmp_path):
    content = coloured_suite(tmp_path)
    (tmp_path / "others").mkdir()
    for i, colour in enumerate(("white", "black", "teal")):
        Image.new("RGB", (64 + 16 * i, 64), colour).save(tmp_path / f"others/{i}.png")
    prior = {
        "name": "a plain dog", "subject": "rex", "kind": "prior", "reach": "global", "picture": "others",
        "prompts": {"instruct_pix2pix": "make it a photo of a {class_word}"},
    }  # fmt: skip
    content |= {"cases": [*content["cases"], prior], "seeds": [0, 1], "settings": {"instruct_pix2pix": {"steps": 1}}}

    class Distance:
        model = None
        name = preprocessing = "none"

        def __call__(self, x, y):
            return (x - y).square().mean((1, 2, 3))

    def evaluated(name):
        suite = read_suite(write(tmp_path, content), ROOT)
        models = {"dino": Colours(), "lpips": Distance()}
        return evaluate(suite, read_methods(GIVEN[1:], suite), models, {}, None, tmp_path / name, precision="fp32")

    results = evaluated("several")
    rows = results.summary()["prior (the plain class)"]
    edited = rows["instruct_pix2pix"]
    assert (edited["DIV"].n, edited["DIV"].draws) == (6, 3)
    alone = [to_tensor(Image.new("RGB", (8, 8), colour)) for colour in ("white", "black", "teal")]
    apart = [Distance()(alone[i], alone[j]).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert rows["input copied"]["DIV"].mean == pytest.approx(sum(apart) / 3, rel=0.02)  # however many seeds
    assert rows["real photos"]["PRES"].mean == pytest.approx(0, abs=1e-6)  # red, green and blue
    for i in (1, 2):
        (tmp_path / f"others/{i}.png").unlink()
    rows = evaluated("one").summary()["prior (the plain class)"]
    assert "DIV" not in rows["instruct_pix2pix"]
    assert "PRES" in rows["instruct_pix2pix"]
    assert "DIV and variety are not measured of editors" in (tmp_path / "one/report.html").read_text()
    (tmp_path / "others/0.png").unlink()
    holes = read_suite(write(tmp_path, content), ROOT).holes
    assert list(holes) == ["a plain dog"]
    assert re.fullmatch(r"put pictures into '.*others'", holes["a plain dog"])


def test_the_prior_of_one_drawn_scene_says_nothing_of_how_unlike_edits_are(tmp_path):
    content = suite_content(tmp_path)
    plain = content["cases"][3] | {"prompts": {"instruct_pix2pix": "replace the wolf with a {class_word}"}}
    plain["drawn"] = plain["drawn"] | {"scenes": 1}
    content |= {"cases": [plain], "seeds": [0, 1]}
    rows = run(tmp_path, tmp_path / "out", GIVEN[1:], content).summary()["prior (the plain class)"]
    assert {"leak", "PRES (recogniser)"} <= set(rows["instruct_pix2pix"])
    assert not {"DIV (recogniser)", "variety"} & set().union(*rows.values())
    assert "One input: DIV and variety" in (tmp_path / "out/report.html").read_text()


def test_the_exact_answers_shadow_is_no_lost_background_for_any_measure(tmp_path):
    class Changed:
        model = None
        name = preprocessing = "none"

        def __call__(self, x, y):
            return (x - y).abs().amax((1, 2, 3))

    content = suite_content(tmp_path)
    content["cases"] = content["cases"][:1]
    suite = read_suite(write(tmp_path, content), ROOT)
    recogniser = load_recogniser(DATA / "recogniser.safetensors")
    results = evaluate(suite, [], {"lpips": Changed()}, {}, recogniser, tmp_path / "out")
    lost = [r.measures["background LPIPS"] for r in results.records if r.method == "exact answer"]
    assert len(lost) == 2
    assert max(lost) < 0.05  # of values in [-1, 1]: a step or two of 256


@pytest.mark.parametrize("records", [5, [1], [{"measures": {}}], {"a": 1}])
def test_files_that_hold_no_pictures_figures_are_refused(tmp_path, records):
    (tmp_path / "results.json").write_text(json.dumps({"suite": "s", "records": records}))
    with pytest.raises(ValueError, match="is no result of evaluate"):
        compare(tmp_path, tmp_path)


def test_a_comparison_says_what_else_was_not_alike(tmp_path):
    a = result(tmp_path, "a", **{"made with": {"precision": "fp32", "cases": "11"}}, prompt="give it a hat")
    b = result(tmp_path, "b", **{"made with": {"precision": "bf16", "cases": "11"}}, prompt="give it a cap", steps=77)
    table = compare(a, b)
    assert "- not alike: precision (fp32 and bf16)" in table
    assert "- not alike: prompts of instruct_pix2pix in 1 pictures" in table
    assert "- not alike: settings of instruct_pix2pix (steps 20 and 77)" in table
    assert "not alike: cases" not in table
    assert "not alike" not in compare(a, a)


def test_backbones_are_told_apart_by_their_weights_not_by_where_they_lie(tmp_path):
    def clip(path, mark):
        return {"clip": {"weights": path, "hash": mark, "preprocessing": "p"}}

    a = result(tmp_path, "a", backbones=clip("here", "1"))
    moved, other = (result(tmp_path, n, backbones=clip(*c)) for n, c in (("b", ("there", "1")), ("c", ("here", "2"))))
    assert "| CLIP-T |" in compare(a, moved)
    assert "| CLIP-T |" not in compare(a, other)


RECORD = {
    "case": "hat", "subject": "rex", "method": "instruct_pix2pix", "index": 0, "seed": 0, "input": "aa",
    "prompt": "",
    "measures": {"background L1": 0.1, "CLIP-T": 0.2, "DINO": 0.5},
}  # fmt: skip


def result(tmp_path, name, **more):
    """A folder with a small result: one picture by one method."""
    record = dict(RECORD)
    record |= {key: more.pop(key) for key in list(more) if key in record}
    record = {key: value for key, value in record.items() if value is not None}
    method = {"method": "instruct_pix2pix", "subject": "all", "weights": f"{name}.ckpt", "hash": f"hash-of-{name}"}
    method["settings"] = {"steps": more.pop("steps", 20)}
    (tmp_path / name).mkdir()
    content = {"suite": "s", "records": [record], "methods": [method], **more}
    (tmp_path / name / "results.json").write_text(json.dumps(content))
    return tmp_path / name


def test_pictures_of_other_inputs_are_not_paired(tmp_path):
    a, other = result(tmp_path, "a"), result(tmp_path, "other", input="bb")
    older, oldest = (result(tmp_path, name, input=None) for name in ("older", "oldest"))
    with pytest.raises(ValueError, match=r"no picture and measure in common$"):
        compare(a, other)
    with pytest.raises(ValueError, match="older' does not say which inputs it had"):
        compare(a, older)
    assert "| instruct_pix2pix | DINO | 0.500 | 0.500 |" in compare(older, oldest)


def test_a_comparison_names_both_weights_and_leaves_out_what_other_backbones_measured(tmp_path):
    dino, clip = ({key: {"weights": key, "preprocessing": "p"}} for key in ("dino", "clip"))
    a = result(tmp_path, "a", backbones={**dino, **clip})
    b = result(tmp_path, "b", backbones={**dino, "clip": {"weights": "clip-large", "preprocessing": "p"}})
    table = compare(a, b)
    assert "| DINO |" in table
    assert "| background L1 |" in table
    assert "| CLIP-T |" not in table
    assert "left out: CLIP-I, CLIP-T, CLIP direction, measured by 'clip' (p) and 'clip-large' (p)" in table
    assert "A: instruct_pix2pix (all): a.ckpt, hash-of-a" in table
    assert "B: instruct_pix2pix (all): b.ckpt, hash-of-b" in table


def test_the_best_is_marked_only_where_intervals_are_apart():
    rows = {"a": {"leak": Interval(0.1, 0.05, 0.15, 9)}, "b": {"leak": Interval(0.3, 0.2, 0.4, 9)}}
    assert best_of(rows, "leak", ()) == "a"
    assert best_of(rows, "leak", ("a",)) is None
    rows["a"]["leak"] = Interval(0.1, 0.05, 0.15, 1)
    assert best_of(rows, "leak", ()) is None, "an interval over one picture says nothing"
    rows["a"]["leak"] = Interval(0.1, 0.05, 0.25, 9)
    assert best_of(rows, "leak", ()) is None
    rows = {"a": {"exact (dB)": Interval(20, 19, 21, 9)}, "b": {"exact (dB)": Interval(25, 24, 26, 9)}}
    assert best_of(rows, "exact (dB)", ()) == "b"
    rows = {"a": {"cleanness": Interval(0.7, 0.6, 0.8, 9)}, "b": {"cleanness": Interval(1.05, 1.0, 1.1, 9)}}
    assert best_of(rows, "cleanness", ()) == "b"
    rows = {name: {"leak": Interval(0.3, *span, 9)} for name, span in {"a": (0.1, 0.2), "b": (0.25, 0.3)}.items()}
    assert best_of(rows, "leak", ()) == "a"
    rows["c"] = {"leak": Interval(0.3, 0.15, 0.6, 9)}
    assert best_of(rows, "leak", ()) is None, "the third's interval touches"
    rows["c"] = {"leak": Interval(0.9, 0.9, 0.9, 9, draws=1)}
    assert best_of(rows, "leak", ()) is None, "an interval over seeds of one picture says nothing"


def changed(content, path, value):
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("cases",), [], "lacks cases"),
        (("casses",), [1], "unknown key 'casses'"),
        (("cases", 0, "kind"), "replacment", "unknown kind"),
        (("cases", 0, "reach"), "far", "unknown reach"),
        (("cases", 0, "subject"), "rex", "unknown subject 'rex'"),
        (("cases", 1, "name"), "drawn", "two cases"),
        (("cases", 1, "name"), "../up", "letters, digits"),
        (("cases", 0, "prompts"), {"dreambooht": "x"}, "unknown key 'dreambooht'"),
        (("cases", 0, "prompts", "dreambooth"), "a {who}", "unknown field 'who'"),
        (("cases", 1, "prompts", "dreambooth"), "a dog {where}", "unknown field 'where'"),
        (("cases", 0, "prompts", "dreambooth"), "  ", "is empty"),
        (("cases", 0, "prompts", "dreambooth"), "a {identifier:d}", "is {identifier} alone"),
        (("cases", 0, "answer"), {"place": "moon"}, "unknown place 'moon'"),
        (("cases", 0, "drawn", "animal"), "unicorn", "unknown animal 'unicorn'"),
        (("cases", 0, "drawn", "scenes"), 0, "at least 1"),
        (("cases", 0, "picture"), "photo.png", "either a picture or drawn"),
        (("cases", 1, "answer"), {"place": "beach"}, "a picture has none"),
        (("subjects", "biscuit", "class_word"), None, "lacks class_word"),
        (("subjects", "biscuit", "world"), "rex", "unknown sprite-world subject"),
        (("seeds",), [1, 1], "different whole numbers"),
        (("seeds",), 5, "seeds of suite"),
        (("seeds",), [True], "different whole numbers"),
        (("batch_size",), "8", "batch_size of suite"),
        (("batch_size",), 0, "at least 1"),
        (("name",), 2024, "name of suite"),
        (("subjects",), ["biscuit"], "subjects of suite"),
        (("subjects", "biscuit"), "dog", "should hold names and values"),
        (("subjects", "biscuit", "photos"), 5, "photos of subject 'biscuit'"),
        (("cases",), {"a": 1}, "cases of suite"),
        (("cases", 0, "drawn"), 5, "drawn of case 'drawn'"),
        (("cases", 0, "drawn", "seed"), "x", "seed of case 'drawn'"),
        (("cases", 0, "drawn", "scenes"), "2", "draws '2' scenes"),
        (("cases", 0, "answer"), "biscuit", "answer of case 'drawn'"),
        (("cases", 0, "prompts"), "a dog", "should hold names and values"),
        (("cases", 1, "picture"), ["photo.png"], "picture of case 'real'"),
        (("cases", 1, "caption_after"), 7, "caption_after of case 'real'"),
        (("cases", 1, "picture"), ".", "a mask belongs to one picture"),
        (("settings",), [1], "settings of suite"),
        (("settings",), {"dreambooth": None}, "dreambooth in settings"),
        (("settings", "dreambooth", "stepps"), 3, "unknown key 'stepps' in dreambooth in settings"),
        (("settings", "dreambooth", "steps"), "3", "steps of dreambooth in settings"),
        (("settings", "dreambooth", "steps"), 0, "dreambooth in settings"),
        (("settings", "instruct_pix2pix", "text_scale"), True, "text_scale of instruct_pix2pix"),
        (("settings", "instruct_pix2pix", "guidance_interval"), [1], "expected two numbers"),
        (("settings", "instruct_pix2pix", "sampler"), "dmp", "instruct_pix2pix in settings"),
    ],
)
def test_bad_suites_are_one_clear_line(tmp_path, path, value, says):
    content = changed(suite_content(tmp_path), path, value)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read_suite(write(tmp_path, content), ROOT)
    assert "\n" not in str(error.value)


def command(monkeypatch, capsys, *words):
    """What ``scripts/evaluate.py`` returns, prints, and says beside it."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("path", "value", "given", "says"),
    [
        (("cases", 1, "name"), "drawn", GIVEN, "two cases"),
        (("about",), "as it is", ["dreambooht=x"], "unknown method 'dreambooht'"),
        (("about",), "as it is", ["dreambooth=absent"], "absent"),
        (("cases",), [], GIVEN, "lacks cases"),
    ],
)
def test_the_command_answers_a_bad_suite_with_one_line_and_two(tmp_path, monkeypatch, capsys, path, value, given, says):
    suite = write(tmp_path, changed(suite_content(tmp_path), path, value))
    code, out, err = command(monkeypatch, capsys, suite, "--methods", *given, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_names_holes_and_goes_on_from_any_directory(tmp_path, monkeypatch, capsys, caplog):
    words = (write(tmp_path, suite_content(tmp_path)), "--methods", *GIVEN, "--output", tmp_path / "out")
    for place in (tmp_path, ROOT):
        monkeypatch.chdir(place)
        code, out, _ = command(monkeypatch, capsys, *words)
        assert not code
        assert out.strip().splitlines()[-1] == str(tmp_path / "out/report.html")
        assert "| all edits |" in out
        assert "case 'hole' is left out: put the picture at" in caplog.text
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/pictures").rglob("*.png")}
        assert len(made) == 8
        if place == tmp_path:
            first = made
    assert made == first


def test_a_suite_without_any_picture_says_where_to_put_them(tmp_path):
    for name in ("cross_dataset", "unseen", "manipulations"):
        with pytest.raises(ValueError, match=r"no case .* can be run: put the picture at 'data/evaluation/"):
            read_suite(ROOT / f"configs/evaluation/{name}.yaml", tmp_path)


@pytest.mark.parametrize("name", ["cross_dataset", "unseen", "manipulations"])
def test_the_published_suites_run_as_soon_as_their_pictures_are_there(tmp_path, name):
    content = yaml.safe_load((ROOT / f"configs/evaluation/{name}.yaml").read_text())
    for path in {case["picture"] for case in content["cases"]}:
        place = tmp_path / path
        if not place.suffix:  # a folder
            place = place / "another.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "teal").save(place)
    suite = read_suite(ROOT / f"configs/evaluation/{name}.yaml", tmp_path)
    assert not suite.holes
    assert {"instruct_pix2pix", "instruct2dream", "dreambooth"} == set().union(*(case.prompts for case in suite.cases))
    priors = [case for case in suite.cases if case.kind == "prior"]
    assert priors
    for case in priors:  # asked of another member of the class: of the subject's own photo PRES would measure the input
        assert not {p.parent for p in case.pictures} & {subject.photos for subject in suite.subjects.values()}
        assert not {"instruct_pix2pix", "instruct2dream", "dreambooth"} - set(case.prompts)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["dreambooth"], "is not NAME=RUN"),
        (["dreambooht=x"], "unknown method 'dreambooht'; did you mean 'dreambooth'?"),
        (["dreambooth=/no/such/run"], "does not exist"),
        ([GIVEN[0], GIVEN[0]], "given twice"),
        ([GIVEN[0], GIVEN[0].replace("dreambooth=", "dreambooth:biscuit=")], "given twice"),
        (["dreambooth:rex=x"], "unknown subject"),
    ],
)
def test_bad_methods_are_one_clear_line(tmp_path, given, says):
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        read_methods(given, suite)


def test_weights_of_the_wrong_kind_are_refused(tmp_path):
    given = [f"instruct2dream={DATA / 'text-to-image.safetensors'}"]
    content = suite_content(tmp_path)
    content["cases"][0]["prompts"]["instruct2dream"] = "make it a dog"
    suite = read_suite(write(tmp_path, content), ROOT)
    with pytest.raises(ValueError, match=r"method instruct2dream, .*text alone .32 input channels for 32"):
        read_methods(given, suite)
    with pytest.raises(ValueError, match=r"method dreambooth, .*edits pictures .64 input channels for 32"):
        read_methods([f"dreambooth={DATA / 'editor.safetensors'}"], suite)


@pytest.mark.parametrize(("learned", "fine"), [("sks dog", True), ("zwx dog", False), ("sks cat", False)])
def test_weights_of_another_subject_are_refused(tmp_path, learned, fine):
    identifier, class_word = learned.split()
    recipe = {"recipe": {"identifier": identifier, "class_word": class_word}}
    save_checkpoint(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, recipe)
    suite = read_suite(write(tmp_path, suite_content(tmp_path)), ROOT)
    given = [f"instruct_pix2pix:biscuit={tmp_path / 'w.safetensors'}"]
    if fine:
        assert read_methods(given, suite)[0].subject == "biscuit"
    else:
        with pytest.raises(ValueError, match=f"it learned “{learned}”, but subject biscuit"):
            read_methods(given, suite)


def test_a_run_gives_the_weights_it_chose_or_else_its_last(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no checkpoints/step="):
        weights_of(tmp_path / "run")
    for step in (500, 1000, 800):
        (folder / f"step={step}.safetensors").touch()
    assert weights_of(tmp_path / "run").name == "step=1000.safetensors"
    (folder / "best.json").write_text(json.dumps({"weights": "step=500.safetensors"}))
    assert weights_of(tmp_path / "run").name == "step=500.safetensors"
    for damaged in ("{", "[]", "{}"):
        (folder / "best.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"best.json' does not name the best weights"):
            weights_of(tmp_path / "run")
    (folder / "best.json").write_text(json.dumps({"weights": "step=500.safetensors"}))
    (folder / "step=500.safetensors").write_bytes((DATA / "editor.safetensors").read_bytes())
    assert read_checkpoint(tmp_path / "run").path == folder / "step=500.safetensors"


def test_shipped_weights_recommend_settings_of_their_own_size():
    text = read_checkpoint(DATA / "text-to-image.safetensors").metadata["text_defaults"]
    assert (text["width"], text["height"]) == (64, 64)
    assert read_checkpoint(DATA / "editor.safetensors").metadata["edit_defaults"]["resolution"] == 64
