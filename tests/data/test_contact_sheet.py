"""Contact sheets: every picture where it belongs, its caption below it and nowhere else."""

import numpy as np
import pytest
from PIL import Image

from ldm.data.contact_sheet import contact_sheet

RED, BLUE = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Return whether anything is drawn inside the box."""
    return bool((np.asarray(sheet.crop(box)) < 255).any())


def test_captions_stand_below_their_pictures():
    plain = contact_sheet([[RED, BLUE], [BLUE, RED]], cell=160)
    sheet = contact_sheet([[RED, BLUE], [BLUE, RED]], cell=160, captions=[["make it red", ""], ["", "a blue " * 20]])
    gap, cell, height = 4, 160, 80
    boxes = [(x, y, x + cell, y + height) for y in (gap, 2 * gap + height) for x in (gap, 2 * gap + cell)]
    assert np.array_equal(*(np.asarray(s.crop(boxes[0])) for s in (plain, sheet)))
    first_line = gap + height, 2 * gap + height + 12  # a line of at least twelve pixels between the rows
    assert ink(sheet, (gap, first_line[0], gap + cell, first_line[1]))
    assert not ink(sheet, (2 * gap + cell, first_line[0], sheet.width, first_line[1]))
    added = sheet.height - plain.height
    assert added > 4 * 12  # one line in the first row, several in the second: a long caption is wrapped
    assert not ink(sheet, (gap, sheet.height - 3 * 12, gap + cell, sheet.height))
    assert ink(sheet, (2 * gap + cell, sheet.height - 3 * 12, sheet.width - gap, sheet.height))
    assert not ink(sheet, (sheet.width - gap, 0, sheet.width, sheet.height))


def test_captions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="as many as its pictures"):
        contact_sheet([[RED, BLUE]], captions=[["one"]])
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
