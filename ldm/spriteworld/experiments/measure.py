"""What ``scripts/spriteworld.py measure`` and ``calibrate`` do: a checkpoint's figures, and the measures' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.checkpoint.diffusers_format import UNET
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import to_tensor
from ldm.evaluation.tables import Provenance, write_table
from ldm.files import check_writable
from ldm.inference.editor import ImageEditor
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import EditSettings, TextSettings
from ldm.spriteworld.judging import editor as judging
from ldm.spriteworld.judging.bounds import calibration, calibration_table
from ldm.spriteworld.judging.generator import draw_captions, text_figures
from ldm.spriteworld.judging.recogniser import Recogniser, load_judges
from ldm.spriteworld.judging.reconstruction import first_stage_figures
from ldm.spriteworld.weights.first_stage import reconstruction_of

Results = dict[str, dict[str, Any]]


def measure_checkpoint(ckpt: Path, data: Path, n: int, seed: int, output: Path | None = None, command: str = "") -> str:
    """Return a checkpoint's figures as Markdown; with ``output`` also write them there, with a sheet of what it makes.

    ckpt: an editor, a text-to-image model, or a first stage alone. data: the folder with the recognisers. n: scenes of
    each figure. output: FILE.md, or a folder for ``measures.md``; command: the command line, for the file's head.
    """
    checkpoint = read_checkpoint(ckpt)
    made_by = None
    if output is not None:
        output = output if output.suffix == ".md" else output / "measures.md"
        check_writable(output)
        made_by = Provenance.of([ckpt], command)
    first, last = (checkpoint.tensors.get(f"{UNET}{name}.weight") for name in ("input_blocks.0.0", "out.2"))
    # scenes apart from the edits' own
    results: Results = {"first stage": first_stage_figures(reconstruction_of(ckpt), n, seed + 1)}
    what, sheet, shows = "first stage", None, ""
    if first is not None and last is not None:
        judges = load_judges(data)
        if first.shape[1] == last.shape[0]:
            what, shows = "text-to-image model", "The first pictures, each made from the caption below it"
            more, sheet = _measure_generator(checkpoint, judges, n, seed)
        else:
            what, shows = "editor", "Input and result side by side, the instruction below"
            more, sheet = _measure_editor(checkpoint, judges, n, seed)
        results |= more
    text = judging.table(results)
    if output is not None and made_by is not None:
        title = f"The {what} `{ckpt.name}` on {n} fresh scenes a figure"
        write_table(output, title, text, made_by, sheet() if sheet else None, shows)
    return text


def calibrate(first_stage: Path, data: Path, n: int, seed: int, output: Path | None = None, command: str = "") -> str:
    """Return as Markdown what the measures say of answers that need no editor; with ``output`` also write it there.

    first_stage: a checkpoint, for true answers seen through it. data: the folder with the recognisers. n: scenes of
    each figure. output: FILE.md; command: the command line, for the file's head.
    """
    made_by = None
    if output is not None:
        check_writable(output)
        made_by = Provenance.of([first_stage], command)
    text = calibration_table(calibration(reconstruction_of(first_stage), *load_judges(data), n=n, seed=seed))
    if output is not None and made_by is not None:
        write_table(output, f"What the measures say of known answers, {n} fresh scenes a figure", text, made_by)
    return text


def _measure_editor(
    checkpoint: Checkpoint, judges: tuple[Recogniser, Recogniser], n: int, seed: int
) -> tuple[Results, Callable[[], Image.Image]]:
    editor = ImageEditor.from_checkpoint(checkpoint, device="auto", precision="auto")
    edit = judging.editing(editor, EditSettings.of_checkpoint(checkpoint.metadata))
    results = judging.measure(edit, *judges, n=n, seed=seed)
    results |= judging.reworded_figures(edit, *judges, n=n, seed=seed)
    results |= judging.worn_figures(edit, n=n, seed=seed)
    return results, lambda: judging.edit_sheet(edit, seed=seed)


def _measure_generator(
    checkpoint: Checkpoint, judges: tuple[Recogniser, Recogniser], n: int, seed: int, batch_size: int = 50
) -> tuple[Results, Callable[[], Image.Image]]:
    generator = ImageGenerator.from_checkpoint(checkpoint, device="auto", precision="auto")
    settings = TextSettings.of_checkpoint(checkpoint.metadata)
    scenes, texts = draw_captions(n, seed)
    pictures = []
    for i in range(0, n, batch_size):
        pictures += generator.generate(texts[i : i + batch_size], settings, [i])

    def sheet() -> Image.Image:
        rows = [slice(i, min(i + 5, n, 30)) for i in range(0, min(n, 30), 5)]
        return contact_sheet([pictures[row] for row in rows], cell=192, captions=[texts[row] for row in rows])

    return {"text to image": text_figures(to_tensor(pictures), scenes, *judges)}, sheet
