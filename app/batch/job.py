"""What `mmvl caption` and `mmvl vqa` do: everything checked first, then the model opened, then the rows."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmvl.app.batch.answers import Answering
from mmvl.app.batch.journal import ON_EXISTING, Journal
from mmvl.app.batch.run import Answerer, report, run
from mmvl.app.batch.settings import Settings, fingerprint
from mmvl.app.batch.sinks import BESIDE, JsonLinesSink, open_sink
from mmvl.app.batch.sources import Folders, Reading, Source, open_source
from mmvl.app.batch.templates import Template
from mmvl.app.errors import UsageError, usage

ENGINES = ("local", "ray")
_TRIED = 100  # items that the template is tried on before the model is opened


def job(
    task: str,
    sources: Sequence[Path],
    dest: Path,
    *,
    prompt: str,
    system: str = "",
    on_existing: str = "skip",
    reading: Reading | None = None,
    model: Path | None = None,
    quantize: str | None = None,
    max_sequences: int = 32,
    devices: Sequence[str] = (),
    engine: str = "local",
    workers: int = 0,
    sampling: dict,
) -> bool:
    """Answers every item of the sources into `dest`; True if a row failed or an item was left out.

    task: "caption" or "vqa". prompt: a template over the fields of each item. devices: a process for each; none: every
    GPU that is there, else the CPU. engine: "local", or "ray" with `workers` actors (0: one a GPU of the cluster).
    Raises UsageError, ValueError or OSError before the model is opened when what was given cannot be used.
    """
    with usage():
        template, system = Template(prompt), system.strip()
        _check_choices(on_existing, engine, devices, workers)
    source = open_source(sources, reading)
    with usage():
        if not isinstance(source, Folders):
            _refuse_overlap(sources, dest)
        sink = open_sink(dest, task, list(sources), overwrite=on_existing == "overwrite")
        if source.requests and not isinstance(sink, JsonLinesSink):
            raise ValueError("the answers to an OpenAI batch file go into a .jsonl, in OpenAI's own shape")
        if engine == "ray" and str(dest) == BESIDE:
            raise ValueError("--engine ray does not write beside the pictures: name a .jsonl, .parquet or folder")
    _try(template, source)

    from mmvl.engine.sampling_params import SamplingParams
    from mmvl.vlm import MMVL_TINY

    with usage():
        SamplingParams.from_kwargs(**sampling)  # what is wrong with it is told now, not when old rows are gone
    directory = model or MMVL_TINY
    name, weights = directory.name, fingerprint(directory)
    with _place(engine, devices) as device:
        dtype = "bfloat16" if device == "cuda" else "float32"  # as VLM chooses, but the same for all processes
        how = Answering(model, None, name, system, sampling, quantize, max_sequences, dtype)
        settings = Settings(task, name, weights, template.text, system, sampling, quantize, dtype, device)
        with closing(Journal(sink, settings, on_existing)) as journal:
            for remark in journal.remarks:
                print(f"{journal.sink.path}: {remark}", file=sys.stderr)
            if engine == "ray":
                from mmvl.app.batch.cluster import run_on_ray

                tally = run_on_ray(source, journal, template, how, task=task, workers=workers)
            else:
                tally = run(source, journal, template, local_answerer(how, devices), task=task)
    return report(tally, journal)


def _place(engine: str, devices: Sequence[str]) -> AbstractContextManager[str]:
    """For as long as the job runs: the kind of device that the model runs on."""
    if engine == "ray":
        from mmvl.app.batch.cluster import joined

        return joined()
    import torch

    kinds = {device.partition(":")[0] for device in devices}
    return nullcontext(kinds.pop() if kinds else "cuda" if torch.cuda.is_available() else "cpu")


def _check_choices(on_existing: str, engine: str, devices: Sequence[str], workers: int) -> None:
    if on_existing not in ON_EXISTING:
        raise ValueError(f"--on-existing is one of {', '.join(ON_EXISTING)}, not {on_existing}")
    if engine not in ENGINES:
        raise ValueError(f"--engine is one of {', '.join(ENGINES)}, not {engine}")
    if engine == "ray" and devices:
        raise ValueError("--device is for --engine local: Ray gives each of its --workers a GPU")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise ValueError(f"--device {','.join(devices)}: one kind of device for a job, since their answers differ")
    if engine != "ray" and workers:
        raise ValueError("--workers is for --engine ray; on this machine there is a process for each --device")


def local_answerer(how: Answering, devices: Sequence[str]) -> Callable[[], AbstractContextManager[Answerer]]:
    """What opens the model: in this process for one device, else in one process a device.

    Where torchrun has started several ranks, these share one model, which is opened in this process.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and len(devices) > 1:
        raise UsageError(f"--device with several names is for one process; torchrun has started {ranks} for one model")
    if not devices and ranks == 1:
        import torch

        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if len(devices) < 2:
        one = replace(how, device=devices[0] if devices else None)
        return lambda: nullcontext(one.open())

    from mmvl.app.batch.workers import Processes

    return lambda: closing(Processes([partial(_open, replace(how, device=device)) for device in devices]))


def _open(how: Answering):
    return how.open()


def _refuse_overlap(sources: Sequence[Path], dest: Path) -> None:
    """Rows are not written where rows are read: they would be items of the next run, or overwritten by this one."""
    if str(dest) == BESIDE:
        raise ValueError("-o .txt writes beside pictures of a folder; these are rows of files: name x.jsonl")
    there = dest.resolve()
    for source in sources:
        here = source.resolve()
        if there == here or there.parent == here or here.parent == there:
            raise ValueError(f"{dest} lies in what is read ({source}): name a place outside of it")


def _try(template: Template, source: Source) -> None:
    """Raise UsageError for what the template would make of the first item that can be asked, if that is a failure."""
    for number, item in enumerate(source):
        if item.error is None and item.chat is None:
            with usage():
                template.fill(item.fields)
            return
        if number >= _TRIED:
            return
