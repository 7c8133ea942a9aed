"""Opening images: every mode becomes the RGB that a person sees; what is no image is refused in one line."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmvl.vision.images import open_image

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def file_bytes(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(source, **options):
    with pytest.raises(ValueError) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message and "0x" not in message and "BytesIO" not in message
    return message


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format):
    image = open_image(file_bytes(Image.new("RGB", (20, 10), (200, 30, 40)), format))
    assert image.mode == "RGB" and image.size == (20, 10)
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() <= 4


def test_sources(tmp_path):
    picture = Image.effect_noise((9, 7), 90).convert("RGB")
    path = tmp_path / "a picture.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), picture, Image.open(path)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), np.asarray(picture))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format, orientation):
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :16], upright[:16, 32:], upright[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {  # how a camera that was held so stores the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    image = open_image(file_bytes(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options))
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= 12
    again = open_image(image)  # turned once, not twice
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse():
    data = file_bytes(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert open_image(data).size == (8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode):
    bands = len(mode)
    pixels = np.zeros((1, 3, bands), dtype=np.uint8)
    pixels[0, :, -1] = (0, 128, 255)  # black: invisible, half, opaque
    image = open_image(file_bytes(Image.fromarray(pixels, mode)))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 127, 0]


def test_premultiplied_alpha():
    for mode in ("RGBa", "La"):
        image = Image.new("RGBA" if mode == "RGBa" else "LA", (2, 2), 0).convert(mode)
        assert np.asarray(open_image(image)).min() == 255


def test_palette():
    pixels = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    picture = Image.fromarray(pixels, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    opaque = np.asarray(open_image(file_bytes(picture)))
    assert opaque.reshape(-1, 3).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]
    for format in ("PNG", "GIF"):
        seen = np.asarray(open_image(file_bytes(picture, format, transparency=1)))
        assert seen.reshape(-1, 3).tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255], [10, 20, 30]]
    half = np.asarray(open_image(file_bytes(picture, transparency=bytes([255, 255, 0, 255]))))
    assert half[1, 0].tolist() == [255, 255, 255]


def test_one_colour_made_transparent():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    seen = np.asarray(open_image(file_bytes(picture, transparency=(1, 2, 3))))
    assert seen[0].tolist() == [[255, 255, 255], [9, 9, 9]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits(format):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image = open_image(file_bytes(Image.fromarray(grey), format))
    np.testing.assert_array_equal(np.asarray(image)[..., 1].reshape(-1), np.arange(256))
    assert open_image(Image.fromarray(np.full((2, 2), 300, np.uint16))).getpixel((0, 0)) == (1, 1, 1)
    assert open_image(Image.fromarray(grey.astype(">u2"))).getpixel((15, 15)) == (255, 255, 255)


def test_wide_integers_and_floats():
    assert open_image(Image.fromarray(np.full((2, 2), 65535, np.int32))).getpixel((0, 0)) == (255,) * 3
    assert open_image(Image.fromarray(np.array([[-5, 100_000]], np.int32))).getpixel((0, 0)) == (0,) * 3
    floats = np.array([[0.0, 0.5, 1.0, np.nan, -3.0]], np.float32)
    assert np.asarray(open_image(file_bytes(Image.fromarray(floats), "TIFF")))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    assert open_image(Image.fromarray(floats * 255)).getpixel((1, 0)) == (128,) * 3


def test_other_modes():
    assert open_image(file_bytes(Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255,) * 3
    assert open_image(file_bytes(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).getpixel((1, 1)) == (255,) * 3
    assert open_image(Image.new("HSV", (2, 2))).mode == open_image(Image.new("LAB", (2, 2))).mode == "RGB"


def test_what_cannot_be_turned_upright(monkeypatch):
    def fail(image):
        raise struct.error(f"unpack failed at {image}")

    exif = Image.Exif()
    exif[0x0112] = 6
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    assert "mode RGB" in refusal(file_bytes(Image.new("RGB", (4, 4)), "JPEG", exif=exif))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF"):
        data = file_bytes(frames[0], format, save_all=True, append_images=frames[1:])
        red, green, blue = open_image(data).getpixel((3, 3))
        assert red > 240 and green < 15 and blue < 15


def _png_header_only(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"IDAT" + zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data)
    )


@pytest.mark.parametrize("size", [(8000, 8000), (13000, 13000), (20000, 20000), (60000, 60000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes our own filter
def test_bombs_are_refused_before_decoding(size):
    message = refusal(_png_header_only(*size))  # it holds no pixels: decoding it would say "truncated"
    assert "40 million" in message and "limit" in message


def test_a_bomb_is_one_line(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header_only(13000, 13000))
    script = "import sys\nfrom mmvl.vision.images import open_image\ntry: open_image(sys.argv[1])\n"
    script += "except ValueError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == 1 and "13000 x 13000" in result.stdout and result.stderr == ""


def test_pixel_limit():
    picture = Image.new("RGB", (10, 10))
    assert open_image(picture, max_pixels=100).size == (10, 10)
    assert "10 x 10" in refusal(picture, max_pixels=99)
    assert "10 x 10" in refusal(file_bytes(picture), max_pixels=99)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files(format):
    data = file_bytes(Image.effect_noise((60, 60), 90).convert("RGB"), format)
    for share in (0.3, 0.6, 0.95):
        message = refusal(data[: int(len(data) * share)], name="half.img")
        assert message.startswith("half.img") and "damaged" in message


def test_what_is_no_image(tmp_path):
    note = tmp_path / "note.png"
    note.write_text("not a picture")
    assert str(note) in refusal(note) and "not an image" in refusal(note)
    assert "not an image" in refusal(b"") and "not an image" in refusal(b"\x89PNG\r\n\x1a\n")
    assert "not a file" in refusal(tmp_path)
    assert "int" in refusal(7) and "NoneType" in refusal(None)
    assert "nothing" in refusal(Image.new("RGB", (0, 5)))
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_image(tmp_path / "missing.png")
    # PPM and ICO are not among the formats: fewer decoders for strangers to attack
    assert "not an image" in refusal(b"P6 1 1 255 abc")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on the damage it passes over
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_never_crash(data):
    format = data.draw(st.sampled_from(FORMATS))
    whole = bytearray(file_bytes(Image.linear_gradient("L").resize((16, 16)).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(whole))
    except ValueError as error:
        assert "0x" not in str(error) and "\n" not in str(error)
    else:
        assert image.mode == "RGB"
