"""`mmvl bench engine`: the engine under load beside transformers, as a table on the terminal, JSON and a picture."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvl.app.bench import Progress, check_folder
from mmvl.app.errors import usage
from mmvl.app.options import whole_numbers


def engine(
    model: Path | None,
    shape: str | None,
    sequences: str,
    lengths: str,
    new_tokens: int,
    *,
    mixed: bool,
    repeats: int,
    peer: bool,
    peer_tokens: int | None = None,
    layers: int | None = None,
    experts: str | None = None,
    settings: dict | None = None,
    json_path: Path | None,
    picture: Path | None,
    device: str | None,
) -> None:
    """Measure, print, write. Raises ValueError or OSError for what cannot be used."""
    import torch

    from mmvl.benchmark.engine import loads, run
    from mmvl.benchmark.engine_contestants import model_of
    from mmvl.benchmark.run import choose_device
    from mmvl.engine.ranks import gather

    gather()  # under torchrun: ranks after the first stay here and help it until it ends
    for path in (json_path, picture):
        check_folder(path)
    with usage():
        model_of(model, shape, layers, experts)  # before anything is measured
    where = choose_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = loads(whole_numbers("--sequences", sequences), whole_numbers("--lengths", lengths), new_tokens, mixed)
    progress = Progress()

    def write(result: dict) -> None:
        if json_path is not None:  # after every load, so that a run cut short leaves what it measured
            json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    result = run(
        where, model=model, shape=shape, chosen=chosen, peer=peer, progress=progress, repeats=repeats, layers=layers,
        experts=experts, peer_tokens=peer_tokens, settings=settings, done=write,
    )  # fmt: skip
    progress.clear()
    console = Console(highlight=False)
    show(result["table"], console)
    console.print(agreement(result))
    if peer_tokens is not None and peer:
        console.print(
            f"Of transformers' answers {peer_tokens} tokens were made; its median step stands for the others."
        )
    for line in result["table"]:
        if "failed" in line:
            console.print(f"{line['load']}: {line['failed']}", markup=False)
    if "failed" in result:
        console.print(result["failed"], markup=False)
    write(result)
    if json_path is not None:
        console.print(f"Wrote {json_path}", markup=False)
    if picture is not None:
        from mmvl.benchmark.engine_picture import draw

        draw(result, picture)
        console.print(f"Drew {picture}", markup=False)


def agreement(result: dict) -> str:
    """How often an answer is another one beside others than alone."""
    a = result["agreement"]
    said = f"Greedy answers alone and together, {result['dtype']}: {a['equal']} of {a['requests']} equal"
    often = f", one token in {1 / a['rate']:,.0f} the first that differs" if a["rate"] else ""
    return f"{said}{often} ({a['tokens_compared']} compared)."


def show(lines: list[dict], console: Console) -> None:
    """The table, wider than the console where its numbers would not be whole; as wide as it likes in a file."""
    shown, before = printed(lines), console.width
    needed = console.measure(shown, options=console.options.update(width=_UNBOUNDED))
    console.width = max(before, needed.minimum) if console.is_terminal else needed.maximum
    console.print(shown)
    console.width = before
    console.print(
        "used: weights, the most keys, values and states at the same time, and activations as planned; "
        "held: all that was taken, the rest of the pools among it."
    )


_UNBOUNDED = 1000  # columns
HEADS = (
    "\ntokens\n/s", "\n\ntimes", "first\ntoken\ns", "between\ntokens\nms", "\n\np95", "\n\nfloor",
    "prompt\ntokens\n/s", "\nused\nGiB", "\nheld\nGiB",
)  # fmt: skip


def printed(lines: list[dict]) -> Table:
    """A row a load and contestant; only the first column may wrap."""
    shown = Table(box=None, pad_edge=False, collapse_padding=True)
    shown.add_column("requests x\nprompt\n+ answer", min_width=len("transformers"))
    for name in HEADS:
        shown.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        for name in ("mmvl", "transformers"):
            row = line.get(name)
            if row is None:
                continue
            shown.add_row(
                line["load"] if name == "mmvl" else name,
                f"{row['tokens_per_second']:,.1f}",
                f"{line['times']:.2f}" if name == "mmvl" and "times" in line else "",
                f"{row['first_token_seconds']:.3f}",
                f"{1e3 * row['between_seconds']:.2f}",
                f"{1e3 * row['between_seconds_p95']:.2f}",
                f"{1e3 * row['step_floor']:.2f}",
                f"{row['prompt_tokens_per_second']:,.0f}",
                _gib(row["in_use_gib"]) if "in_use_gib" in row else "",
                _gib(row["memory_gib"]),
            )
    return shown


def _gib(count: float) -> str:
    """Of small models two digits."""
    return f"{count:.2f}" if count >= 0.1 else f"{count:.2g}"
