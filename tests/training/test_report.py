"""What a log line says about the machine."""

from types import SimpleNamespace

import torch

from mmvl.checkpoint import load_config
from mmvl.training.report import Rates


def test_memory_is_what_this_process_has_held(tiny_model_dir, monkeypatch):
    """Not `ru_maxrss`, which a process has from the one that started it."""
    ranks = SimpleNamespace(device=torch.device("cpu"), world=1, sum=lambda numbers: numbers)
    rates = Rates(load_config(tiny_model_dir), SimpleNamespace(trainable=["language_model"], hardware=None), ranks)
    monkeypatch.setattr("mmvl.training.report.peak_bytes", lambda: 3 << 29)
    said = rates.of(ranks, window_seconds=1.0, spent=0.25, seconds=60.0)
    assert said == {"tflops": 0.0, "mfu": None, "memory_gib": 1.5, "eta_seconds": 180.0}
