"""`mmvl bench`: operations and decoder beside their peers, as tables on the terminal, JSON and a picture."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

_COLUMNS = {"ms": 8, "spread": 6, "rate": 12, "roofline": 8, "error": 8, "how": 6}


def kernels(ops, *, quick: bool, device: str | None, json_path: Path | None, picture: Path | None) -> bool:
    """Measure, print, write. False if a kernel of ours was wrong or failed somewhere.

    Raises ValueError or OSError for a device, an operation or a path that cannot be used.
    """
    from mmvl.benchmark.run import choose_cases, choose_device, our_failures, run

    for path in (json_path, picture):
        check_folder(path)
    where, cases = choose_device(device), choose_cases(ops)
    console = Console(highlight=False)
    progress = Progress()
    if json_path is not None:
        _say_if_no_commit(console)

    def done(case, rows, result):
        progress.clear()
        print_rows(console, case.op, case.about, rows)
        if json_path is not None:  # after every operation, so that a run cut short leaves what it measured
            json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    result = run(cases, where, quick, progress, done)
    progress.clear()
    console.print(summary(result), markup=False)
    if json_path is not None:
        console.print(f"Wrote {json_path}", markup=False)
    if picture is not None:
        from mmvl.benchmark.picture import draw

        draw(result, picture)
        console.print(f"Drew {picture}", markup=False)
    failures = our_failures(result)
    for line in failures:
        console.print(f"Not measured: {line}", markup=False)
    return not failures


def tune(ops, *, device: str | None, json_path: Path | None) -> None:
    """Make the GPU's table of launch parameters anew. Raises like `kernels`."""
    from mmvl.benchmark.run import choose_cases, choose_device
    from mmvl.benchmark.tune import tune, write_table

    check_folder(json_path)
    where, cases = choose_device(device), choose_cases(ops)
    progress = Progress()
    console = Console(highlight=False)
    _say_if_no_commit(console)
    path = None
    for entry in tune(cases, where, progress):
        path = write_table([entry], where, json_path)
        progress.clear()
        before = f", default {entry['default_ms']:.4f} ms" if entry["default_ms"] else ""
        console.print(f"{entry['op']} {_words(entry['shape'])}: {entry['ms']:.4f} ms{before}, of {entry['candidates']}"
                      f" tried, {len(entry['failed'])} failed: {_words(entry['config'])}", markup=False)  # fmt: skip
    progress.clear()
    console.print(f"Wrote {path}" if path else "Nothing to tune: no kernel of these asks for parameters", markup=False)


def decoder(*, device: str | None, peer: bool, json_path: Path | None) -> None:
    """Prefill and decode of a full-width slice of the model. Raises ValueError or OSError like `kernels`."""
    from mmvl.benchmark.decoder import run
    from mmvl.benchmark.run import choose_device

    check_folder(json_path)
    progress = Progress()
    result = run(choose_device(device), peer, progress)
    progress.clear()
    console = Console(highlight=False)
    for row in result["prefill"]:
        goal = f", goal {row['goal']:,}" if row["goal"] else ""
        console.print(
            f"prefill, {row['tokens']:,} tokens, {row['name']}: {row['tokens_per_second']:,.0f} tokens/s{goal}"
        )
    for row in result["decode"]:
        graph = f", {row['graph_ms']:.2f} in a CUDA graph" if row["graph_ms"] else ""
        goal = f", goal {row['goal']}" if row["goal"] else ""
        console.print(f"decode, {row['sequences']} sequences, {row['name']}: {row['ms']:.2f} ms a step{graph}{goal}")
    if "failed" in result:
        console.print(result["failed"], markup=False)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"Wrote {json_path}", markup=False)


def print_rows(console: Console, op: str, about: str, rows: list[dict]) -> None:
    """One operation: a block a shape with a line a contestant, and at the end who could not take part."""
    console.print(f"[bold]{op}[/]: {about}")
    absent = {}
    for row in rows:
        console.print(f"  {_words(row['shape'])}: {verdict(row)}", markup=False)
        lines = Table(box=None, show_header=row is rows[0], padding=(0, 1, 0, 0), pad_edge=False)
        lines.add_column("", width=22, no_wrap=True)
        for name, width in _COLUMNS.items():
            lines.add_column(name, width=width, justify="right", no_wrap=True)
        for contestant in row["contestants"]:
            if contestant["status"] == "missing":
                absent[contestant["name"]] = contestant["note"]
            else:
                lines.add_row(*cells(contestant, row["bound"]), style="bold" if contestant["ours"] else "")
        console.print(lines)
    for row in rows:
        for c in row["contestants"]:
            if c["status"] == "failed":
                console.print(f"  {c['name']} failed at {_words(row['shape'])}: {c['note']}", markup=False)
    if absent:
        for why in dict.fromkeys(absent.values()):
            names = ", ".join(name for name, reason in absent.items() if reason == why)
            console.print(f"  missing: {names}: {why}", markup=False)
    console.print()


def cells(contestant: dict, bound: str) -> list[str]:
    """Name, milliseconds, spread, TB/s or TFLOP/s, share of the roofline, relative error, how it was timed."""
    c = contestant
    error = f"{c['error']:.1e}" if "error" in c else ""
    if c["status"] != "ok":
        return [f"  {c['name']}", c["status"], "", "", "", error, ""]
    rate = f"{c['tb_s']:.2f} TB/s" if bound == "bytes" else f"{c['tflop_s']:.0f} TFLOP/s"
    spread = f"{100 * (c['high'] - c['low']) / c['ms']:.0f}%"
    return [f"  {c['name']}", milliseconds(c["ms"]), spread, rate, f"{100 * c['of_roofline']:.0f}%", error, c["how"]]


def verdict(row: dict) -> str:
    """The floor, the goal, and how ours compares with the best peer."""
    said = [f"floor {milliseconds(row['floor_ms'])} ms"]
    if row["ms"] is None:
        said.append("ours was not measured")
    if row["goal_ms"] is not None and row["ms"] is not None:
        said.append(f"goal {milliseconds(row['goal_ms'])} {'met' if row['ms'] <= row['goal_ms'] else 'missed'}")
    if row["times_faster"] is not None:
        said.append(f"{row['times_faster']:.2f} times as fast as {row['best_peer']}")
    return ", ".join(said)


def milliseconds(ms: float) -> str:
    """Three significant digits, at most four decimals."""
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def summary(result: dict) -> str:
    """What ran where, and the ceilings the floors come from."""
    peak = result["ceilings"]
    fp8 = f", {peak['fp8'] / 1e12:.0f} in fp8" if "fp8" in peak else ""
    return (
        f"{result['gpu'] or 'CPU'}, torch {result['torch']}, triton {result['triton']}, commit {result['commit']}; "
        f"measured ceilings {peak['bytes'] / 1e12:.2f} TB/s (copy), {peak['bf16'] / 1e12:.1f} TFLOP/s (matrix product"
        f"{fp8}); {result['seconds']:.0f} s"
    )


def _words(shape: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in shape.items())


def check_folder(path: Path | None) -> None:
    """Asked before minutes of work."""
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")


def _say_if_no_commit(console: Console) -> None:
    """Before anything is measured whose file would not say of what."""
    from mmvl.benchmark.run import commit

    if commit() is None:
        console.print("No git here says which commit this is, and the file will not; MMVL_COMMIT=... says it.")


class Progress:
    """What is being done, on stderr: one line that is written over on a terminal, a line each elsewhere."""

    def __init__(self):
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[2K{text[:100]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
