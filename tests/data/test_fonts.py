"""Which fonts may set training text, and which never."""

import random
from collections import Counter

import pytest

from mmvl.data.fonts import find_fonts, held_out_fonts, inspect, is_held_out, pick, training_fonts


def test_text_fonts_are_found_and_symbols_are_not(fonts):
    assert [font.family for font in find_fonts(fonts)] == ["DejaVu Sans", "DejaVu Serif", "Lato Medium", "STIXGeneral"]
    assert inspect(str(fonts / "cmsy10.ttf")) is None and inspect(str(fonts / "broken.ttf")) is None


def test_training_and_held_out_never_meet(fonts):
    train, held = training_fonts(fonts), held_out_fonts(fonts)
    assert [font.family for font in held] == ["Lato Medium"]
    assert not {font.path for font in train} & {font.path for font in held} and len(train) == 3


@pytest.mark.parametrize("family", ["Lato", "Lato Black", "Linux Libertine O", "Comic Neue Angular", "carlito"])
def test_widths_and_weights_of_held_out_families_are_held_out(family):
    assert is_held_out(family)


@pytest.mark.parametrize("family", ["DejaVu Sans", "Liberation Sans", "Courier", "Flato"])
def test_other_families_are_not(family):
    assert not is_held_out(family)


def test_families_are_drawn_evenly(fonts):
    some = training_fonts(fonts)
    many = some + [font for font in some if font.family == "DejaVu Sans"] * 20
    rng = random.Random(0)
    drawn = Counter(pick(many, rng).family for _ in range(3000))
    assert max(drawn.values()) < 1.2 * min(drawn.values())


def test_nothing_there_is_said_clearly(fonts, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory of fonts"):
        find_fonts(tmp_path / "gone")
    with pytest.raises(ValueError, match="no training fonts"):
        training_fonts(fonts / "deeper")
