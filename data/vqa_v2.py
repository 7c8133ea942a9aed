"""VQA v2: reader and importer of its two JSON files, questions about photographs with ten people's answers each.

Goyal et al., "Making the V in VQA Matter", 2017; https://visualqa.org. Questions and answers are under CC BY 4.0, the
photographs are COCO's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmvl.data.files import read_json
from mmvl.data.find_pictures import Pictures
from mmvl.data.importing import Item, import_items, picture
from mmvl.data.turns import Made, asked


@dataclass(frozen=True)
class Question:
    """What is asked, the answer that most people gave, all their answers, and its type: yes/no, number or other."""

    text: str
    answer: str
    answers: list[str]
    kind: str


@dataclass(frozen=True)
class Photograph:
    """A picture by its file's name, and its questions."""

    key: str
    name: str
    questions: list[Question]


def read_vqa(file: str | Path) -> list[Photograph]:
    """v2_OpenEnded_mscoco_*_questions.json, and v2_mscoco_*_annotations.json beside it or in ../Annotations.

    FileNotFoundError where one is missing (the test sets have no annotations), ValueError where one is not of VQA v2.
    """
    file = Path(file)
    content, name = read_json(file), file.name.replace("OpenEnded_", "").replace("questions", "annotations")
    places = [file.parent / name, file.parent.parent / "Annotations" / name]
    answered = next((place for place in places if place.is_file() and place != file), None)
    if answered is None:
        raise FileNotFoundError(f"{file} has no answers: there is neither {places[0]} nor {places[1]}")
    given = read_json(answered)
    try:
        answers = {row["question_id"]: row for row in given["annotations"]}
        photographs: dict[str, list] = {}
        for row in content["questions"]:
            said = answers[row["question_id"]]
            several = [str(answer["answer"]) for answer in said["answers"]]
            shown = f"COCO_{content['data_subtype']}_{row['image_id']:012d}"
            question = Question(row["question"], str(said["multiple_choice_answer"]), several, said["answer_type"])
            photographs.setdefault(shown, []).append(question)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} and {answered.name} are not VQA v2's questions and answers ({error!r})") from error
    return [Photograph(key, f"{key}.jpg", questions) for key, questions in sorted(photographs.items())]


def import_vqa(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    file: str | Path,
    images: str | Path | None = None,
    longest: int = 0,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One sample a photograph, all its questions in a drawn order; the answer that most gave is learned, all are in
    "meta". images: folder, tar or zip; without it they are found as `find_pictures` says.
    """
    pictures = Pictures(file, images)

    def item(photograph: Photograph) -> Item:
        def make(rng) -> Made:
            questions = rng.sample(photograph.questions, len(photograph.questions))
            shown = picture(pictures.read(photograph.name), longest)
            turns, answers = [(q.text, q.answer) for q in questions], [q.answers for q in questions]
            return asked("vqa-v2", shown, turns, image=photograph.name, answers=answers)

        return Item(photograph.key, make)

    items = [item(photograph) for photograph in read_vqa(file)]
    return import_items(
        out_dir, "vqa-v2", items, count, seed, workers, split=split, progress=progress, problems=problems
    )
