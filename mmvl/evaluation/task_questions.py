"""Tasks of questions about charts (ChartQA), documents (DocVQA) and rendered tables (WikiTableQuestions)."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmvl.data.public_formats import read_charts, read_documents, read_tables
from mmvl.data.splits import split_of
from mmvl.evaluation import metrics
from mmvl.evaluation.answers import anls, relaxed_match
from mmvl.evaluation.denotation import denotation_match, is_lookup
from mmvl.evaluation.draw import draw_table
from mmvl.evaluation.task import ALWAYS, Example, Score, Task, commonest, groups, held_out
from mmvl.vlm import user_turn


def _asked(read):
    def load(path: Path, split: str) -> list[Example]:
        return [
            Example(f"{asked.key}/{n}", user_turn(asked.image, question), answers[0],
                    {"answers": answers} | ({"kind": asked.kinds[n]} if asked.kinds else {}), asked.key)
            for asked in held_out(read(path), split, lambda asked: asked.image)
            for n, (question, answers) in enumerate(asked.qa)
        ]  # fmt: skip

    return load


def _always(read):
    """The commonest answer of the train split; without one, of the questions themselves, which flatters it."""

    def rivals(examples: Sequence[Example], path: Path) -> dict[str, list[str]]:
        own = {e.group for e in examples}
        train = [a[0] for x in read(path) if split_of(x.key) == "train" and x.key not in own for _, a in x.qa]
        return {ALWAYS: [commonest(train or [e.reference for e in examples])] * len(examples)}

    return rivals


def _chart_right(example: Example, prediction: str) -> float:
    return float(relaxed_match(prediction, example.reference))


def _score_charts(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = list(zip(predictions, [e.reference for e in examples], strict=True))
    of, n = groups(examples), len(pairs)
    relaxed = [relaxed_match(p, r) for p, r in pairs]
    rows = [
        Score("relaxed accuracy", metrics.mean(relaxed, of), n),
        Score(
            "relaxed accuracy, units forgiven",
            metrics.mean([relaxed_match(p, r, forgive_units=True) for p, r in pairs], of), n,
        ),
        Score("exact match", metrics.mean([metrics.exact_match(p, r) for p, r in pairs], of), n),
    ]  # fmt: skip
    kinds = [e.meta.get("kind", "") for e in examples]
    for kind in sorted(set(kinds) - {""}):
        part = [i for i, found in enumerate(kinds) if found == kind]
        interval = metrics.mean([relaxed[i] for i in part], [of[i] for i in part])
        rows.append(Score(f"relaxed accuracy, {kind} questions", interval, len(part)))
    return rows


def _document_right(example: Example, prediction: str) -> float:
    return anls(prediction, example.meta["answers"])


def _score_documents(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = list(zip(predictions, [e.meta["answers"] for e in examples], strict=True))
    of, n = groups(examples), len(pairs)
    exact = [any(metrics.exact_match(p, answer) for answer in a) for p, a in pairs]
    return [
        Score("ANLS", metrics.mean([anls(p, a) for p, a in pairs], of), n),
        Score("exact match", metrics.mean(exact, of), n),
    ]


def _tables(path: Path, split: str) -> list[Example]:
    tables = held_out(read_tables(path), split, lambda table: json.dumps([table.header, table.rows]).encode())
    return [
        Example(
            f"{table.key}/{n}", user_turn(picture, question), " | ".join(answers),
            {"answers": answers, "lookup": is_lookup(question, answers, table.header, table.rows)}, table.key,
        )
        for table in tables
        for picture in [draw_table(table.header, table.rows)]
        for n, (question, answers) in enumerate(table.qa)
    ]  # fmt: skip


def _table_right(example: Example, prediction: str) -> float:
    return float(denotation_match(prediction, example.meta["answers"]))


def _score_tables(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [bool(_table_right(e, p)) for e, p in zip(examples, predictions, strict=True)]
    rows = [Score("denotation accuracy", metrics.mean(right, groups(examples)), len(right))]
    part = [(r, e.group) for e, r in zip(examples, right, strict=True) if e.meta["lookup"]]
    if part:
        interval = metrics.mean([r for r, _ in part], [group for _, group in part])
        rows.append(Score("denotation accuracy, look-up questions", interval, len(part)))
    return rows


TASKS = (
    Task(
        name="chartqa",
        description="questions about charts (ChartQA), relaxed accuracy",
        load=_asked(read_charts), score=_score_charts, max_tokens=24, rivals=_always(read_charts), right=_chart_right,
        blind=True, needs_data=True, split="development", headline=2,
        data="a tar of charts (key.webp, key.json with qa), or a folder of ChartQA with png/ and its .json files",
        notes="Units forgiven: without %, currency and thousands commas, which the published metric counts as errors.",
    ),
    Task(
        name="docvqa",
        description="questions about scanned documents (DocVQA), ANLS",
        load=_asked(read_documents), score=_score_documents, max_tokens=48, rivals=_always(read_documents),
        right=_document_right, blind=True, needs_data=True,
        data="DocVQA's .json, pictures beside it or in ../spdocvqa_images; their folder; or a tar (key.png, key.json)",
        notes="Exact match: with any of a question's answers, which are variants of one and no votes.",
    ),
    Task(
        name="tables",
        description="questions about rendered real tables (WikiTableQuestions), denotation accuracy",
        load=_tables, score=_score_tables, max_tokens=48, rivals=_always(read_tables), right=_table_right, blind=True,
        needs_data=True, split="development", headline=2,
        data="tables as .jsonl or .jsonl.gz (id, header, rows, qa), or WikiTableQuestions' folder (csv/, data/*.tsv)",
        notes="Look-up: answered by finding one row and reading one of its cells (our rule, see denotation.py).",
    ),
)  # fmt: skip
