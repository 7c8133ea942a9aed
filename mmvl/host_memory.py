"""Memory of the machine: how much there is, how much can be had, and how much this process has held at most."""

import re
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")  # of the container that this process is in, version 2


def ram_bytes() -> tuple[int, int] | None:
    """(all, what can be had) as Linux tells it, lowered to the container's limit if it has one; None elsewhere.

    What can be had includes files that lie in memory and would give way, such as weights that were read just now, which
    `SC_AVPHYS_PAGES` leaves out.
    """
    if not MEMINFO.is_file():
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in MEMINFO.read_text().splitlines() if line.endswith("kB")}
    total, available = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
        total, available = min(total, int(text)), min(available, max(int(text) - used, 0))
    return total, available


def peak_bytes() -> int:
    """Most bytes of this process that were in memory since its program began.

    On Linux from /proc: `ru_maxrss` is carried over fork and exec there, so that a child says at least what its parent
    held when it was started.
    """
    text = STATUS.read_text(encoding="utf-8") if STATUS.is_file() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
