"""Restyled pictures: still the thing they show, on a ground from which it stands out, with the colours of its name."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmvl.data.restyle import is_ink, keeps_colour, keeps_sides, place, restyle


def drawing(fill="red", size=(80, 60)) -> Image.Image:
    """A disc with a dark outline and an eye, RGBA."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((2, 2, size[0] - 3, size[1] - 3), fill=fill, outline="black", width=3)
    draw.rectangle((20, 20, 30, 30), fill="white")
    return image


@pytest.mark.parametrize("size", [(80, 60), (9, 40), (112, 12)])
def test_restyled_pictures_are_many_and_none_is_lost_on_its_ground(size):
    seen = set()
    for seed in range(60):
        rng = random.Random(seed)
        other = restyle(drawing(size=size), "face", rng)
        assert other.mode == "RGBA" and other.getbbox()
        assert all(0.4 * a - 8 < b < 2 * a + max(size) * 0.6 + 8 for a, b in zip(size, other.size, strict=True))
        image = place(other, rng)
        assert image.mode == "RGB" and np.asarray(image, int).std() > 2, seed
        seen.add(image.tobytes())
    assert len(seen) == 60


def test_the_same_seed_gives_the_same_picture():
    one, two = (place(restyle(drawing(), "face", rng), rng) for rng in (random.Random(3), random.Random(3)))
    assert one.tobytes() == two.tobytes()


def test_what_is_named_by_a_colour_keeps_it():
    assert keeps_colour("Red apple") and keeps_colour("large blue circle") and not keeps_colour("bored face")
    changed = 0
    for seed in range(80):
        for name in ("red heart", "heart"):
            other = np.asarray(restyle(drawing(), name, random.Random(seed)), int)
            red, green, blue = other[other[..., 3] > 128][:, :3].mean(0)
            if name == "red heart":
                assert red > green + 50 and red > blue + 50, seed
            else:
                changed += not (red > green + 50 and red > blue + 50)
    assert changed > 15


def test_a_thing_named_by_a_side_is_not_mirrored():
    arrow = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ImageDraw.Draw(arrow).polygon([(0, 0), (60, 30), (0, 60)], fill="blue")

    def to_the_right(name: str, seed: int) -> bool:
        seen = np.asarray(restyle(arrow, name, random.Random(seed)))[..., 3] > 128
        return np.nonzero(seen)[1].mean() < seen.shape[1] / 2

    assert all(to_the_right("right-pointing triangle", seed) for seed in range(40))
    assert 3 < sum(not to_the_right("triangle", seed) for seed in range(40)) < 25


def test_black_glyphs_take_any_colour():
    assert is_ink(drawing("black", (30, 10)).crop((0, 0, 10, 10))) and not is_ink(drawing())
    glyph = Image.new("RGBA", (20, 20), (0, 0, 0, 255))
    colours = {restyle(glyph, "square", random.Random(seed)).getpixel((10, 10))[:3] for seed in range(20)}
    assert len(colours) > 10


def test_what_has_a_side_or_writing_is_not_mirrored():
    assert keeps_sides("stop sign") and keeps_sides("Chinese character") and keeps_sides("arrow pointing left")
    assert not keeps_sides("dog")
    picture = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (0, 0, 20, 60))
    picture.paste((200, 30, 30, 255), (20, 25, 80, 35))
    mirrored = {"stop sign": 0, "dog": 0}
    for name in mirrored:
        for seed in range(40):
            alpha = np.asarray(restyle(picture, name, random.Random(seed)).getchannel("A"), int)
            mirrored[name] += alpha[:, : alpha.shape[1] // 2].sum() < alpha[:, alpha.shape[1] // 2 :].sum()
    assert mirrored["stop sign"] == 0 and mirrored["dog"] > 5
