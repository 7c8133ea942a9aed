"""The tables of mmvl/engine/README.md, from the results in mmvl/engine/results."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "engine" / "results"
PAGE = RESULTS.parent / "README.md"
LEFT_OUT = "-"


def tables(folder: Path = RESULTS) -> str:
    """Markdown: the slice under load, the engine on one and two GPUs, the decoder alone over two, which says what
    sending costs, and the small model's exactness and steps, each as measured."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    parts = [
        *_loads([found["h200-slice"], found["h200-long"]]),
        "",
        *_spread(
            ("8 layers, bf16", found["h200-engine-slice-1"]),
            ("8 layers, bf16", found["h200-engine-slice-2"]),
            ("80 layers (456B), experts in int4", found["h200-engine-whole-2"]),
        ),
        "",
        *_ranks(found["h200-ranks-slice"], "8 layers, bf16"),
        "",
        *_ranks(found["h200-ranks-whole"], "all 80 layers (456B), experts in int4"),
        "",
        *_tiny(found["h200-tiny"]),
    ]
    return "\n".join(parts) + "\n"


def _loads(results: list[dict]) -> list[str]:
    heads = ("tokens/s", "transformers'", "times", "first token, s", "between, ms", "p95", "floor", "prompt tokens/s",
             "of roofline", "used, GiB", "held, GiB")  # fmt: skip
    lines = [
        "8 of the 80 layers at full width, random weights, one H200, bf16:", "",
        "| requests x prompt + answer | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads),
    ]  # fmt: skip
    for line in (line for result in results for line in result["table"]):
        ours, peer = line["mmvl"], line.get("transformers")
        alone = line["sequences"] == 1 and line["length"] >= 1 << 13  # else the first token waits for more than prompts
        lines.append("| " + " | ".join((
            line["load"], f"{ours['tokens_per_second']:,.1f}",
            f"{peer['tokens_per_second']:,.1f}" if peer else LEFT_OUT, f"{line['times']:.1f}" if peer else LEFT_OUT,
            f"{ours['first_token_seconds']:.2f}", f"{1e3 * ours['between_seconds']:.2f}",
            f"{1e3 * ours['between_seconds_p95']:.2f}", f"{1e3 * ours['step_floor']:.2f}",
            f"{ours['prompt_tokens_per_second']:,.0f}",
            f"{100 * ours['prefill_floor'] / ours['first_token_seconds']:.0f}%" if alone else LEFT_OUT,
            _used(ours), f"{ours['memory_gib']:.0f}",
        )) + " |")  # fmt: skip
    lines += ["", *_corrections(*results)]
    lines += [f"- Of transformers' answers {result['peer_tokens']} tokens were made; its median step stands for the "
              "others." for result in results if result.get("peer_tokens")]  # fmt: skip
    lines += [f"- {line['load']}: {line['failed']}." for r in results for line in r["table"] if "failed" in line]
    lines += [f"- Failed: {result['failed']}." for result in results if "failed" in result]
    return [*lines, "", *_measured_by(*results)]


def _spread(*results: tuple[str, dict]) -> list[str]:
    """The engine itself, by number of GPUs; tokens/s of a step leave the prompts out."""
    heads = ("GPUs", "tokens/s", "first token, s", "last first token, s", "between, ms", "of its floor",
             "tokens/s of a step", "prompt tokens/s", "used, GiB a GPU", "held, GiB a GPU")  # fmt: skip
    lines = [
        "The engine with random weights on one and two H200s:", "",
        "| layers | requests x prompt + answer | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads),
    ]  # fmt: skip
    for what, result in results:
        for line in result["table"]:
            ours = line["mmvl"]
            lines.append("| " + " | ".join((
                what, line["load"], str(result["ranks"]), f"{ours['tokens_per_second']:,.1f}",
                f"{ours['first_token_seconds']:.2f}", f"{ours['first_token_seconds_worst']:.2f}",
                f"{1e3 * ours['between_seconds']:.2f}", f"{100 * ours['step_floor'] / ours['between_seconds']:.0f}%",
                f"{line['sequences'] / ours['between_seconds']:,.0f}", f"{ours['prompt_tokens_per_second']:,.0f}",
                _used(ours), f"{ours['memory_gib']:.0f}",
            )) + " |")  # fmt: skip
    return [*lines, "", *_measured_by(*(result for _, result in results))]


def _ranks(result: dict, what: str) -> list[str]:
    lines = [
        f"{what}, random weights, {result['ranks']} H200s, {result['weight_bytes'] / 1e9:.1f} GB of weights and "
        f"{result['peak_bytes'] / 1e9:.1f} GB in all on each:", "",
        "| work | ms | without sending | tokens/s | of roofline |", "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in result["prefill"]:
        lines.append(f"| prefill of {row['tokens']:,} tokens | {row['ms']:.0f} | {row['ms_without_sending']:.0f} | "
                     f"{row['tokens_per_second']:,.0f} | {100 * row['of_roofline']:.0f}% |")  # fmt: skip
    for row in result["decode"]:
        lines.append(f"| a decode step of {row['sequences']} | {row['graph_ms']:.2f} | "
                     f"{row['graph_ms_without_sending']:.2f} | {row['tokens_per_second']:,.0f} | "
                     f"{100 * row['of_roofline']:.0f}% |")  # fmt: skip
    said = _corrections(result)
    return [*lines, "", *said, *[""] * bool(said), *_measured_by(result)]


def _tiny(result: dict) -> list[str]:
    dtypes = list(dict.fromkeys(row["dtype"] for row in result["same"]))
    cases = list(dict.fromkeys(row["case"] for row in result["same"]))
    by = {(row["case"], row["dtype"]): row for row in result["same"]}
    lines = [
        f"{result['model']} on one H200, the first {result['new_tokens']} tokens of each answer, beside those of each "
        "request alone, token by token, without graphs, in step:", "",
        "| way | " + " | ".join(f"equal in {dtype}" for dtype in dtypes) + " |", "|---|" + "---:|" * len(dtypes),
    ]  # fmt: skip
    for case in cases:
        equal = (f"{by[case, dtype]['equal']} of {by[case, dtype]['of']}" for dtype in dtypes)
        lines.append(f"| {case} | " + " | ".join(equal) + " |")
    for dtype in dtypes:
        row, tokens = by[cases[0], dtype], result["new_tokens"]
        firsts = row["first_differences"]
        if firsts:
            compared = (row["of"] - len(firsts)) * tokens + sum(firsts) + len(firsts)
            rate = f"one token in {compared / len(firsts):.0f} is the first of an answer that differs"
            lines += ["", f"In {dtype} {rate} ({cases[0]})."]
    ways = list(dict.fromkeys((row["graphs"], row["behind"]) for row in result["steps"]))
    steps = {(row["dtype"], row["n"], row["graphs"], row["behind"]): row["ms_a_step"] for row in result["steps"]}
    names = [f"{'graphs' if graphs else 'no graphs'}, {'one behind' if behind else 'in step'}"
             for graphs, behind in ways]  # fmt: skip
    lines += ["", "Milliseconds of a decode step:", "", "| requests | " + " | ".join(names) + " |",
              "|---|" + "---:|" * len(ways)]  # fmt: skip
    for dtype, count in dict.fromkeys((row["dtype"], row["n"]) for row in result["steps"]):
        found = [steps.get((dtype, count, *way)) for way in ways]
        cells = (LEFT_OUT if ms is None else f"{ms:.2f}" for ms in found)
        lines.append(f"| {count}, {dtype} | " + " | ".join(cells) + " |")
    return lines


def _used(row: dict) -> str:
    """GiB that the load needed; results before that was counted do not have it."""
    return f"{row['in_use_gib']:.1f}" if "in_use_gib" in row else LEFT_OUT


def _corrections(*results: dict) -> list[str]:
    """What was found about results after they were measured."""
    return [f"- {text[0].upper()}{text[1:]}." for result in results for text in result.get("corrections", [])]


def _measured_by(*results: dict) -> list[str]:
    """Where and when, once for results that have it in common, and the commands."""
    lines = dict.fromkeys(
        f"{r['gpu']}, driver {r['driver']}, torch {r['torch']}, triton {r['triton']}, {r['date'][:10]}, commit "
        f"{r['commit']}."
        for r in results
    )
    return [*"\n\n".join(lines).split("\n"), "", "```", *map(_command, results), "```"]


def _command(result: dict) -> str:
    """As it is typed: `mmvl bench engine` does not know what started its ranks."""
    start = f"torchrun --nproc-per-node {result.get('ranks')} -m mmvl.app.cli bench"
    return re.sub("^mmvl bench", start, result["command"]) if result.get("ranks", 1) > 1 else result["command"]
