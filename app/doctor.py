"""`mmvl doctor`: what is installed, what the machine has, and what would not work here and why."""

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmvl
from mmvl.host_memory import MEMINFO, ram_bytes

_NEEDED = ("torch", "timm", "tokenizers", "safetensors", "pillow", "pypdfium2", "gradio", "webdataset")
_OPTIONAL = {"triton": "GPU kernels", "deepspeed": "mmvl train", "transformers": "tests", "playwright": "tests"}


@dataclass
class Report:
    """rows: (name, value) to print; problems: what would not work and what to do, one line each."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine() -> Report:
    report = Report()
    _versions(report)
    _machine(report)
    if _version("torch"):
        _devices(report)
    _default_model(report)
    return report


def print_report() -> None:
    from rich.console import Console
    from rich.table import Table

    report = examine()
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in report.rows:
        table.add_row(name, value)
    console.print(table)
    console.print()
    if not report.problems:
        console.print("Everything works here.")
    for problem in report.problems:
        console.print(f"- {problem}", markup=False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions(report: Report) -> None:
    report.rows.append(("mmvl", version("mmvl")))
    report.rows.append(("python", platform.python_version()))
    for package in _NEEDED:
        found = _version(package)
        report.rows.append((package, found or "missing"))
        if not found:
            report.problems.append(f"{package} is not installed, mmvl needs it: pip install mmvl")
    for package, used_for in _OPTIONAL.items():
        report.rows.append((package, _version(package) or f"not installed (for {used_for})"))
    if not _version("deepspeed"):
        report.problems.append("training: deepspeed is not installed: pip install 'mmvl[train]'")


def _machine(report: Report) -> None:
    report.rows.append(("system", f"{platform.system()} {platform.release()} {platform.machine()}"))
    report.rows.append(("CPU cores for us", str(cores())))
    if (found := ram_bytes()) is None:
        report.rows.append(("memory", f"unknown: no {MEMINFO}"))
        return
    total, free = found
    report.rows.append(("memory", f"{_gib(total)} in all, {_gib(free)} free"))
    if free < 2 << 30:
        report.problems.append(f"memory: only {_gib(free)} free; mmvl-tiny and the page need about 2 GiB")


def _devices(report: Report) -> None:
    import torch

    report.rows.append(("CPU threads of torch", str(torch.get_num_threads())))
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no GPU was found by its driver" if built else "this torch is built for the CPU only"
        report.rows.append(("GPU", f"none: {why}"))
        report.problems.append(f"GPU: {why}; everything runs on the CPU, which is enough for mmvl-tiny only")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        report.rows.append((f"cuda:{index}", f"{properties.name}, {_gib(free)} of {_gib(total)} free"))
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        report.problems.append("GPU: it has no bfloat16; give --device cpu")
    if not _version("triton"):
        report.problems.append("GPU kernels: triton is not installed, plain PyTorch is used: pip install triton")
    if torch.cuda.device_count() == 1:
        report.problems.append("several GPUs: there is one, so what spreads over more cannot run")
    elif not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        report.problems.append("several GPUs: this torch has no NCCL")


def _default_model(report: Report) -> None:
    folder = Path(mmvl.__file__).parent / "models" / "mmvl-tiny"
    weights = list(folder.glob("*.safetensors"))
    if weights:
        size = sum(file.stat().st_size for file in weights)
        report.rows.append(("mmvl-tiny", f"{size / 1e6:.1f} MB in {folder}"))
    else:
        report.rows.append(("mmvl-tiny", "missing"))
        report.problems.append(f"the default model has no weights in {folder}: install mmvl again, or give --model DIR")


def cores() -> int:
    """Cores this process may use, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
