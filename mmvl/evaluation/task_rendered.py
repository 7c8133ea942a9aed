"""Rendered pages, receipts, tables, charts, screens in layouts, styles, fonts never trained on; each question alone.

The set is made by `mmvl data render KIND --set held_out=true` (with whole=1.0 for the task rendered-text) and a seed:
it is what the command says, so nothing has to be kept.
"""

from collections.abc import Sequence
from pathlib import Path

from mmvl.data.conversation import FIELDS
from mmvl.data.shards import read_shard
from mmvl.data.splits import in_split
from mmvl.evaluation import metrics, tesseract
from mmvl.evaluation.answers import anls, is_refusal, relaxed_match
from mmvl.evaluation.metrics import Interval
from mmvl.evaluation.task import Example, Score, Task, commonest, groups, question_of, shard_files, text_of
from mmvl.vlm import user_turn

DATA = "shards of `mmvl data render receipts|pages|tables|charts|screens --set held_out=true`, or your own"
DOCUMENTS = ("pages", "receipts")  # sources whose fields are asked for in the words of FIELDS
_FIELD_WORDINGS = frozenset(wording for wordings in FIELDS.values() for wording in wordings)
_ON_A_FORM = ("What is written under ", "What does the field ")


def _questions(path: Path, split: str) -> list[Example]:
    """Every question of every sample, asked by itself: no answer before it can help."""
    examples = []
    for shard in shard_files(path):
        for sample in read_shard(shard):
            if not in_split(sample.key, split):
                continue
            messages = sample.json.get("messages") or []
            files = [p["file"] for m in messages for p in m["content"] if p["type"] == "image"]
            pictures = [sample.members[name] for name in files]
            told = sample.json.get("meta", {})
            kinds = told.get("kinds")  # a word a question; shards of before renderers told have none
            if kinds and 2 * len(kinds) != len(messages):
                raise ValueError(f"{shard}: sample {sample.key} has {len(kinds)} kinds for {len(messages)} turns")
            for n, (asked, said) in enumerate(zip(messages[::2], messages[1::2], strict=True)):
                reference = text_of(said["content"])
                meta = {"source": sample.json["source"].partition("/")[0], "answerable": not is_refusal(reference)}
                if "shows" in told:
                    meta["shows"] = told["shows"]
                if kinds:
                    meta |= {"kind": kinds[n], "answerable": kinds[n] != "absent"}
                messages_of = user_turn(pictures, text_of(asked["content"]))
                examples.append(Example(f"{sample.key}/{n}", messages_of, reference, meta, group=sample.key))
    return examples


def _short(path: Path, split: str) -> list[Example]:
    return [e for e in _questions(path, split) if "\n" not in e.reference]


def _texts(path: Path, split: str) -> list[Example]:
    return [e for e in _questions(path, split) if "\n" in e.reference]


def _right(example: Example, prediction: str) -> float:
    if not example.meta["answerable"]:
        return float(is_refusal(prediction))
    return anls(prediction, [example.reference])


def is_field(example: Example) -> bool:
    """Whether a question is for a field of a document (its date, its total), not for a line, an item or a caption.

    As the sample says (`kind` is "field"; the titles of tables and charts do not count); where it says nothing, by
    wording: `FIELDS` or the words for a form's fields.
    """
    if "kind" in example.meta:
        return example.meta["kind"] == "field" and example.meta["source"] not in ("tables", "charts")
    question = question_of(example)
    worded = question in _FIELD_WORDINGS or question.startswith(_ON_A_FORM)
    return worded and example.meta["source"] in DOCUMENTS


def _always(examples: Sequence[Example]) -> str:
    """The commonest answer of the questions that have one; the commonest of all would be a refusal."""
    return commonest(e.reference for e in examples if e.meta["answerable"])


def _mean(values: Sequence[float | bool], examples: Sequence[Example]) -> Interval:
    return metrics.mean(list(values), groups(examples))


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = list(zip(examples, predictions, strict=True))
    known = [(e, p) for e, p in pairs if e.meta["answerable"]]
    absent = [(e, p) for e, p in pairs if not e.meta["answerable"]]
    rows = []
    if known:
        asked = [e for e, _ in known]
        similar = [anls(p, [e.reference]) for e, p in known]
        relaxed = [relaxed_match(p, e.reference) for e, p in known]
        rows += [
            Score("ANLS", _mean(similar, asked), len(known)),
            *_field_row(asked, similar),
            Score("relaxed accuracy", _mean(relaxed, asked), len(known)),
            Score("false refusals", _mean([is_refusal(p) for _, p in known], asked), len(known)),
        ]
    if absent:
        refused = [is_refusal(p) for _, p in absent]
        rows.append(Score("refused where there is no answer", _mean(refused, [e for e, _ in absent]), len(absent)))
    for name, part in _parts([e for e, _ in known]):
        of = [asked[i] for i in part]
        rows.append(Score(f"ANLS, {name}", _mean([similar[i] for i in part], of), len(part)))
        rows.append(Score(f"relaxed accuracy, {name}", _mean([relaxed[i] for i in part], of), len(part)))
    return rows


def _parts(examples: Sequence[Example]) -> list[tuple[str, list[int]]]:
    """The numbers of the examples of each source, if there are several; then of each thing that pictures show, where
    a source has several of them.
    """
    both = [(e.meta["source"], e.meta.get("shows", "")) for e in examples]
    sources, shown = ({pair[n] for pair in both} - {""} for n in (0, 1))
    names = [(0, source) for source in sorted(sources) if len(sources) > 1]
    names += [(1, thing) for thing in sorted(shown) if len(set(both)) > len(sources)]
    return [(name, [i for i, pair in enumerate(both) if pair[n] == name]) for n, name in names]


def _field_row(examples: Sequence[Example], similar: Sequence[float]) -> list[Score]:
    part = [(e, value) for e, value in zip(examples, similar, strict=True) if is_field(e)]
    if not part:
        return []
    return [Score("ANLS, field questions", _mean([value for _, value in part], [e for e, _ in part]), len(part))]


def _text_right(example: Example, prediction: str) -> float:
    errors = metrics.character_errors(prediction, example.reference)
    return max(0.0, 1 - errors.edits / max(errors.length, 1))


def _score_texts(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = [(p, e.reference) for e, p in zip(examples, predictions, strict=True)]
    of = groups(examples)
    characters = [metrics.character_errors(*pair) for pair in pairs]
    rows = [
        Score("character error rate", metrics.error_rate(characters, of), len(pairs)),
        Score("word error rate", metrics.error_rate([metrics.word_errors(*p) for p in pairs], of), len(pairs)),
    ]
    for name, part in _parts(examples):
        errors = metrics.error_rate([characters[i] for i in part], [of[i] for i in part])
        rows.append(Score(f"character error rate, {name}", errors, len(part)))
    return rows


TASKS = (
    Task(
        name="rendered",
        description="questions about rendered pages in layouts and fonts never seen: ANLS, relaxed accuracy, refusals",
        load=_short, score=_score, max_tokens=64, right=_right, blind=True, needs_data=True, data=DATA,
        headline=("ANLS", "ANLS, field questions", "relaxed accuracy"), always=_always,
        notes="ANLS and relaxed accuracy: of questions that have an answer; texts of several lines are left out.",
    ),
    Task(
        name="rendered-text",
        description="transcribe rendered pages, tables, columns, rows of several lines: CER and WER",
        load=_texts, score=_score_texts, max_tokens=900, right=_text_right, needs_data=True, data=DATA,
        blind=True, rivals=lambda examples, data: tesseract.readings(examples, tesseract.PAGE), tesseract=True,
        headline=2,
    ),
)  # fmt: skip
