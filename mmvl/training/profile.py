"""Where the time of a few training steps goes: a table by operation and a trace to look at, for `profile_at_step`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

STEPS = 3
TABLE, TRACE = "profile.txt", "profile-trace.json.gz"


class StepProfile:
    """Profiles `STEPS` steps from step number `at` on and writes their table and trace into `out`.

    The steps that are profiled are slower than others. `at` should be well after the start, where kernels compile.
    """

    def __init__(self, at: int | None, out: Path, device: torch.device):
        """at: None profiles nothing. device: its time is what the table is sorted by."""
        self.at, self.out, self.device = at, out, device
        self._profiler: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Call before step number `step` (from 0)."""
        if step == self.at:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()

    def after(self, step: int) -> str | None:
        """Call after step number `step`; where the table is, once it has been written."""
        if self._profiler is None or step + 1 < self.at + STEPS:
            return None
        return self.end()

    def end(self) -> str | None:
        """Write what has been profiled, if anything: also where a stage ends amid it."""
        if self._profiler is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._profiler.stop()
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=order, row_limit=80, max_name_column_width=80)
        (self.out / TABLE).write_text(f"{STEPS} steps from step {self.at} on\n{table}\n")
        self._profiler.export_chrome_trace(str(self.out / TRACE))
        self._profiler = None
        return f"where the time of steps {self.at} to {self.at + STEPS - 1} went: {self.out / TABLE} and {TRACE}"
