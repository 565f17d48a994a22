"""Contact sheets: pictures in a labelled grid."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    cell: int = 256,
    captions: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """Return a sheet of pictures in rows, each fitted into ``cell`` pixels, with labels and a title.

    None leaves a hole. Small pictures (the sprite world's) are enlarged without smoothing. captions: a text below each
    picture, in rows like them (default: none). Raises ValueError for an empty grid, or captions of another shape.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("a contact sheet needs at least one picture")
    if captions and [len(texts) for texts in captions] != [len(row) for row in rows]:
        raise ValueError("a contact sheet's captions must be as many as its pictures, row by row")
    font, gap = ImageFont.load_default(size=max(12, cell // 14)), max(4, cell // 40)
    line = int(font.size * 1.4)
    left = max((int(font.getlength(text)) for text in row_labels), default=0) + (2 * gap if row_labels else gap)
    width = left + columns * (cell + gap)
    title_lines = _wrapped(title, font, width - 2 * gap)
    heads = [_wrapped(text, font, cell) for text in column_labels]
    head_height = max((len(lines) for lines in heads), default=0) * line
    top = gap + len(title_lines) * line + head_height + (gap if title_lines or heads else 0)
    heights = [max((_size(picture, cell)[1] for picture in row if picture), default=cell) for row in rows]
    below = [[_wrapped(text, font, cell) for text in texts] for texts in captions] or [[] for _ in rows]
    feet = [max((len(lines) for lines in texts), default=0) * line for texts in below]
    sheet = Image.new("RGB", (width, top + sum(heights) + sum(feet) + gap * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(title_lines):
        draw.text((gap, gap + i * line), text, INK, font)
    for column, lines in enumerate(heads):
        for i, text in enumerate(lines):
            place = (left + column * (cell + gap) + cell / 2, top - gap - head_height + i * line)
            draw.text(place, text, INK, font, anchor="ma")
    y = top
    for i, row in enumerate(rows):
        if i < len(row_labels):
            draw.text((left - gap, y + heights[i] / 2), row_labels[i], INK, font, anchor="rm")
        for column, picture in enumerate(row):
            if picture is not None:
                size = _size(picture, cell)
                method = Image.Resampling.NEAREST if size[0] >= 2 * picture.width else Image.Resampling.LANCZOS
                x = left + column * (cell + gap) + (cell - size[0]) // 2
                sheet.paste(picture.resize(size, method), (x, y))
        y += heights[i]
        for column, lines in enumerate(below[i]):
            for j, text in enumerate(lines):
                draw.text((left + column * (cell + gap) + cell / 2, y + j * line), text, INK, font, anchor="ma")
        y += feet[i] + gap
    return sheet


def _size(picture: Image.Image, cell: int) -> tuple[int, int]:
    factor = cell / max(picture.size)
    return max(1, round(picture.width * factor)), max(1, round(picture.height * factor))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines that fit, cutting single words that do not."""
    lines: list[str] = []
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            word = word[:-2] + "…"
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines
