"""Updates at a steady pace, and a stop that is obeyed at once."""

import time

import pytest

from mmvl.app.coalesce import coalesce


def collect(updates) -> tuple[list[str], object]:
    pieces = []
    try:
        while True:
            pieces.append(next(updates))
    except StopIteration as end:
        return pieces, end.value


def test_all_text_arrives_in_order_and_few_updates_carry_it(scripted_stream):
    words = [f"{number} " for number in range(500)]
    pieces, answer = collect(coalesce(scripted_stream(words, pause=0.0005), lambda: False, interval=0.05))
    assert "".join(pieces) == "".join(words)
    assert answer.finish_reason == "stop"
    assert len(pieces) < 100


def test_it_gives_signs_of_life_while_nothing_comes(scripted_stream):
    stream = scripted_stream(["late"], pause=0.3)
    pieces, _ = collect(coalesce(stream, lambda: False, interval=0.02))
    assert pieces.count("") > 5
    assert "".join(pieces) == "late"


def test_stop_closes_a_stream_that_is_silent(scripted_stream):
    stream = scripted_stream(["never"], pause=60.0)
    start = time.perf_counter()
    pieces, answer = collect(coalesce(stream, lambda: time.perf_counter() - start > 0.1, interval=0.02))
    assert "".join(pieces) == ""
    assert answer.finish_reason == "abort"
    assert time.perf_counter() - start < 5


def test_closing_it_closes_the_stream(scripted_stream):
    stream = scripted_stream(["word "] * 1000, pause=0.01)
    updates = coalesce(stream, lambda: False, interval=0.02)
    next(updates)
    updates.close()
    assert stream.closed.is_set()


def test_an_error_comes_after_the_text_before_it(scripted_stream):
    class Breaking(scripted_stream):
        def __next__(self):
            if self.said == 2:
                raise RuntimeError("broken")
            return super().__next__()

    pieces = []
    with pytest.raises(RuntimeError, match="broken"):
        for piece in coalesce(Breaking(["a", "b", "c"], pause=0.0), lambda: False):
            pieces.append(piece)
    assert "".join(pieces) == "ab"
