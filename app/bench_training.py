"""`mmvl bench training`: a line a measurement on the terminal, and everything as JSON, which grows with each."""

import json
from pathlib import Path

from mmvl.app.bench import Progress, check_folder
from mmvl.benchmark.training import run
from mmvl.benchmark.training_step import Size


def training(
    parts: list[str], *, layers: int | None, tokens: int | None, seconds: float, json_path: Path | None
) -> None:
    """Measure, print, write. Raises ValueError or OSError for parts, sizes or a path that cannot be used."""
    check_folder(json_path)
    progress = Progress()

    def done(part: str, row: dict, result: dict) -> None:
        progress.clear()
        if len(result["results"]) == 1:
            print(_about(result), flush=True)
        print(f"  {part}: {line(row)}", flush=True)
        if json_path is not None:
            json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    result = run(parts, lambda ranks: Size.of(ranks, layers=layers, tokens=tokens, seconds=seconds), progress, done)
    progress.clear()
    if result is not None and json_path is not None:
        print(f"Wrote {json_path}")


def _about(result: dict) -> str:
    size, text = result["size"], result["size"]["text"]
    where = f"{result['ranks']} x {result['gpu']}" if result["gpu"] else f"{result['ranks']} processes on a CPU"
    peak = f", utilisation of {size['peak_tflops']:.0f} TFLOP/s a GPU" if size["peak_tflops"] else ""
    return (
        f"{where}, {size['dtype']}, width {text['hidden_size']}, {text['num_local_experts']} experts of "
        f"{text['intermediate_size']}; torch {result['torch']}, commit {result['commit']}{peak}"
    )


def line(row: dict) -> str:
    """What is said of one measurement."""
    if "failed" in row:
        return f"{row['name']} failed: {row['failed']}"
    if "documents" in row:
        return (
            f"{row['tokens']:,} tokens in {len(row['documents'])} documents, {row['dtype']}: {row['ms']:,.0f} ms "
            f"({row['tokens_per_second']:,.0f} tokens/s), one rank {row['one_rank_ms']:,.0f} ms; differences: output "
            f"{row['output_error']:.1e}, gradient {row['gradient_error']:.1e}, weights {row['weights_error']:.1e}"
        )
    name = row["name"]
    if "token_groups" in row:
        name += f", tokens in {row['token_groups']}" + ("" if row["sent"] else ", nothing sent")
    said = [
        f"{row['layers']} layers, {name}: {row['step_ms']:,.1f} ms a step",
        f"{row['tokens_per_second']:,.0f} tokens/s",
    ]
    if "utilisation" in row:
        said.append(f"{100 * row['utilisation']:.1f}% of the peak")
    if "exposed_share" in row:
        said.append(f"communication {row['communication_ms']:.1f} ms, exposed {100 * row['exposed_share']:.1f}%")
    if "exposed_share_by_difference" in row:
        said.append(f"exposed {100 * row['exposed_share_by_difference']:.1f}% by difference")
    if "peak_gib" in row:
        said.append(f"{row['peak_gib']:.0f} GiB")
    return ", ".join(said)
