"""`mmvl doctor`: what it finds here, and what it says about a machine that lacks something."""

from importlib.metadata import version

import torch

from mmvl.app import doctor


def test_it_prints_versions_device_and_memory(run_cli):
    result = run_cli("doctor")
    assert result.code == 0
    for package in ("torch", "timm", "gradio"):
        assert version(package) in result.out
    for name in ("python", "memory", "CPU threads of torch", "GPU" if not torch.cuda.is_available() else "cuda:0"):
        assert name in result.out


def test_what_is_missing_comes_with_what_to_do(monkeypatch, tmp_path):
    there = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("deepspeed", "gradio") else there(name))
    monkeypatch.setattr(doctor, "ram_bytes", lambda: (8 << 30, 1 << 30))
    monkeypatch.setattr(doctor.mmvl, "__file__", str(tmp_path / "mmvl" / "__init__.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problems = "\n".join(doctor.examine().problems)
    for line in (
        "training: deepspeed is not installed: pip install 'mmvl[train]'",
        "gradio is not installed, mmvl needs it: pip install mmvl",
        "memory: only 1.0 GiB free",
        "GPU: ",
        "the default model has no weights",
    ):
        assert line in problems


def test_memory_and_cores_are_those_of_this_process():
    total, free = doctor.ram_bytes()
    assert 0 < free <= total
    assert 1 <= doctor.cores() <= 4096
