"""What is told while a job runs: rates, failures and the time that is left, on a terminal and elsewhere."""

import re
import sys
import time

from mmvl.app.batch import progress
from mmvl.app.batch.progress import Tally, Told

GOOD = {"text": "x", "completion_tokens": 30}


def half_done() -> Tally:
    """A tenth of the source was done before; since then 10 s, 99 good rows and a failure, up to 60% of it."""
    tally = Tally(fraction=0.1)
    tally.begin()
    tally.start = time.monotonic() - 10
    for _ in range(99):
        tally.add(GOOD)
    tally.add({"error": "no"})
    tally.fraction = 0.6
    return tally


def test_what_was_done_before_does_not_count_into_the_time_that_is_left():
    tally = half_done()
    assert abs(tally.remaining() - 8) < 0.2, "0.5 took 10 s, so 0.4 take 8"
    assert re.fullmatch(r"(10.0|9.9) images/s, 29\d tokens/s", tally.speed())
    assert Tally().remaining() is None and Tally(fraction=0.5).remaining() is None


def test_requests_count_like_rows():
    tally = Tally()
    tally.add({"status": 200, "body": {"usage": {"completion_tokens": 7}}})
    tally.add({"status": 422, "body": {}})
    assert (tally.good, tally.failed, tally.tokens) == (1, 1, 7)


def test_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.05)
    with Told(half_done(), "caption") as told:
        told()
        time.sleep(0.06)
        told()
        told()
    told_lines = capsys.readouterr().err
    assert re.fullmatch(r"caption: 100 rows, 1 failed, [\d.]+ images/s, \d+ tokens/s, ETA 0:00:08\n", told_lines)


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with Told(half_done(), "caption") as told:
        told()
    assert "100 rows, " in capsys.readouterr().err
