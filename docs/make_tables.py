"""Writes the tables of results into the pages that show them, and draws the pictures beside them.

README.md and mmvl-tiny's model card: from what `mmvl eval --json` wrote for it, with the loss curve from the metrics of
its training stages. kernels/README.md: from what `mmvl bench kernels --json` wrote on an H200. docs/laptop.md: from
what `mmvl bench laptop` wrote. docs/training.md: from what `mmvl bench training`, `data` and `packing` wrote.
mmvl/engine/README.md: from what `mmvl bench engine` and `mmvl bench ranks` wrote.
"""

import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

REPOSITORY = Path(__file__).parent.parent
MODEL = REPOSITORY / "mmvl" / "models" / "mmvl-tiny"
README, CARD = REPOSITORY / "README.md", MODEL / "README.md"
KERNELS = REPOSITORY / "kernels" / "README.md"
KERNEL_RESULT = REPOSITORY / "kernels" / "results" / "h200.json"
TRAINING = REPOSITORY / "docs" / "training.md"
LAPTOP = REPOSITORY / "docs" / "laptop.md"
LAPTOP_RESULTS = sorted((REPOSITORY / "docs" / "results").glob("laptop-*.json"))
TRAINING_RESULTS = REPOSITORY / "mmvl" / "benchmark" / "results"
STAGES = ("text", "vision-words", "vision-language", "reading", "pages", "documents", "instruction", "preference",
          "pages-again", "documents-again", "instruction-again", "documents-v4", "instruction-v4")  # fmt: skip
BEGIN, END = r"<!-- results: [^\n]*-->\n", "<!-- end of results -->"


def find_results(folder: Path = MODEL) -> list[dict]:
    """The results in a model's directory, by file name; other JSON files in it have no scores."""
    paths = sorted([*folder.rglob("*.json"), *folder.rglob("*.json.gz")])
    found = [json.loads(gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()) for p in paths]
    return [result for result in found if "task" in result and "scores" in result]


class Aim(NamedTuple):
    """A goal: of which task over which set (""; its own), the row of its scores, at least or at most what."""

    what: str
    task: str
    data: str
    metric: str
    least: float | None = None
    most: float | None = None


AIMS = (
    Aim("lines of print, unseen fonts", "print-lines", "", "character error rate", most=0.02),
    Aim(
        "lines of real receipts, without case",
        "receipt-lines",
        "receipts.tar",
        "character error rate without case",
        most=0.06,
    ),
    Aim("rendered pages, fields, unseen layouts", "rendered", "pages", "ANLS, field questions", least=0.85),
    Aim("rendered receipts, fields, unseen layouts", "rendered", "receipts", "ANLS, field questions", least=0.85),
    Aim("real receipts, date", "receipts", "receipts.tar", "date right", least=0.80),
    Aim("real receipts, total", "receipts", "receipts.tar", "total right", least=0.75),
    Aim("real receipts, company", "receipts", "receipts.tar", "company right", least=0.60),
    Aim("real charts", "chartqa", "charts.tar", "relaxed accuracy", least=0.40),
    Aim("rendered charts, unseen styles", "rendered", "charts", "relaxed accuracy", least=0.70),
    Aim("real tables, all questions", "tables", "tables-train.jsonl.gz", "denotation accuracy", least=0.25),
    Aim(
        "real tables, look-up", "tables", "tables-train.jsonl.gz", "denotation accuracy, look-up questions", least=0.60
    ),
    Aim("shapes and colours", "easy-vqa", "", "accuracy", least=0.99),
    Aim("emoji in an unseen style", "captions", "emoji", "right name within 5 words", least=0.50),
    Aim("stamps held out", "captions", "stamps", "right name within 5 words", least=0.50),
    Aim(
        "refusals where there is no answer", "refusals", "", "refused where the answer is not in the image", least=0.80
    ),
    Aim("refusals where there is one", "refusals", "", "false refusals", most=0.05),
)
SPEED = (
    ("first token of a page, two cores", "first_token_seconds", "{:.2f} s", None, 2.0),
    ("tokens a second, two cores", "tokens_per_second", "{:.0f}", 30.0, None),
    ("memory", "peak_mib", "{:,.0f} MiB", None, 1430.5),  # 1.5 GB
)


def aims(results: list[dict], speed: dict | None) -> str:
    """Markdown: a row an aim, and beside it what came out. speed: what speed.json of the results holds."""
    lines = ["| what | aim | measured | 95% interval | questions | met |", "|---|---:|---:|---:|---:|---|"]
    for aim in AIMS:
        score = score_of(aim, results)
        goal = f"at least {percent(aim.least)}" if aim.most is None else f"at most {percent(aim.most)}"
        if score is None:
            lines.append(f"| {aim.what} | {goal} | not measured | | | |")
            continue
        value, low, high = (percent(score[key]) for key in ("value", "low", "high"))
        said = _yes(met(score["value"], aim.least, aim.most))
        lines.append(f"| {aim.what} | {goal} | {value} | {low} to {high} | {score['n']:,} | {said} |")
    for what, key, form, least, most in SPEED if speed else ():
        goal = f"at least {form.format(least)}" if most is None else f"at most {form.format(most)}"
        lines.append(f"| {what} | {goal} | {form.format(speed[key])} | | | {_yes(met(speed[key], least, most))} |")
    return "\n".join(lines) + "\n"


def score_of(aim: Aim, results: list[dict]) -> dict | None:
    """The row that an aim is about, with its value as a share; None where it was not measured."""
    found = [r for r in results if r["task"] == aim.task and r.get("data", {}).get("name", "") == aim.data]
    scores = [score for r in found for score in r["scores"] if score["metric"] == aim.metric]
    return scores[0] if scores else None


def met(value: float, least: float | None, most: float | None) -> bool:
    """Whether a value is within its bounds."""
    return (least is None or value >= least) and (most is None or value <= most)


def _yes(so: bool) -> str:
    return "yes" if so else "no"


def shrink(picture: Path, width: int = 1800, colours: int = 128) -> None:
    """The PNG at most `width` pixels wide, in so many colours: far fewer bytes, and every line keeps its colour."""
    with Image.open(picture) as drawn:
        small = drawn.convert("RGB")
    small.thumbnail((width, small.height), Image.Resampling.LANCZOS)
    small.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(picture, optimize=True)


def speed_of(folder: Path = MODEL / "results") -> dict | None:
    """first_token_seconds, tokens_per_second and peak_mib of a page on two cores, if they were measured."""
    path = folder / "speed.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(results: list[dict]) -> str:
    """Markdown: a row a score, then the commands that measured them."""
    lines = ["| task | measure | value | 95% interval | questions |", "|---|---|---:|---:|---:|"]
    for result in results:
        name = " ".join(filter(None, (result["task"], result.get("data", {}).get("name", ""))))
        for score in result["scores"]:
            written = "{:.2f}".format if "CIDEr" in score["metric"] else percent
            value, low, high = (written(score[key]) for key in ("value", "low", "high"))
            lines.append(f"| {name} | {score['metric']} | {value} | {low} to {high} | {score['n']:,} |")
    lines += ["", "```", *(command(result) for result in results), "```"]
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """One decimal, or two where one would round an error away."""
    text = f"{100 * share:.1f}%"
    return f"{100 * share:.2f}%" if text in ("100.0%", "0.0%") and share not in (0, 1) else text


def command(result: dict) -> str:
    """The command that measures it again."""
    limit = "" if result["limit"] is None else f" --limit {result['limit']}"
    data = f" --data {result['data']['name']}" if "data" in result else ""
    return f"mmvl eval {result['task']}{data}{limit}"


def kernels_table(result: dict) -> str:
    """Markdown: a row an operation and shape, then the peers that were left out, the machine and the command."""
    lines = _kernel_rows(result)
    left_out = [*_left_out(result, "wrong"), *_left_out(result, "failed")]
    left_out += [f"- Corrected since: {text}." for text in result.get("corrections", [])]
    lines += ["", *left_out, *[""] * bool(left_out), *_kernels_measured_by(result)]
    return "\n".join(lines) + "\n"


def _kernel_rows(result: dict) -> list[str]:
    head = (
        "operation",
        "shape",
        "mmvl, ms",
        "error",
        "floor, ms",
        "of roofline",
        "best peer",
        "its ms",
        "times as fast",
    )
    lines = ["| " + " | ".join([*head, "goal, ms"]) + " |", "|---|---|" + "---:|" * 4 + "---|" + "---:|" * 3]
    for row in result["results"]:
        ours = next(c for c in row["contestants"] if c["ours"])
        peer = next((c for c in row["contestants"] if c["name"] == row["best_peer"]), None)
        shape = ", ".join(f"{key} {value:,}" for key, value in row["shape"].items())
        share = f"{100 * ours['of_roofline']:.0f}%" if ours["status"] == "ok" else "-"
        lines.append("| " + " | ".join((
            row["op"], shape, _milliseconds(row["ms"]) if row["ms"] else ours["status"],
            f"{ours['error']:.1e}" if "error" in ours else "-", _milliseconds(row["floor_ms"]),
            share, row["best_peer"] or "-", _milliseconds(peer["ms"]) if peer else "-",
            f"{row['times_faster']:.2f}" if row["times_faster"] else "-", _goal(row),
        )) + " |")  # fmt: skip
    return lines


def _kernels_measured_by(result: dict) -> list[str]:
    """Machine, versions and command."""
    peak = result["ceilings"]
    fp8 = f", {peak['fp8'] / 1e12:.0f} in fp8" if "fp8" in peak else ""
    return [
        f"{result['gpu']}, driver {result['driver']}, torch {result['torch']}, triton {result['triton']}, "
        f"{result['date']}, commit {result['commit']}. Ceilings measured in the same run, which the floors come from: "
        f"{peak['bytes'] / 1e12:.2f} TB/s for a copy, {peak['bf16'] / 1e12:.0f} TFLOP/s for a matrix product in bf16"
        f"{fp8}.", "", "```", re.sub(r"\S*/", "", result["command"]), "```",
    ]  # fmt: skip


def _milliseconds(ms: float) -> str:
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def _goal(row: dict) -> str:
    if row["goal_ms"] is None:
        return ""
    return f"{row['goal_ms']:g}, {'met' if row['ms'] and row['ms'] <= row['goal_ms'] else 'missed'}"


def _left_out(result: dict, status: str) -> list[str]:
    """A line a contestant that was wrong or failed somewhere."""
    where: dict[str, list[str]] = {}
    for row in result["results"]:
        length = f"{row['op']} at {row['axis']} {row['shape'][row['axis']]:,}"
        for c in row["contestants"]:
            if c["status"] == status:
                error = f" ({c['error']:.1e})" if "error" in c else f" ({c['note'].split(':')[0]})"
                where.setdefault(c["name"], []).append(length + error)
    why = {"wrong": "not timed where its relative error was over the tolerance", "failed": "failed"}[status]
    return [f"- {name}: {why}: {'; '.join(places)}." for name, places in where.items()]


def training_tables(folder: Path = TRAINING_RESULTS) -> str:
    """Markdown: steps and rows over two GPUs, the loader, padding; under each the machine and the commands."""
    of = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}
    lines = ["### A step", ""]
    lines += _table("layers|what|ms a step|fastest to slowest|tokens/s|of peak|communication, ms|nothing beside it, ms|"
                    "busiest expert|GiB a GPU")  # fmt: skip
    for row in (*of["training-experts"]["results"], *of["training-layer"]["results"]):
        name = row["name"]
        if "token_groups" in row:
            name = f"mmvl, tokens in {row['token_groups']}" + ("" if row["sent"] else ", nothing sent")
        if "failed" in row:
            lines.append(f"| {row.get('layers', 1)} | {name} | failed: {row['failed']} |" + " |" * 7)
            continue
        lines.append("| " + " | ".join((
            str(row["layers"]), name, f"{row['step_ms']:.0f}", f"{row['low_ms']:.0f} to {row['high_ms']:.0f}",
            f"{row['tokens_per_second']:,.0f}", percent(row["utilisation"]), _number(row, "communication_ms", ".1f"),
            _number(row, "exposed_ms", ".1f"), _number(row, "busiest_expert", ".2f"), f"{row['peak_gib']:.0f}",
        )) + " |")  # fmt: skip
    lines += ["", *_measured_by(of["training-experts"], of["training-layer"]), "", "### A row", ""]
    lines += _table("tokens|documents|dtype|two GPUs, ms|GiB each|one GPU, ms|GiB|output|gradient|weights' gradients")
    for row in of["training-row"]["results"]:
        lines.append("| " + " | ".join((
            f"{row['tokens']:,}", ", ".join(f"{n:,}" for n in row["documents"]), row["dtype"], f"{row['ms']:,.0f}",
            f"{row['peak_gib']:.0f}", f"{row['one_rank_ms']:,.0f}", f"{row['one_rank_peak_gib']:.0f}",
            *(f"{row[f'{what}_error']:.1e}" for what in ("output", "gradient", "weights")),
        )) + " |")  # fmt: skip
    lines += ["", *_measured_by(of["training-row"]), "", "### The loader", "", *_table("what|samples/s|lowest|highest")]
    for row in of["loader"]["contestants"]:
        rates = (f"{row[key]:,.0f}" for key in ("samples_per_second", "low", "high"))
        lines.append(f"| {row['name']} | {' | '.join(rates)} |")
    loader, packing = of["loader"], of["packing"]
    lines += ["", f"mmvl is {loader['times_as_fast']:.2f} times as fast as webdataset + PIL (the median of "
              f"{loader['rounds']} rounds, each beside its own): {loader['workers']} processes on {loader['cores']} "
              f"cores, {loader['samples']:,} samples.", "", *_measured_by(loader), "", "### Padding", "",
              f"{percent(packing['padding'])} of {packing['rows']} rows of {packing['batch_tokens']:,} tokens, with "
              f"{packing['samples']:,} samples of the recipe {packing['recipe']}, would be padding if rows were filled "
              f"up.", "", *_measured_by(packing)]  # fmt: skip
    return "\n".join(lines) + "\n"


def laptop_tables(paths: list[Path] = LAPTOP_RESULTS) -> str:
    """Markdown: a page of a document, then the text half beside transformers; the machine and the commands."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    lines = _table("what|parameters|tiles|prompt tokens|first token, s|its processor time, s|ViT, s|tokens/s|MiB")
    for result in results:
        page = result["page"]
        lines.append("| " + " | ".join((
            result["model"], f"{page['parameters'] / 1e6:.1f}M", str(page["tiles"]), f"{page['prompt_tokens']:,}",
            *(f"{page[key]:.2f}" for key in ("first_token_seconds", "first_token_cpu_seconds", "vision_seconds")),
            f"{page['tokens_per_second']:.0f}", f"{page['memory_mib']:,.0f}",
        )) + " |")  # fmt: skip
    lines += ["", *_table("what|requests x prompt + answer|tokens/s|transformers|times|processor time a token, ms|"
                          "transformers'|times")]  # fmt: skip
    for result in results:
        for line in result["table"]:
            ours, peer = line["mmvl"], line["transformers"]
            lines.append(
                f"| {result['model']} | {line['load']} | {ours['tokens_per_second']:,.0f} | "
                f"{peer['tokens_per_second']:,.0f} | {line['times']:.1f} | {ours['cpu_ms_a_token']:.2f} | "
                f"{peer['cpu_ms_a_token']:.2f} | {line['times_by_cpu']:.1f} |"
            )
    lines.append("")
    for result in results:
        lines.append(
            f"{result['model']}: {result['cpu']}, {result['cores']} cores, {result['threads']} for torch, "
            f"torch {result['torch']}, {result['date']}, commit {result['commit']}; the machine's load was "
            f"{result['load']:.1f} when it began.\n"
        )
    commands = [re.sub(r"\S*/", "", result["command"]) for result in results]
    return "\n".join([*lines, "```", *commands, "```"]) + "\n"


def _table(head: str) -> list[str]:
    """The first two lines of a table; what begins with a word of text stands left."""
    names = head.split("|")
    return [f"| {' | '.join(names)} |", "|" + "".join("---|" if n in ("what", "dtype") else "---:|" for n in names)]


def _number(row: dict, key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""


def _measured_by(*results: dict) -> list[str]:
    """Where the results are from, and the commands that measured them."""
    first = results[0]
    gpu = f"{first['ranks']} x {first['gpu']}, driver {first['driver']}, " if first["gpu"] else ""
    commands = [re.sub(r"(?<= )\S*/(?=\S*\.json)", "", r["command"]) for r in results]
    if "ranks" in first:
        start = f"torchrun --nproc-per-node {first['ranks']} --no-python "
        commands = [start + command for command in commands]
    about = f"{gpu}torch {first['torch']}, {first['date']}, commit {first['commit']}."
    return [about[0].upper() + about[1:], "", "```", *commands, "```"]


def between_markers(page: str, new: str) -> str:
    """A page with `new` between the markers of results. Raises ValueError if they are not there once."""
    return between(page, new, BEGIN, END)


def between(page: str, new: str, begin: str, end: str) -> str:
    """A page with `new` between what two patterns find. Raises ValueError if they are not there once."""
    changed, count = re.subn(f"({begin}).*?({end})", lambda m: m[1] + new + m[2], page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"there are {count} places for {begin.strip()}, not one: {page.splitlines()[0]}")
    return changed


def with_table(page: str, results: list[dict], full: bool = False, speed: dict | None = None) -> str:
    """A page with every score between its markers (`full`), or with what was aimed at and what came out.

    Raises ValueError if the markers are not there once.
    """
    return between_markers(page, table(results) if full else aims(results, speed))


if __name__ == "__main__":
    from mmvl.benchmark import engine_page
    from mmvl.benchmark.picture import draw
    from mmvl.training.report import draw_loss

    for page in (README, CARD):
        text = with_table(page.read_text(encoding="utf-8"), find_results(), page == CARD, speed_of())
        page.write_text(text, encoding="utf-8")
    metrics = {stage: MODEL / "training" / stage / "metrics.jsonl" for stage in STAGES}
    draw_loss({stage: path for stage, path in metrics.items() if path.is_file()}, MODEL / "loss.png")
    shrink(MODEL / "loss.png")
    page = between_markers(TRAINING.read_text(encoding="utf-8"), training_tables())
    TRAINING.write_text(page, encoding="utf-8")
    if LAPTOP_RESULTS:
        page = between_markers(LAPTOP.read_text(encoding="utf-8"), laptop_tables())
        LAPTOP.write_text(page, encoding="utf-8")
    page = between_markers(engine_page.PAGE.read_text(encoding="utf-8"), engine_page.tables())
    engine_page.PAGE.write_text(page, encoding="utf-8")
    if KERNEL_RESULT.is_file():
        measured = json.loads(KERNEL_RESULT.read_text(encoding="utf-8"))
        page = between_markers(KERNELS.read_text(encoding="utf-8"), kernels_table(measured))
        KERNELS.write_text(page, encoding="utf-8")
        draw(measured, KERNEL_RESULT.with_suffix(".png"))
