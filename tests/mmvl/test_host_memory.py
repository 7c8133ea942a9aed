"""Memory of the machine: what can be had of it, and what a process has held, whoever started it."""

import subprocess
import sys

from mmvl import host_memory
from mmvl.engine.memory import available_bytes


def test_a_child_does_not_report_what_its_parent_held():
    before = host_memory.peak_bytes()
    held = b"x" * (before + (64 << 20))  # more than this process ever had, whatever has run in it
    here = host_memory.peak_bytes()
    assert here >= len(held)
    code = f"import runpy; print(runpy.run_path({host_memory.__file__!r})['peak_bytes']())"
    there = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert 1 << 20 < there < here / 2


def test_files_that_would_give_way_count_as_memory_that_can_be_had(tmp_path, monkeypatch):
    """After large weights were read nearly all memory holds files."""
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 900 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(host_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(host_memory, "CGROUP", cgroup)
    assert host_memory.ram_bytes() == (1000 << 10, 900 << 10) and available_bytes() == 900 << 10
    cgroup.mkdir()
    for name, text in (("max", "600000"), ("current", "500000"), ("stat", "anon 7\ninactive_file 300000")):
        (cgroup / f"memory.{name}").write_text(f"{text}\n")
    assert host_memory.ram_bytes() == (600_000, 400_000)
    (cgroup / "memory.max").write_text("max\n")
    assert host_memory.ram_bytes() == (1000 << 10, 900 << 10)
    meminfo.unlink()
    assert host_memory.ram_bytes() is None and available_bytes() == 4 << 30
