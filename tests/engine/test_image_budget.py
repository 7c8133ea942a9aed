"""Whose turn it is to open images, and that what is reserved for them is enough."""

import io
import os
import random
import threading

import pytest
from PIL import Image

from mmvl.engine.image_budget import ImageBudget, bytes_needed
from mmvl.media import MAX_PAGES
from mmvl.vision.config import TilingConfig
from mmvl.vision.tiling import tile_image


def granted(*leases):
    return [lease.granted.done() for lease in leases]


def test_turns_come_in_the_order_of_asking_as_far_as_there_is_room():
    budget = ImageBudget(10)
    first, large, small, nothing = (budget.ask(n) for n in (6, 7, 2, 0))
    assert granted(first, large, small, nothing) == [True, False, False, True]  # the small one does not overtake
    first.settle(3)
    assert granted(large, small) == [True, False] and budget.held == 10
    large.release()
    large.release()
    assert granted(small) == [True] and budget.held == 5


def test_more_than_there_is_is_given_when_nobody_else_has_any():
    budget = ImageBudget(10)
    first, huge = budget.ask(1), budget.ask(99)
    assert granted(huge) == [False]
    first.release()
    assert granted(huge) == [True] and granted(budget.ask(1)) == [False]


def test_a_lower_priority_comes_first_among_those_who_wait():
    budget = ImageBudget(10)
    first, second, third, early = budget.ask(10), budget.ask(6), budget.ask(6), budget.ask(5, priority=-1)
    first.release()
    assert granted(second, third, early) == [False, False, True]
    early.release()
    assert granted(second, third) == [True, False]


def test_who_gives_up_waiting_keeps_nobody_from_their_turn():
    budget = ImageBudget(10)
    _, large, small = budget.ask(6), budget.ask(7), budget.ask(2)
    with pytest.raises(KeyError), large:
        raise KeyError
    assert granted(small) == [True] and budget.held == 8
    assert budget.take(50).granted.done() and budget.held == 58


def test_many_threads_never_hold_more_than_there_is():
    budget, seen = ImageBudget(10), []

    def use(draw):
        for _ in range(50):
            lease = budget.ask(draw.randrange(1, 11))
            lease.granted.result(20)
            seen.append(budget.held)
            lease.settle(lease.num_bytes // 2)
            lease.release()

    threads = [threading.Thread(target=use, args=(random.Random(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 200 and max(seen) <= 10 and budget.held == 0


def test_a_finalizer_may_give_back_at_any_moment():
    """A task that its event loop left behind, say, found while the books are open."""

    class Found(int):
        def __radd__(self, other):
            first.release()
            return other + int(self)

    budget = ImageBudget(10)
    first, waiting = budget.ask(4), budget.ask(8)
    thread = threading.Thread(target=budget.take, args=(Found(1),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and granted(waiting) == [True] and budget.held == 9


def asking(*images):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]


def tiling_of(**settings):
    return TilingConfig(tile=32, patch=8, grid_pinpoints=((32, 64), (64, 64), (128, 32), (96, 96)), **settings)


@pytest.mark.parametrize("settings", [{}, {"min_edge": 24}, {"trim_margins": True}])
def test_tiles_and_the_largest_picture_fit_into_what_is_reserved(settings):
    tiling, draw, images, tiles = tiling_of(**settings), random.Random(3), [], 0
    for _ in range(30):
        image = Image.new("RGB", (draw.randrange(1, 300), draw.randrange(1, 300)), "white")
        image.paste("black", (0, 0, image.width // 5, image.height // 5))
        images.append(image)
        tiles += tile_image(image, tiling).tiles_N3TT.nbytes
    largest = max(image.width * image.height for image in images)
    assert tiles + 4 * largest <= bytes_needed(asking(*images), tiling) <= 10 * tiles + 8 * largest


def test_headers_tell_what_decoding_takes(tmp_path):
    tiling = tiling_of()
    of_tiles = bytes_needed(asking(Image.new("RGB", (1, 1))), tiling) - 8

    def file(mode, kind, **options):
        data = io.BytesIO()
        Image.new(mode, (50, 40)).save(data, kind, **options)
        return data.getvalue()

    def decoding(*sources):
        return bytes_needed(asking(*sources), tiling) - len(sources) * of_tiles

    path = tmp_path / "a.png"
    path.write_bytes(file("RGB", "PNG"))
    for plain in (path, str(path), path.read_bytes(), file("L", "JPEG"), file("P", "PNG")):
        assert decoding(plain) == 8 * 2000
    for staged in (file("RGB", "JPEG", progressive=True), file("RGB", "TIFF")):
        assert decoding(staged) == 14 * 2000
    for other in (file("RGBA", "PNG"), file("RGB", "WEBP"), file("P", "PNG", transparency=0), file("I;16", "PNG")):
        assert decoding(other) == 28 * 2000
    assert decoding(path, path, Image.new("RGBA", (5, 5))) == 8 * 2000  # one is open at a time
    pdf = file("RGB", "PDF")
    assert bytes_needed(asking(pdf), tiling) > MAX_PAGES * of_tiles
    whole = bytes_needed(asking(path), tiling)
    assert whole == bytes_needed([*asking(path), {"role": "user", "content": "and?"}], tiling)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert bytes_needed(asking(tmp_path / "a.png", str(tmp_path)), tiling_of()) == 0


@pytest.mark.parametrize(
    "messages",
    [None, "hello", [5], [{}], [{"content": [None]}], [{"content": [{"type": "image"}]}], asking(b"", "/nowhere", 7),
     asking(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40), asking(Image.new("1", (20_000, 20_000))), asking(object())],
)  # fmt: skip
def test_what_will_be_refused_needs_nothing(messages):
    assert bytes_needed(messages, tiling_of()) == 0
