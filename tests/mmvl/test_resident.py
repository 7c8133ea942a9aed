"""The host memory that a process has held: its own, whoever started it."""

import subprocess
import sys

from mmvl import resident


def test_a_child_does_not_report_what_its_parent_held():
    before = resident.peak_bytes()
    held = b"x" * (before + (64 << 20))  # more than this process ever had, whatever has run in it
    here = resident.peak_bytes()
    assert here >= len(held)
    code = f"import runpy; print(runpy.run_path({resident.__file__!r})['peak_bytes']())"
    there = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert 1 << 20 < there < here / 2
