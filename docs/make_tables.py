"""Writes the tables of results into README.md and mmvl-tiny's model card from what `mmvl eval --json` wrote for it, and
draws its loss curve from the metrics of its training stages.
"""

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
MODEL = REPOSITORY / "mmvl" / "models" / "mmvl-tiny"
README, CARD = REPOSITORY / "README.md", MODEL / "README.md"
STAGES = ("text", "vision-words", "vision-language")
BEGIN, END = r"<!-- results: [^\n]*-->\n", "<!-- end of results -->"


def find_results(folder: Path = MODEL) -> list[dict]:
    """The results in a model's directory, by file name; other JSON files in it have no scores."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]
    return [result for result in found if "task" in result and "scores" in result]


def table(results: list[dict], full: bool) -> str:
    """Markdown: a row a score, then the commands that measured them. Not `full`: no scores of parts of a task."""
    lines = ["| task | measure | value | 95% interval | questions |", "|---|---|---:|---:|---:|"]
    for result in results:
        for score in result["scores"]:
            if not full and score["n"] < result["scores"][0]["n"]:
                continue
            value, low, high = (f"{100 * score[key]:.1f}%" for key in ("value", "low", "high"))
            lines.append(f"| {result['task']} | {score['metric']} | {value} | {low} to {high} | {score['n']:,} |")
    lines += ["", "```", *(command(result) for result in results), "```"]
    return "\n".join(lines) + "\n"


def command(result: dict) -> str:
    """The command that measures it again."""
    limit = "" if result["limit"] is None else f" --limit {result['limit']}"
    return f"mmvl eval {result['task']}{limit}"


def with_table(page: str, results: list[dict], full: bool = False) -> str:
    """A page with the table between its markers. Raises ValueError if they are not there once."""
    new, count = re.subn(f"({BEGIN}).*?({END})", lambda m: m[1] + table(results, full) + m[2], page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"there are {count} places for the results, not one: {page.splitlines()[0]}")
    return new


if __name__ == "__main__":
    from mmvl.training.report import draw_loss

    for page in (README, CARD):
        page.write_text(with_table(page.read_text(encoding="utf-8"), find_results(), page == CARD), encoding="utf-8")
    draw_loss({stage: MODEL / "training" / stage / "metrics.jsonl" for stage in STAGES}, MODEL / "loss.png")
