"""Public sets as their archives unpack: readers, importers and `mmvl eval` find annotations and pictures alone."""

import io
import json

import pytest
from PIL import Image

from mmvl.data.find_pictures import Pictures, annotation_file
from mmvl.data.import_captions import import_coco
from mmvl.data.import_documents import import_docvqa, import_sroie
from mmvl.data.public_formats import read_charts, read_documents, read_receipts
from mmvl.data.shards import read_shard
from mmvl.data.vqa_v2 import import_vqa, read_vqa
from mmvl.evaluation.tasks import TASKS


def image(colour="red", form="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, form)
    return buffer.getvalue()


def write(folder, files: dict):
    """Bytes, text, or what becomes JSON."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(data, bytes):
            data = (data if isinstance(data, str) else json.dumps(data)).encode()
        path.write_bytes(data)
    return folder


def answers(shards) -> list[list[str]]:
    """What the assistant says in every sample."""
    return [
        [p["text"] for m in sample.json["messages"] if m["role"] == "assistant" for p in m["content"]]
        for path in shards
        for sample in read_shard(path)
    ]


def docvqa(page: str) -> dict:
    return {"data": [{"questionId": 1, "question": "Name?", "image": f"documents/{page}.png", "answers": ["Al"]}]}


@pytest.mark.parametrize("qas", ["spdocvqa_qas/", ""])
def test_docvqa_as_the_robust_reading_competition_gives_it(tmp_path, qas):
    files = {
        f"{qas}train_v1.0_withQT.json": docvqa("aa_2"),
        f"{qas}val_v1.0_withQT.json": docvqa("ab_1"),
        f"{qas}test_v1.0.json": {"data": [{"question": "Name?", "image": "documents/ac_3.png"}]},
        "spdocvqa_ocr/ab_1.json": {},
        "spdocvqa_images/aa_2.png": image(),
        "spdocvqa_images/ab_1.png": image("blue"),
    }
    root = write(tmp_path / "docvqa", files)
    for path in (root, root / qas, root / qas / "val_v1.0_withQT.json"):
        [asked] = read_documents(path)
        assert (asked.key, asked.image, asked.qa) == ("ab_1", image("blue"), [("Name?", ["Al"])])
        assert [e.reference for e in TASKS["docvqa"].load(path, "all")] == ["Al"]
    train = root / qas / "train_v1.0_withQT.json"
    for n, more in enumerate(({}, {"images": root / "spdocvqa_images"})):
        assert answers(import_docvqa(tmp_path / str(n), workers=1, file=train, split="all", **more)) == [["Al"]]
    with pytest.raises(ValueError, match="test_v1.0.json has no 'data' of question, image, answers"):
        list(read_documents(root / qas / "test_v1.0.json"))


def test_docvqa_as_it_was_given_out_before(tmp_path):
    files = {"val/val_v1.0.json": docvqa("ab_1"), "val/documents/ab_1.png": image()}
    root = write(tmp_path, files | {"train/train_v1.0.json": docvqa("aa_2"), "train/documents/aa_2.png": image()})
    for path in (root, root / "val", root / "val/val_v1.0.json"):
        assert [asked.key for asked in read_documents(path)] == ["ab_1"]


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017"])
def test_coco_with_annotations_beside_the_folders_of_pictures(tmp_path, pictures):
    captions = {
        "images": [{"id": 7, "file_name": "000000000007.jpg"}],
        "annotations": [{"image_id": 7, "caption": "A red field."}],
    }
    files = {
        "annotations/captions_train2017.json": captions,
        "annotations/captions_val2017.json": captions,
        "train2017/000000000007.jpg": image("green", "JPEG"),
        f"{pictures}/000000000007.jpg": image("blue", "JPEG"),
    }
    root = write(tmp_path / "coco", files)
    file = root / "annotations/captions_val2017.json"
    for path in (root, root / "annotations", file):
        [example] = TASKS["captions"].load(path, "all")
        assert example.reference == "A red field."
        assert example.messages[0]["content"][0]["image"] == str(root / pictures / "000000000007.jpg")
    shards = import_coco(tmp_path / "out", workers=1, file=file)
    assert answers(shards) == [["A red field."]]
    assert [sample.members for sample in read_shard(shards[0])] == [{"0.jpg": image("blue", "JPEG")}]


def test_sroie_with_entities_as_txt(tmp_path):
    fields = {"company": "Tea Ltd", "date": "1/2/2018", "address": "2, High Street", "total": "9.00"}
    lines = "\ufeff1,2,30,2,30,9,1,9,TEA LTD, SHOP\r\n1,10,30,10,30,19,1,19,TOTAL 9.00\r\n"
    files = {}
    for part, name in (("train", "X1"), ("test", "X2")):
        files[f"{part}/img/{name}.jpg"] = image(form="JPEG")
        files[f"{part}/box/{name}.txt"] = lines
        files[f"{part}/entities/{name}.txt"] = json.dumps(fields, indent=4)
    root = write(tmp_path / "SROIE2019", files)
    [receipt] = read_receipts(root / "train")
    assert (receipt.key, receipt.fields) == ("X1", fields)
    assert receipt.lines == [((1, 2, 30, 9), "TEA LTD, SHOP"), ((1, 10, 30, 19), "TOTAL 9.00")]
    assert {e.reference for e in TASKS["receipts"].load(root / "test", "all")} == set(fields.values())
    assert [e.reference for e in TASKS["receipt-lines"].load(root / "test", "all")] == ["TEA LTD, SHOP", "TOTAL 9.00"]
    [said] = answers(import_sroie(tmp_path / "out", workers=1, files=root / "train", split="all"))
    assert sorted(said[:4]) == sorted(fields.values()) and said[4:] == ["TEA LTD, SHOP\nTOTAL 9.00"]
    # What is trained on and what is tested on are never taken together.
    with pytest.raises(ValueError, match="name one: test, train"):
        import_sroie(tmp_path / "both", workers=1, files=root)
    with pytest.raises(FileNotFoundError, match="has no img/.*name one of: .*test, .*train"):
        list(read_receipts(root))
    (root / "train/entities/X1.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has neither key/X1.json nor entities/X1.txt"):
        list(read_receipts(root / "train"))


QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "Where is he looking?", "question_id": 42000},
        {"image_id": 42, "question": "How many?", "question_id": 42001},
    ],
}


def said_by_ten(question_id: int, kind: str, *most: str) -> dict:
    given = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate((*most, *["?"] * 10)[:10])]
    return {"question_id": question_id, "image_id": 42, "answer_type": kind, "multiple_choice_answer": most[0],
            "answers": given}  # fmt: skip


ANSWERS = {"annotations": [said_by_ten(42000, "other", *["down"] * 9), said_by_ten(42001, "number", "1", "1", "1")]}


@pytest.mark.parametrize(
    ("questions", "annotations", "pictures"),
    [("", "", "val2014/"), ("Questions/", "Annotations/", "Images/mscoco/val2014/"), ("vqa/", "vqa/", "val2014/")],
)
def test_vqa_v2(tmp_path, questions, annotations, pictures):
    files = {
        f"{questions}v2_OpenEnded_mscoco_val2014_questions.json": QUESTIONS,
        f"{annotations}v2_mscoco_val2014_annotations.json": ANSWERS,
        f"{pictures}COCO_val2014_000000000042.jpg": image(form="JPEG"),
    }
    root = write(tmp_path / "set", files)
    file = root / questions / "v2_OpenEnded_mscoco_val2014_questions.json"
    task = TASKS["vqa-v2"]
    for path in (root, file):
        examples = task.load(path, "all")
        scores = {s.metric: s.interval.value for s in task.score(examples, ["Down.", "one"])}
        assert scores == pytest.approx({"VQA accuracy": 0.95, "VQA accuracy, number": 0.9, "VQA accuracy, other": 1.0})
        assert task.always(examples) == examples[0].reference  # by the references: so without the set at hand too
    shards = import_vqa(tmp_path / "out", workers=1, file=file)
    [sample] = read_shard(shards[0])
    assert sorted(answers(shards)[0]) == ["1", "down"] and sample.json["kind"] == "conversation"
    assert sorted(map(len, sample.json["meta"]["answers"])) == [10, 10]


def test_vqa_v2_without_answers_or_of_another_form_is_one_clear_line(tmp_path):
    file = write(tmp_path, {"v2_OpenEnded_mscoco_val2014_questions.json": QUESTIONS}) / next(tmp_path.iterdir()).name
    with pytest.raises(FileNotFoundError, match="has no answers: there is neither .*v2_mscoco_val2014_annotations"):
        read_vqa(file)
    for other in ({"annotations": ANSWERS["annotations"][:1]}, {}, []):
        write(tmp_path, {"v2_mscoco_val2014_annotations.json": other})
        with pytest.raises(ValueError, match="are not VQA v2's questions and answers"):
            read_vqa(file)


def test_errors_say_in_one_line_where_was_looked(tmp_path):
    root = write(tmp_path / "docvqa", {"qas/val_v1.0.json": docvqa("ab_1"), "spdocvqa_images/other.png": image()})
    problems = []
    with pytest.raises(ValueError, match="not one of 1 items"):
        import_docvqa(tmp_path / "out", workers=1, file=root / "qas/val_v1.0.json", split="all", problems=problems)
    with pytest.raises(FileNotFoundError) as error:
        list(read_documents(root))
    for line in (*problems, str(error.value)):
        assert "\n" not in line and "'documents/ab_1.png', which is in none of" in line
        assert all(str(place) in line for place in (root, root / "qas", root / "spdocvqa_images"))
    charts = write(tmp_path / "chartqa", {"val_human.json": [{"imgname": "7.png", "query": "?", "label": 1}]})
    with pytest.raises(FileNotFoundError, match="names the picture '7.png', which is in none of"):
        list(read_charts(charts))
    for name in ("/etc/hostname", "../secret.png"):
        with pytest.raises(ValueError, match="names a picture outside its folder"):
            Pictures(root / "qas/val_v1.0.json").find(name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Pictures(root / "gone.json")


def test_of_several_annotation_files_the_one_for_validation_is_read(tmp_path):
    root = write(tmp_path, {"captions_train2017.json": {}, "b/captions_val2017.json": {}})
    assert annotation_file(root, "captions_*.json") == root / "b/captions_val2017.json"
    assert annotation_file(root / "captions_train2017.json", "captions_*.json").name == "captions_train2017.json"
    write(root, {"captions_val2014.json": {}})
    with pytest.raises(ValueError, match="several captions_.*captions_val2017.json, .*captions_val2014.json"):
        annotation_file(root, "captions_*.json")
    with pytest.raises(FileNotFoundError, match="has no \\*questions.json"):
        annotation_file(root, "*questions.json")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        annotation_file(root / "gone", "*.json")
