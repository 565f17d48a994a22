"""Pictures: every kind of file becomes upright RGB or one clear error; sizes, tensors and writing."""

import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm.data import images
from ldm.files import check_writable


def photo(width: int = 40, height: int = 30, seed: int = 0, channels: int = 3) -> np.ndarray:
    """A smooth picture (so that lossy formats keep it), no two corners alike."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [x / max(1, width - 1), y / max(1, height - 1), (np.sin(x / 7 + seed) + 1) / 2, 1 - x / max(1, width)]
    return np.stack([np.round(255 * wave) for wave in waves[:channels]], -1).astype(np.uint8)


def saved(path, image: Image.Image, **options) -> object:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def close(a: np.ndarray, b: np.ndarray, most: int) -> bool:
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= most


# Kinds of files


def test_rgb_is_read_exactly(tmp_path):
    for suffix in (".png", ".bmp", ".tif", ".webp"):
        options = {"lossless": True} if suffix == ".webp" else {}
        image = images.open_rgb(saved(tmp_path / f"x{suffix}", Image.fromarray(photo()), **options))
        assert image.mode == "RGB"
        assert np.array_equal(pixels(image), photo()), suffix
    assert close(pixels(images.open_rgb(saved(tmp_path / "x.jpg", Image.fromarray(photo()), quality=98))), photo(), 12)


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(photo()).save(path, format="PNG")
    assert np.array_equal(pixels(images.open_rgb(path)), photo())


def test_transparency_lies_over_white(tmp_path):
    data = photo(channels=4).copy()
    data[..., 3] = 255
    data[:10, :, 3] = 0
    data[10:20, :, 3] = 128
    image = pixels(images.open_rgb(saved(tmp_path / "rgba.png", Image.fromarray(data, "RGBA"))))
    assert (image[:10] == 255).all()
    half = (data[10:20, :, :3].astype(float) * 128 + 255 * 127) / 255
    assert close(image[10:20], half.round(), 1)
    assert np.array_equal(image[20:], data[20:, :, :3])


def test_grey_with_and_without_transparency(tmp_path):
    grey = photo()[..., 0]
    image = pixels(images.open_rgb(saved(tmp_path / "l.png", Image.fromarray(grey, "L"))))
    assert np.array_equal(image, np.repeat(grey[..., None], 3, -1))
    alpha = np.where(np.arange(30)[:, None] < 15, 0, 255).astype(np.uint8).repeat(40, 1)
    image = pixels(images.open_rgb(saved(tmp_path / "la.png", Image.fromarray(np.stack([grey, alpha], -1), "LA"))))
    assert (image[:15] == 255).all()
    assert np.array_equal(image[15:], np.repeat(grey[15:, :, None], 3, -1))


def test_palette_with_transparency(tmp_path):
    indices = (np.arange(40) // 10)[None].repeat(30, 0).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 20, 30)]
    image.putpalette([value for colour in colours for value in colour])
    image.save(tmp_path / "p.png", transparency=1)
    seen = pixels(images.open_rgb(tmp_path / "p.png"))
    assert [tuple(seen[0, x]) for x in (5, 15, 25, 35)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255), (10, 20, 30)]
    image.save(tmp_path / "q.png")
    assert tuple(pixels(images.open_rgb(tmp_path / "q.png"))[0, 15]) == (0, 255, 0)


def test_one_bit_pictures(tmp_path):
    bits = Image.fromarray((photo()[..., 0] > 127).astype(np.uint8) * 255).convert("1")
    seen = pixels(images.open_rgb(saved(tmp_path / "bits.png", bits)))
    assert set(np.unique(seen)) == {0, 255}


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 40).astype(np.uint16)[None].repeat(30, 0)
    Image.fromarray(values).save(tmp_path / "grey16.png")
    seen = pixels(images.open_rgb(tmp_path / "grey16.png"))
    assert close(seen[..., 0], np.round(values / 257), 1)
    assert np.array_equal(seen[..., 0], seen[..., 2])
    Image.fromarray(values).save(tmp_path / "grey16.tif")
    assert close(pixels(images.open_rgb(tmp_path / "grey16.tif"))[..., 1], np.round(values / 257), 1)


def test_sixteen_bit_colour_is_scaled(tmp_path):
    """Pillow cannot write it, so the file is made by hand."""
    values = np.array([[[0, 32768, 65535], [65535, 257, 0]]], dtype=">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    (tmp_path / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert close(pixels(images.open_rgb(tmp_path / "rgb16.png")), np.array([[[0, 128, 255], [255, 1, 0]]]), 1)


def test_floats_are_read_in_either_of_their_ranges(tmp_path):
    eight_bit = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, values in (("unit", eight_bit / np.float32(255)), ("bytes", eight_bit.astype(np.float32))):
        path = tmp_path / f"{name}.tiff"
        Image.fromarray(values.astype(np.float32)).save(path)
        assert np.array_equal(np.asarray(images.open_rgb(path))[..., 1], eight_bit)


def test_cmyk_jpeg(tmp_path):
    cmyk = Image.fromarray(photo()).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.jpg", quality=98)
    with Image.open(tmp_path / "cmyk.jpg") as stored:
        assert stored.mode == "CMYK"
    assert close(pixels(images.open_rgb(tmp_path / "cmyk.jpg")), photo(), 16)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:], duration=50)
    for suffix in ("gif", "webp", "png"):
        image = images.open_rgb(tmp_path / f"x.{suffix}")
        assert image.size == (20, 10)
        assert tuple(pixels(image)[5, 5]) == (255, 0, 0), suffix


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_stand_upright(tmp_path, orientation, suffix):
    stored, exif = Image.fromarray(photo(40, 30)), Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 98}, "png": {}, "webp": {"lossless": True}}[suffix]
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **options)
    image = images.open_rgb(tmp_path / f"x.{suffix}")
    assert image.size == ((30, 40) if orientation >= 5 else (40, 30))
    with Image.open(tmp_path / f"x.{suffix}") as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert np.array_equal(pixels(image), pixels(expected))
    # and by hand: where the stored picture's first corner goes
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation](photo(40, 30))
    assert close(pixels(image), turned, 12 if suffix == "jpg" else 0)


def test_pictures_of_one_pixel_and_of_thirty_thousand(tmp_path):
    image = images.open_rgb(saved(tmp_path / "dot.png", Image.new("RGB", (1, 1), (1, 2, 3))))
    assert (image.size, tuple(pixels(image)[0, 0])) == ((1, 1), (1, 2, 3))
    image = images.open_rgb(saved(tmp_path / "strip.png", Image.new("RGB", (30000, 40), "teal")))
    assert image.size == (30000, 40)
    with pytest.raises(ValueError, match=r"30000 x 40.*crop"):
        images.check_aspect(image.size)
    images.check_aspect((1, 1))
    images.check_aspect((800, 100))
    with pytest.raises(ValueError, match="narrow"):
        images.check_aspect((100, 801))


# What is no picture


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refused(path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        images.open_rgb(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "")


def test_more_than_200_megapixels_is_refused_by_the_header(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(60000, 60000))
    assert "60000 x 60000" in refused(tmp_path / "bomb.png")
    (tmp_path / "limit.png").write_bytes(png_header(20001, 10000))
    assert "at most 200 megapixels" in refused(tmp_path / "limit.png")
    (tmp_path / "below.png").write_bytes(png_header(20000, 10000))  # allowed, but there is nothing in it
    assert "at most" not in refused(tmp_path / "below.png")


def test_large_pictures_below_the_limit_are_read_without_pillows_warning(tmp_path, recwarn):
    """Pillow warns from 89 megapixels on, and by default refuses twice as many."""
    assert Image.MAX_IMAGE_PIXELS < 10000 * 9500
    before = Image.MAX_IMAGE_PIXELS
    saved(tmp_path / "large.png", Image.new("L", (10000, 9500)), compress_level=1)
    assert images.open_rgb(tmp_path / "large.png").size == (10000, 9500)
    assert not recwarn.list
    assert before == Image.MAX_IMAGE_PIXELS  # the caller's limit is left as it was
    refused_path = tmp_path / "bomb.png"
    refused_path.write_bytes(png_header(60000, 60000))
    refused(refused_path)
    assert before == Image.MAX_IMAGE_PIXELS


def test_files_that_are_no_pictures(tmp_path):
    cases = {
        "empty.png": b"",
        "text.png": b"this is not a picture at all\n",
        "page.jpg": b"<!DOCTYPE html><html></html>",
        "zeros.png": b"\0" * 4096,
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "half_header.png": png_header(10, 10)[:20],
        "no_pixels.png": png_header(10, 10),
        "jpeg_start.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "gif_start.gif": b"GIF89a\x01\0\x01\0",
        "zero_wide.png": png_header(0, 5),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name)
    assert "0 bytes" in refused(tmp_path / "empty.png")
    assert "not a picture" in refused(tmp_path / "text.png")
    assert "folder" in refused(tmp_path)
    refused(tmp_path / "absent.png", FileNotFoundError)


@pytest.mark.parametrize(
    ("suffix", "format"), [("jpg", "JPEG"), ("png", "PNG"), ("gif", "GIF"), ("webp", "WEBP"), ("tif", "TIFF")]
)
def test_truncated_pictures_are_refused_anywhere(tmp_path, suffix, format):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format=format)
    data = whole.getvalue()
    path = tmp_path / f"x.{suffix}"
    for part in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        path.write_bytes(data[: int(len(data) * part)])
        refused(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV"])
def test_every_mode_of_pillow_becomes_rgb(mode):
    source = Image.fromarray(photo())
    if mode in ("I;16", "I"):
        source = Image.fromarray(photo()[..., 0].astype(np.uint16) * 257).convert(mode)
    elif mode == "LAB":
        source = Image.new("LAB", (40, 30), (50, 0, 0))
    else:
        source = source.convert(mode)
    assert source.mode == mode
    result = images.to_rgb(source)
    assert (result.mode, result.size) == ("RGB", (40, 30))
    if mode in ("I;16", "I"):
        assert np.array_equal(pixels(result)[..., 0], photo()[..., 0])


# Tensors


def test_tensors_have_the_range_and_come_back_exactly():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([every, every[::-1], every.T], -1))
    x = images.to_tensor(image)
    assert x.shape == (1, 3, 16, 16)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert (x.min().item(), x.max().item()) == (-1, 1)
    assert x[0, 0, 0, 0] == -1  # channel, row, column in their places
    assert x[0, 0, 0, 1] == pytest.approx(1 / 127.5 - 1)
    assert x[0, 2, 1, 0] == pytest.approx(1 / 127.5 - 1)
    (back,) = images.to_images(x)
    assert np.array_equal(pixels(back), pixels(image))
    assert np.array_equal(pixels(images.to_images(x.double())[0]), pixels(image))


def test_batches_of_tensors():
    batch = [Image.fromarray(photo(8, 6, seed)) for seed in range(3)]
    x = images.to_tensor(batch)
    assert x.shape == (3, 3, 6, 8)
    for image, back in zip(batch, images.to_images(x), strict=True):
        assert np.array_equal(pixels(image), pixels(back))


def test_values_beyond_the_range_are_clamped_and_rounded_to_the_nearest():
    x = torch.tensor([-7.0, -1.004, 0.9999, 1.5, 0.0, 0.1 / 127.5 - 1, 0.9 / 127.5 - 1, float("inf")])
    (image,) = images.to_images(x.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert pixels(image)[0, :, 0].tolist() == [0, 0, 255, 255, 128, 0, 1, 255]


# Sizes


def upstreams(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """InstructPix2Pix's ``edit_cli.py``, from its description: scale to the resolution, short side up, long down."""
    width, height = size
    factor = resolution / max(width, height)
    factor = math.ceil(min(width, height) * factor / 64) * 64 / min(width, height)
    # where rounding errors give 0 upstream fails; one grid cell is the least that makes sense
    return max(64, int((width * factor) // 64) * 64), max(64, int((height * factor) // 64) * 64)


def test_upstream_size_is_upstreams():
    random = np.random.default_rng(0)
    sizes = [tuple(int(v) for v in random.integers(64, 5000, 2)) for _ in range(500)]
    sizes += [(512, 512), (512, 384), (640, 480), (1920, 1080), (3000, 2000), (513, 512), (100, 700), (64, 64)]
    for size in sizes:
        if max(size) <= 8 * min(size):
            for resolution in (256, 512, 768):
                assert images.upstream_size(size, resolution) == upstreams(size, resolution), (size, resolution)
    assert images.upstream_size((640, 480), 512) == (512, 384)
    assert images.upstream_size((1920, 1080), 512) == (512, 320)
    assert images.upstream_size((1080, 1920), 512) == (320, 512)


def test_working_size_keeps_the_shape_within_half_a_grid():
    random = np.random.default_rng(1)
    for _ in range(1000):
        size = tuple(int(v) for v in random.integers(1, 5000, 2))
        if max(size) > images.MAX_ASPECT * min(size):
            continue
        for resolution, grid in ((512, 64), (256, 64), (64, 16), (768, 32)):
            working = images.working_size(size, resolution, grid)
            assert all(side % grid == 0 and side >= grid for side in working)
            short, long = sorted(working)
            assert (working[0] < working[1]) <= (size[0] < size[1])  # never turned
            exact = short * max(size) / min(size)  # the long side that would keep the shape
            assert abs(long - exact) <= grid / 2 + 1e-6, (size, resolution, grid, working)
            assert short >= min(size) * resolution / max(size) - 1e-3  # never less than was asked for
            assert short < min(size) * resolution / max(size) + grid


def test_sizes_on_the_grid_stay():
    for size in ((512, 512), (512, 384), (320, 512), (64, 512)):
        assert images.working_size(size, 512) == size == images.upstream_size(size, 512)
    assert images.working_size((1, 1), 512) == (512, 512)


def test_fit_crops_and_resize_squashes():
    image = Image.fromarray(photo(80, 40))
    assert images.fit(image, (40, 40)).size == (40, 40)
    assert close(pixels(images.fit(image, (40, 40))), photo(80, 40)[:, 20:60], 1)  # the centre, not squeezed
    assert images.resize(image, (40, 40)).size == (40, 40)
    assert close(pixels(images.resize(image, (40, 40)))[:, 5:35], photo(80, 40)[:, 10:70:2], 12)
    assert images.fit(image, (80, 40)) is image
    assert images.resize(image, (80, 40)) is image


# Writing


def test_save_makes_folders_keeps_text_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "x.png"
    words = {"instruct2dream": '{"instruction": "mach es grün – 夜"}', "long": "y" * 50000}
    images.save_image(Image.fromarray(photo()), path, words)
    with Image.open(path) as image:
        image.load()
        assert {key: image.text[key] for key in words} == words
        assert np.array_equal(pixels(image), photo())
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
    for suffix in (".jpg", ".JPEG", ".webp", ".bmp", ".tiff"):
        images.save_image(Image.fromarray(photo()), tmp_path / f"y{suffix}", words)
        assert close(pixels(images.open_rgb(tmp_path / f"y{suffix}")), photo(), 16)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.ckpt", "x.psd", "x.mpg", "x.", ".png"])
def test_endings_that_cannot_be_written(tmp_path, name):
    """Also those that Pillow reads but does not write."""
    with pytest.raises(ValueError, match=r"\.png"):
        images.save_image(Image.fromarray(photo()), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    images.save_image(Image.fromarray(photo(seed=1)), path)
    before = path.read_bytes()

    def failing(self, target, format=None, **options):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(ValueError, match=r"x\.png.*No space left"):
        images.save_image(Image.fromarray(photo(seed=2)), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.png").mkdir()
    places = [tmp_path / "file" / "x.png", tmp_path / "file" / "deep" / "x.png", tmp_path / "folder.png"]
    if os.path.isdir("/proc/self"):
        places.append(Path("/proc/nowhere/x.png"))
    for place in places:
        with pytest.raises(ValueError, match="cannot write") as caught:
            check_writable(place)
        assert str(place) in str(caught.value)
        with pytest.raises(ValueError, match="cannot write"):
            images.save_image(Image.fromarray(photo()), place)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder.png"]


def test_checking_a_place_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "x.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.png").write_bytes(b"old")
    check_writable(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_folders_pictures_are_told_by_their_endings_and_hidden_files_are_none(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "._a.jpg", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images.pictures_in(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
