"""Whole evaluations, small: holes are marked, stopped ones go on, every picture has its figures."""

import csv
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.evaluation import evaluate as evaluate_module
from ldm.evaluation import methods as methods_module
from ldm.evaluation import sources
from ldm.evaluation.evaluate import SuiteRequest, evaluate
from ldm.evaluation.methods import read_methods
from ldm.evaluation.prepared import prepare
from ldm.evaluation.results import BOUNDS, as_markdown
from ldm.evaluation.sources import PictureCache
from ldm.inference.recipe import read_recipe
from tests.evaluation.small_suites import (
    GIVEN,
    ROOT,
    Colours,
    Squares,
    bounds,
    changed,
    coloured_suite,
    page_of,
    read,
    run,
    squares,
    suite_content,
    write,
)


def test_the_report_is_one_complete_file(done):
    tmp_path, _results = done
    page = page_of(tmp_path / "out")
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
    assert len(set(inputs.values())) >= 2 + 1  # two squares and a photo
    assert len(rows) == len(results.records)
    assert {row["method"] for row in rows} == {"dreambooth", "instruct_pix2pix", *BOUNDS}
    same = [r for r in made if r.case == "squares" and r.index == 1]
    assert len({r.seed for r in same}) == 1 < len(same)  # all methods draw the same
    assert [r.prompt for r in made if r.case == "plain"] == ["a red dog", "a lime dog"]


def test_bounds_bound_and_holes_are_named(done):
    tmp_path, results = done
    summary = results.summary()
    replaced = summary["replacement"]
    assert replaced["exact answer"]["answered"].mean == 1
    assert replaced["input copied"]["answered"].mean == 0.5  # one square is red as it is
    assert replaced["real photos"]["answered"].mean == pytest.approx(2 / 3)  # what the judge says: red and orange
    assert replaced["real photos"]["red"].mean > 0.5
    prior = summary["prior (the plain class)"]
    assert "real photos" not in prior
    assert {"apart", "answered"} <= set(prior["dreambooth"])
    assert "edited" in replaced["instruct_pix2pix"]
    assert "edited" not in replaced["dreambooth"]  # made from text alone
    real = [r for r in results.records if r.case == "real" and r.method == "input copied"]
    assert real[0].measures["background L1"] == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert list(content["holes"]) == ["hole"]
    assert content["methods"][0]["hash"]
    assert content["measures"]["apart"] == {"digits": 2, "pairs": True, "backbone": ""}
    assert (results.made_with["squares"], results.made_with["redness"]) == ("1", "0.5")
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
    suite = read(tmp_path, content)
    methods = read_methods(GIVEN[1:], suite)
    made = evaluate(suite, methods, {"dino": Colours()}, {}, tmp_path / "made", precision="fp32")
    assert {r.method for r in made.records} == {"instruct_pix2pix", "input copied"}
    assert not any("DINO" in r.measures for r in made.records)
    page = page_of(tmp_path / "made")
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
    page = page_of(tmp_path / "out")
    assert ("background L1" in results.records[0].measures) == (says is None)
    assert says in page.text if says else "no mask" not in page.text
    assert page.open == []


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
    assert results.made_with["photos"].keys() == {"rex"}


def test_other_inputs_under_the_same_names_make_the_pictures_again(done):
    folder, _ = done
    before = run(folder, folder / "out3")
    made = [folder / "out3" / r.file for r in before.records if r.case == "squares" and r.method == "instruct_pix2pix"]
    inputs = [read_recipe(path)["input"] for path in made]
    content = suite_content(folder)
    content["cases"][0]["source"] = squares(becomes="red", first=2)
    run(folder, folder / "out3", content=content)
    assert all(read_recipe(path)["input"] != old for path, old in zip(made, inputs, strict=True))


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
        suite = read(tmp_path, content)
        models = {"dino": Colours(), "lpips": Distance()}
        return evaluate(suite, read_methods(GIVEN[1:], suite), models, {}, tmp_path / name, precision="fp32")

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
    said = "One input: what compares samples with each other (DIV) is not measured of editors"
    assert said in (tmp_path / "one/report.html").read_text()
    (tmp_path / "others/0.png").unlink()
    holes = read(tmp_path, content).holes
    assert list(holes) == ["a plain dog"]
    assert re.fullmatch(r"put pictures into '.*others'", holes["a plain dog"])


def test_every_seed_sees_every_picture_of_a_source(tmp_path):
    content = suite_content(tmp_path)
    content["cases"] = [content["cases"][0] | {"source": squares(becomes="red", count=3)}]
    p = prepare(read(tmp_path, content).cases[0], (0, 7), PictureCache())
    assert [len(of) for of in (p.pictures, p.truth, p.prints, p.names, p.words)] == [6] * 5
    assert p.different == 3
    assert p.seeds == [0, 1000, 2000, 7, 1007, 2007]
    assert p.names[3:] == p.names[:3] == ["squares 0", "squares 1", "squares 2"]
    assert [words["colour"] for words in p.words] == ["red", "lime", "blue"] * 2


def test_several_seeds_repeat_the_truth_and_the_inputs_of_the_bounds(tmp_path):
    content = suite_content(tmp_path) | {"seeds": [0, 1]}
    content["cases"] = [content["cases"][0]]
    once = bounds(tmp_path, content | {"seeds": [0]}).summary()
    twice = bounds(tmp_path, content).summary()
    for row in ("input copied", "exact answer"):
        first, second = (of["replacement"][row] for of in (once, twice))
        means = {name: pytest.approx(value.mean, abs=1e-6) for name, value in first.items()}
        assert {name: value.mean for name, value in second.items()} == means
        assert "apart" in means  # a copy is at no distance from itself
        assert (first["exact"].n, second["exact"].n, second["exact"].draws) == (2, 4, 2)


def test_the_region_of_a_source_is_blanked_for_lpips(tmp_path):
    class Changed:
        model = None
        name = preprocessing = "none"

        def __call__(self, x, y):
            return (x - y).abs().amax((1, 2, 3))

    content = suite_content(tmp_path)
    content["cases"] = content["cases"][:1]
    results = evaluate(read(tmp_path, content), [], {"lpips": Changed()}, {}, tmp_path / "out")
    lost = [r.measures["background LPIPS"] for r in results.records if r.method == "exact answer"]
    assert lost == [0, pytest.approx(2)]  # of the square that is red already, and of all that changes colour


def test_a_source_that_cannot_be_loaded_names_its_case(tmp_path, monkeypatch):
    def load(*_):
        raise UserError("no more squares")

    monkeypatch.setattr(Squares, "load", load)
    with pytest.raises(UserError, match=r"^case 'squares': no more squares$"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_picture_file_is_decoded_once(tmp_path, monkeypatch):
    content = coloured_suite(tmp_path)
    again = content["cases"][0] | {"name": "scarf"}
    everything = again | {"name": "all", "picture": "photos", "mask": None, "reach": "global"}
    content["cases"] += [again, everything]
    opened = []
    whole = sources.open_rgb
    monkeypatch.setattr(sources, "open_rgb", lambda path: (opened.append(path.name), whole(path))[1])
    bounds(tmp_path, content)
    assert sorted(opened) == ["00-mask.png", "00.png", "01.png", "02.png"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"methods": ()}, "no method is named"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_a_request_checks_itself(given, says):
    asked = {"suite": Path("s.yaml"), "methods": ("dreambooth=x",), "output": Path("out")}
    SuiteRequest(**asked)
    with pytest.raises(UserError, match=says):
        SuiteRequest(**asked | given)


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        ([], {}),
        (["--dino", "a", "--clip", "b"], {"dino": "a", "clip": "b"}),
        (["--lpips", "a", "b"], {"lpips": ("a", "b")}),
        (["--batch-size", "3"], {"batch_size": 3}),
        (["--device", "cpu", "--precision", "fp32"], {"device": "cpu", "precision": "fp32"}),
    ],
)
def test_the_command_line_becomes_one_request(monkeypatch, capsys, words, differs):
    asked = []
    monkeypatch.setattr(evaluate_module, "run_suite", lambda request: (asked.append(request), "tables")[1])
    given = ["s.yaml", "--methods", "dreambooth=x", "instruct2dream=y", "--output", "out"]
    code, out, _ = command(monkeypatch, capsys, *given, *words)
    assert (code, out) == (0, "tables\n")
    plain = SuiteRequest(Path("s.yaml"), ("dreambooth=x", "instruct2dream=y"), Path("out"))
    assert asked == [replace(plain, **differs)]


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
        (("cases", 1, "name"), "squares", GIVEN, "two cases"),
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
