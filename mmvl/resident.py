"""How much host memory this process has held at most."""

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Most bytes of this process that were in memory since its program began.

    On Linux from /proc: `ru_maxrss` is carried over fork and exec there, so that a child says at least what its parent
    held when it was started.
    """
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
