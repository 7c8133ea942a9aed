"""Writes the table of results into README.md from the files that `mmvl eval --json` wrote for mmvl-tiny."""

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
MODEL = REPOSITORY / "mmvl" / "models" / "mmvl-tiny"
BEGIN, END = r"<!-- results: [^\n]*-->\n", "<!-- end of results -->"


def find_results(folder: Path = MODEL) -> list[dict]:
    """The results in a model's directory, by file name; other JSON files in it have no scores."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]
    return [result for result in found if "task" in result and "scores" in result]


def table(results: list[dict]) -> str:
    """Markdown: a row a score, then the commands that measured them."""
    lines = ["| task | measure | value | 95% interval | questions |", "|---|---|---:|---:|---:|"]
    for result in results:
        for score in result["scores"]:
            value, low, high = (f"{100 * score[key]:.1f}%" for key in ("value", "low", "high"))
            lines.append(f"| {result['task']} | {score['metric']} | {value} | {low} to {high} | {score['n']:,} |")
    lines += ["", "```", *(command(result) for result in results), "```"]
    return "\n".join(lines) + "\n"


def command(result: dict) -> str:
    """The command that measures it again."""
    limit = "" if result["limit"] is None else f" --limit {result['limit']}"
    return f"mmvl eval {result['task']}{limit}"


def with_table(readme: str, results: list[dict]) -> str:
    """The README with the table between its markers. Raises ValueError if they are not there once."""
    new, count = re.subn(f"({BEGIN}).*?({END})", lambda m: m[1] + table(results) + m[2], readme, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{README} has {count} places for the results, not one")
    return new


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8"), find_results()), encoding="utf-8")
