"""Small suites of plain pictures, with a source and a judge of their own, and what reads their results."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from ldm.data.images import to_tensor
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.measures import Measure
from ldm.evaluation.methods import read_methods
from ldm.evaluation.results import Record
from ldm.evaluation.sources import Inputs, Judge, Source
from ldm.evaluation.suite_file import read_suite

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "spriteworld"  # for its small weights alone
GIVEN = [
    f"dreambooth={DATA / 'text-to-image.safetensors'}",
    f"instruct_pix2pix={DATA / 'editor.safetensors'}",
]
HERE = "tests.evaluation.small_suites"
COLOURS = ("red", "lime", "blue", "white", "black")


class SquareInputs(Inputs):
    """Plain squares; a picture is judged by how far its mean colour is from the answer's."""

    def measure(self, pictures, photos, edited):
        x = self.as_tensor(pictures).mean((2, 3))
        truth = to_tensor(self.truth).mean((2, 3)).repeat(len(x) // len(self.truth), 1)
        far = (x - truth).abs().amax(1)
        apart = torch.cdist(x, x).sum(1) / max(len(x) - 1, 1)
        found = {"answered": (far < 0.2).float(), "exact": 2 - far, "apart": apart}
        return found | ({"edited": torch.ones(len(x))} if edited else {})


class Squares(Source):
    """Squares of one colour each, all of which should become another one."""

    words = ("colour",)
    columns = {  # noqa: RUF012
        "answered": Measure("the colour is the one that was asked for", before="background kept (dB)"),
        "exact": Measure("how near the colour is", digits=1, before="DINO"),
        "edited": Measure("an editor made it", before="DINO"),
        "apart": Measure("how unlike the others", pairs=True, prior=True, before="PRES"),
    }
    loaded = 0

    def __init__(self, task, becomes: str, count: int = 2, first: int = 0):
        self.task, self.becomes, self.count, self.first = task, becomes, count, first

    def load(self, opened):
        type(self).loaded += 1
        names = [COLOURS[(self.first + i) % len(COLOURS)] for i in range(self.count)]
        squares = [Image.new("RGB", (64, 64), name) for name in names]
        truth = [Image.new("RGB", (64, 64), self.becomes)] * self.count
        region = torch.zeros(1, 1, 64, 64)
        region[..., 8:56, 8:56] = 1
        return SquareInputs(squares, [], [{"colour": name} for name in names], truth, region)

    def about(self, opened):
        return [self.becomes, self.count, self.first]

    def made_with(self):
        return {"squares": "1"}


class Redness(Judge):
    """Knows a subject by how red it is."""

    columns = {"answered": Squares.columns["answered"], "red": Measure("how red", digits=3)}  # noqa: RUF012

    def __init__(self, least: float = 0.5):
        self.least = least

    def of_photos(self, photos):
        red = torch.stack([to_tensor(photo)[0, 0].mean() for photo in photos])
        return {"answered": (red > self.least).float(), "red": red}

    def made_with(self):
        return {"redness": str(self.least)}


def squares(**params):
    """The node of a source of squares."""
    return {"target": f"{HERE}.Squares", "params": params}


def suite_content(tmp_path):
    """A suite with a source of its own, a masked picture, a hole, and a case of the prior."""
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 60))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "rex").mkdir(exist_ok=True)
    for i, colour in enumerate(("red", "maroon", "orange")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"rex/{i:02d}.png")
    prompts = {"dreambooth": "a {identifier} {class_word}", "instruct_pix2pix": "replace the wolf with a {class_word}"}
    judge = {"target": f"{HERE}.Redness", "params": {"least": 0.5}}
    return {
        "name": "small",
        "about": "A <b>small</b> suite & its holes.",
        "seeds": [3],
        "batch_size": 2,
        "settings": {"dreambooth": {"steps": 2}, "instruct_pix2pix": {"steps": 2}},
        "subjects": {"rex": {"photos": str(tmp_path / "rex"), "class_word": "dog", "judge": judge}},
        "cases": [
            {"name": "squares", "subject": "rex", "kind": "replacement", "reach": "local",
             "source": squares(becomes="red"), "prompts": prompts},
            {"name": "real", "subject": "rex", "kind": "accessorisation", "reach": "local",
             "picture": "photo.png", "mask": "mask.png", "prompts": prompts,
             "caption_before": "a wolf", "caption_after": "a dog"},
            {"name": "hole", "subject": "rex", "kind": "art rendition", "reach": "global",
             "picture": "missing/00.jpg", "prompts": prompts},
            {"name": "plain", "subject": "rex", "kind": "prior", "reach": "local", "source": squares(becomes="blue"),
             "prompts": {"dreambooth": "a {colour} {class_word}"}},
        ],
    }  # fmt: skip


def write(tmp_path, content):
    """The suite as a file."""
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def read(tmp_path, content=None):
    """The suite as it is read."""
    return read_suite(write(tmp_path, content or suite_content(tmp_path)))


def run(tmp_path, output, given=GIVEN, content=None):
    """The results of a suite."""
    suite = read(tmp_path, content)
    return evaluate(suite, read_methods(given, suite), {}, {"dino": "none here"}, output, precision="fp32")


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
    return evaluate(read(tmp_path, content), [], {"dino": Colours()}, {}, tmp_path / "out")


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


def page_of(output):
    """The report in a folder of results."""
    page = Page()
    page.feed((output / "report.html").read_text(encoding="utf-8"))
    return page


def record(case, method, index, seed, **measures):
    """A picture's figures; as in a suite, every input has seeds of its own."""
    seed += 1000 * index
    return Record(case, "replacement", "local", "rex", method, index, seed, "p", f"input {index}", "f", measures)


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
    content = {"suite": "s", "records": [record], "methods": [method]}
    if "of" in more:  # the measures that the file tells of
        content["measures"] = more.pop("of")
    (tmp_path / name / "results.json").write_text(json.dumps(content | more))
    return tmp_path / name


def changed(content, path, value):
    """The content with another value at a path; None takes it out."""
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content
