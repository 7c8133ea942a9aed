"""Pictures that are mostly margin: what is cut off, and above all what is not."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmvl.vision.config import TilingConfig
from mmvl.vision.margins import content_box, without_margins
from mmvl.vision.tiling import relevant_part, tile_image, token_count

SMALL = TilingConfig(tile=56, patch=14, grid_pinpoints=((56, 56), (112, 112), (56, 112), (112, 56)), trim_margins=True)


def sheet(size=(900, 1280), slip=(300, 200, 560, 700), paper=255, ink=0):
    """A page with lines of small round letters on a part of it."""
    image = Image.new("L", size, paper)
    draw = ImageDraw.Draw(image)
    for y in range(slip[1], slip[3] - 8, 16):
        for x in range(slip[0], slip[2] - 6, 8):
            draw.rectangle((x, y, x + 5, y + 7), outline=ink)
    return image


def test_what_stands_on_a_large_sheet_is_found():
    left, top, right, bottom = content_box(sheet())
    assert 270 <= left <= 300 and 170 <= top <= 200 and 560 <= right <= 600 and 690 <= bottom <= 730
    image = sheet().convert("RGB")
    assert content_box(image) == (left, top, right, bottom)
    assert np.array_equal(np.asarray(without_margins(image)), np.asarray(image.crop((left, top, right, bottom))))


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(("paper", "ink"), [(255, 225), (40, 220), (128, 160)])
def test_faint_print_and_dark_paper(paper, ink, times):
    image = sheet(paper=paper, ink=ink)
    image = image.resize((900 * times, 1280 * times), Image.Resampling.BICUBIC)
    box = [round(edge / times) for edge in content_box(image)]
    assert max(abs(a - b) for a, b in zip(box, content_box(sheet()), strict=True)) <= 16


def test_dust_and_shades_count_for_nothing():
    image = sheet()
    noise = np.random.default_rng(0).integers(-12, 13, (1280, 900))
    pixels = np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)
    for y, x in ((30, 40), (1200, 850), (1000, 100)):
        pixels[y : y + 2, x : x + 3] = 0
    clean, box = content_box(image), content_box(Image.fromarray(pixels))
    assert max(abs(a - b) for a, b in zip(clean, box, strict=True)) <= 8


@pytest.mark.parametrize("what", ["5", "12", "1", "$5"])
@pytest.mark.parametrize(("size", "letter"), [((900, 1280), 11), ((1240, 1754), 20), ((2480, 3508), 40)])
def test_a_lonely_figure_is_no_dust(size, letter, what):
    """Wherever the cells' borders fall."""
    times = size[0] / 900
    for shift in range(0, 24, 3):
        image = sheet(size, slip=[round(edge * times) for edge in (300, 200, 560, 700)])
        at = (round(780 * times) + shift, size[1] - 60 - shift)
        ImageDraw.Draw(image).text(at, what, fill=0, font=ImageFont.load_default(letter))
        found = ImageDraw.Draw(image).textbbox(at, what, font=ImageFont.load_default(letter))
        box = content_box(image)
        assert box[2] >= found[2] - 1 and box[3] >= found[3] - 1, (shift, box, found)


@pytest.mark.parametrize(("paper", "ink"), [((120, 120, 120), (255, 60, 70)), ((255, 255, 255), (255, 244, 120))])
def test_what_differs_in_colour_alone_counts(paper, ink):
    image = Image.new("RGB", (900, 1280), paper)
    ImageDraw.Draw(image).rectangle((600, 900, 640, 930), fill=ink)
    left, top, right, bottom = content_box(image)
    assert left <= 600 and top <= 900 and 641 <= right <= 680 and 931 <= bottom <= 970


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 9), (4000, 3000)])
def test_nothing_on_it_or_no_room(size):
    image = Image.new("RGB", size, "white")
    assert content_box(image) is None and without_margins(image) is image


def test_of_a_picture_that_is_three_quarters_full_nothing_is_cut():
    image = sheet(slip=(60, 60, 840, 1130))
    assert without_margins(image) is image
    image = sheet(slip=(60, 60, 840, 900))
    assert without_margins(image).size == (816, 864)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8))
    assert without_margins(photo) is photo


@pytest.mark.parametrize("times", [1, 3])
def test_shadows_along_the_edges_are_the_scanners(times):
    image = sheet()
    draw = ImageDraw.Draw(image)
    for box in ((0, 100, 12, 500), (888, 600, 899, 1279), (200, 0, 500, 9), (300, 1262, 500, 1279)):
        draw.rectangle(box, fill=90)
    shadowed = image.resize((900 * times, 1280 * times))
    assert content_box(shadowed) == content_box(sheet().resize((900 * times, 1280 * times)))
    draw.rectangle((0, 1000, 60, 1010), fill=90)  # reaches further in: a line that a border cuts, say
    left, _, _, bottom = content_box(image)
    assert left == 0 and bottom >= 1010


def test_a_large_picture_is_looked_at_in_small():
    image = sheet().resize((3600, 5120))
    box = content_box(image)
    assert max(abs(a - 4 * b) for a, b in zip(box, content_box(sheet()), strict=True)) <= 64


def test_it_is_cut_only_where_it_would_be_made_smaller_and_the_tiling_says_so():
    image = sheet()
    part = relevant_part(image, SMALL)
    assert part.size == without_margins(image).size != image.size
    tiled = tile_image(image, SMALL)
    assert tiled.size == part.size and tiled.num_tokens == token_count(*part.size, SMALL)
    assert tiled.digest == tile_image(part, replace(SMALL, trim_margins=False)).digest
    assert relevant_part(image, replace(SMALL, trim_margins=False)) is image
    small = sheet((100, 110), (30, 20, 60, 60))
    assert without_margins(small) is not small and relevant_part(small, SMALL) is small
