"""Importers of public formats, on small files in the layouts that these are published in."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from PIL import Image

from mmvl.data.import_captions import import_coco, import_folder
from mmvl.data.import_conversations import import_jsonl, import_llava, import_text_files
from mmvl.data.import_documents import import_chartqa, import_docvqa, import_sroie
from mmvl.data.import_tables import import_wikitablequestions
from mmvl.data.public_formats import read_charts, read_receipts, read_tables
from mmvl.data.shards import ShardError, read_shard


def image(size=(40, 30), format="PNG", colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def samples(paths) -> list:
    return [sample for path in paths for sample in read_shard(path)]


def said(sample, role="assistant") -> list[str]:
    parts = [part for m in sample.json["messages"] if m["role"] == role for part in m["content"]]
    return [part["text"] for part in parts if part["type"] == "text"]


def write(folder, files: dict[str, bytes | str]):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def tar_of(path, files: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


LLAVA = [
    {"id": "1", "image": "a/x.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Red."}]},
    {"id": "2", "image": ["a/x.png", "y.jpg"], "conversations": [
        {"from": "human", "value": "Compare <image> with\n<image>\nplease."}, {"from": "gpt", "value": "Alike."}]},
    {"id": "3", "conversations": [{"from": "system", "value": "Be short."}, {"from": "human", "value": "Hi"},
                                  {"from": "gpt", "value": "Hello."}]},
    {"id": "4", "image": "y.jpg", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "It."}]},
]  # fmt: skip


def test_llava(tmp_path):
    files = {"a/x.png": image(), "y.jpg": image(format="JPEG"), "llava.json": json.dumps(LLAVA)}
    root = write(tmp_path / "in", files)
    made = samples(import_llava(tmp_path / "out", workers=1, file=root / "llava.json", images=root))
    assert [s.json["kind"] for s in made] == ["conversation", "vqa", "conversation", "vqa"]
    first, second, third, fourth = made
    assert first.json["messages"][0]["content"] == [
        {"type": "image", "file": "0.png"}, {"type": "text", "text": "What is it?"}]  # fmt: skip
    assert said(first) == ["A square.", "Red."] and first.members == {"0.png": files["a/x.png"]}
    kinds = [part.get("text", part.get("file")) for part in second.json["messages"][0]["content"]]
    assert kinds == ["Compare ", "0.png", " with", "1.jpg", "please."]
    assert third.json["messages"][0]["role"] == "system" and not third.members
    assert fourth.json["messages"][0]["content"][0] == {"type": "image", "file": "0.jpg"}


def test_what_cannot_be_used_is_named_and_the_rest_comes_in(tmp_path):
    odd = [
        {"image": "gone.png", "conversations": LLAVA[0]["conversations"]},
        {"image": "bad.png", "conversations": LLAVA[0]["conversations"]},
        {"image": "x.png", "conversations": [{"from": "cat", "value": "Meow <image>"}]},
        {"conversations": [{"from": "human", "value": "Nobody answers"}]},
        "no object",
        {"image": "x.png", "conversations": [*LLAVA[0]["conversations"], {"from": "human", "value": "and <image>?"}]},
    ]
    root = write(tmp_path / "in", {"x.png": image(), "bad.png": image()[:60], "l.json": json.dumps([*odd, LLAVA[2]])})
    problems = []
    settings = {"file": root / "l.json", "images": root}
    [only] = samples(import_llava(tmp_path / "out", workers=1, problems=problems, **settings))
    assert said(only) == ["Hello."] and len(problems) == len(odd)
    for problem, says in zip(problems, ["no file 'gone.png'", "damaged", "from 'cat'", "nothing to learn",
                                        "no list of conv", "more <image> than"], strict=True):  # fmt: skip
        assert says in problem
    with pytest.raises(ValueError, match="gone.png"):
        import_llava(tmp_path / "strict", workers=1, **settings)
    assert not list((tmp_path / "strict").glob("*"))


def test_too_many_in_a_row_stop_the_import(tmp_path):
    write(tmp_path, {"l.json": json.dumps([{"conversations": None}] * 150)})
    with pytest.raises(ShardError, match="over 100 unusable samples in a row"):
        import_llava(tmp_path / "out", workers=1, problems=[], file=tmp_path / "l.json")


def test_jsonl_of_every_kind(tmp_path):
    lines = [
        {"text": "A document."},
        {"content": "Before <image> after", "images": ["x.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "?"}]},
                      {"role": "assistant", "content": "!"}]},
        {"prompt": "Say <image>", "image": "x.png", "chosen": "good", "rejected": "bad"},
        {"messages": [{"role": "user", "content": "Hi"}], "chosen": "Hello", "rejected": "Go"},
        {"prompt": "same", "chosen": "a", "rejected": "a"},
        {"text": ""},
    ]  # fmt: skip
    root = write(tmp_path / "in", {"x.png": image()})
    text = "\n".join(map(json.dumps, lines)) + "\n\nnot json\n"
    (root / "mixed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    problems = []
    settings = {"file": root / "mixed.jsonl.gz", "images": root}
    made = samples(import_jsonl(tmp_path / "out", workers=1, problems=problems, **settings))
    assert [s.json["kind"] for s in made] == ["text", "interleaved", "vqa", "preference", "preference"]
    assert {s.json["source"] for s in made} == {"mixed"}
    assert [p.get("text", "0.png") for p in made[1].json["content"]] == ["Before ", "0.png", " after"]
    assert made[3].json["chosen"] == [{"type": "text", "text": "good"}] and made[3].members == {"0.png": image()}
    assert [p.split(":")[0] for p in problems] == ["mixed/line 6", "mixed/line 7", "mixed/line 9"]
    (root / "bad.jsonl").write_text(json.dumps(lines[2] | {"images": ["x.png", "y.png"]}))
    with pytest.raises(ValueError, match="bad/x.png: line 1: 2 pictures without an <image>"):
        import_jsonl(tmp_path / "bad", workers=1, file=root / "bad.jsonl", images=root)
    assert "the same" in problems[0] and "without text" in problems[1] and "not a JSON object" in problems[2]


def test_jsonl_splits_by_the_picture(tmp_path):
    """Several lines about one picture, named in a line's "images" or in a part, are trained on or measured on."""
    root, lines = write(tmp_path / "in", {f"{n}.png": image((9 + n, 9)) for n in range(24)}), []
    for n in range(24):
        parts = [{"type": "image", "image": f"{n}.png"}, {"type": "text", "text": "What?"}]
        answer = {"role": "assistant", "content": "!"}
        lines += [{"image": f"{n}.png", "messages": [{"role": "user", "content": "<image>?"}, answer]}]
        lines += [{"messages": [{"role": "user", "content": parts}, answer]}] * 2
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = {}
    for split in ("train", "development"):
        made = samples(import_jsonl(tmp_path / split, workers=1, file=root / "a.jsonl", images=root, split=split))
        found[split] = [data for s in made for data in s.members.values()]
    assert all(found.values()) and not set(found["train"]) & set(found["development"])
    assert len(found["train"]) + len(found["development"]) == len(lines)


def test_coco(tmp_path):
    annotations = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(4)],
        "annotations": [{"image_id": n, "caption": f"picture {n}, caption {c}. "} for n in range(4) for c in range(3)],
    }
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as archive:
        for n in range(3):  # the fourth is missing
            archive.writestr(f"train2017/{n:012d}.jpg", image((600, 200), "JPEG"))
    write(tmp_path, {"captions.json": json.dumps(annotations)})
    settings = {"file": tmp_path / "captions.json", "images": tmp_path / "train2017.zip", "longest": 300}
    problems = []
    made = samples(import_coco(tmp_path / "out", workers=1, problems=problems, **settings))
    assert [s.json["kind"] for s in made] == ["caption"] * 3 and "000000000003.jpg" in problems[0]
    assert [said(s)[0][:9] for s in made] == ["picture 0", "picture 1", "picture 2"]
    assert Image.open(io.BytesIO(made[0].members["0.webp"])).size == (300, 100)
    every = samples(import_coco(tmp_path / "all", workers=1, captions=0, problems=[], **settings))
    assert len({said(s)[0] for s in every}) == len(every) == 9


def test_folder_of_pictures_with_texts(tmp_path):
    files = {"a.png": image(), "a.txt": "A red  thing.\n", "b/c.jpg": image(format="JPEG"), "b/c.txt": "Another."}
    root = write(tmp_path / "in", files | {"d.png": image(), "e.png": image(), "e.txt": " "})
    problems = []
    made = samples(import_folder(tmp_path / "out", workers=1, images=root, problems=problems))
    assert [said(s) for s in made] == [["A red thing."], ["Another."]]
    assert "no file 'd.txt'" in problems[0] and "caption is empty" in problems[1]


RECEIPT = {"company": "Tea Ltd", "date": "1/2/2018", "address": "2, High Street", "total": "9.00"}


def test_sroie_in_both_layouts(tmp_path):
    lines = [{"box": [1, 2, 30, 9], "text": "TEA LTD, SHOP"}, {"box": [1, 10, 30, 19], "text": "TOTAL 9.00"}]
    described = json.dumps({"fields": RECEIPT, "lines": lines, "size": [40, 30]}).encode()
    tar = tar_of(tmp_path / "r.tar", {"s-1.webp": image(format="WEBP"), "s-1.json": described})
    box = "".join(f"1,2,30,2,30,9,1,9,{line['text']}\n" for line in lines)
    files = {"img/s-1.jpg": image(format="JPEG"), "box/s-1.csv": box, "key/s-1.json": json.dumps(RECEIPT)}
    folder = write(tmp_path / "release", files)
    for source in (tar, folder):
        [sample] = samples(import_sroie(tmp_path / source.stem, workers=1, files=source, split="all"))
        *fields, transcript = said(sample)
        assert sorted(fields) == sorted(RECEIPT.values())
        assert transcript == "TEA LTD, SHOP\nTOTAL 9.00"
        assert sample.json["kind"] == "conversation" and len(sample.members) == 1
        assert [sample.json["meta"]["id"]] == [receipt.key for receipt in read_receipts(source)]


def test_chartqa_in_both_layouts(tmp_path):
    rows = [{"imgname": "7.png", "query": q, "label": a} for q, a in (("How many?", 5), ("Who?", "Al"))]
    folder = write(tmp_path / "release", {"png/7.png": image(), "train_human.json": json.dumps(rows)})
    qa = {"qa": [{"question": r["query"], "answer": str(r["label"])} for r in rows]}
    tar = tar_of(tmp_path / "c.tar", {"7.webp": image(format="WEBP"), "7.json": json.dumps(qa).encode()})
    for place, more in ((folder / "png", {"file": folder / "train_human.json"}), (tar, {})):
        [sample] = samples(import_chartqa(tmp_path / place.stem, workers=1, images=place, split="all", **more))
        assert dict(zip(said(sample, "user"), said(sample), strict=True)) == {"How many?": "5", "Who?": "Al"}
        assert [sample.json["meta"]["id"]] == [chart.key for chart in read_charts(folder if more else tar)]


def test_docvqa(tmp_path):
    data = [
        {"questionId": 1, "question": "Name?", "image": "documents/p_1.png", "answers": ["Al", "AL"]},
        {"questionId": 2, "question": "Date?", "image": "documents/p_1.png", "answers": ["May"]},
        {"questionId": 3, "question": "Sum?", "image": "documents/p_2.png", "answers": []},
    ]
    files = {"train_v1.0.json": json.dumps({"data": data}), "documents/p_1.png": image(), "documents/p_2.png": image()}
    root = write(tmp_path / "in", files)
    settings = {"file": root / "train_v1.0.json", "images": root / "documents", "split": "all"}
    problems = []
    [sample] = samples(import_docvqa(tmp_path / "out", workers=1, problems=problems, **settings))
    assert dict(zip(said(sample, "user"), said(sample), strict=True)) == {"Name?": "Al", "Date?": "May"}
    assert ["Al", "AL"] in sample.json["meta"]["answers"]
    assert "no question with an answer" in problems[0]


def test_wikitablequestions_in_both_layouts(tmp_path):
    tsv = "id\tutterance\tcontext\ttargetValue\nnt-0\twho won?\tcsv/1-csv/2.csv\tAnn|Bob\\pRob\n"
    table = '"Name","Points"\n"Ann","3 \\"x\\""\n"Bob","4"\n'
    folder = write(tmp_path / "release", {"csv/1-csv/2.csv": table, "data/training.tsv": tsv})
    line = {"id": "csv/1-csv/2.csv", "header": ["Name", "Points"], "rows": [["Ann", '3 "x"'], ["Bob", "4"]],
            "qa": [{"question": "who won?", "answers": ["Ann", "Bob|Rob"]}]}  # fmt: skip
    write(tmp_path, {"t.jsonl": json.dumps(line)})
    settings = {"workers": 1, "split": "all"}
    release = {"tables": folder, "file": folder / "data" / "training.tsv"}
    for name, places in (("a", {"tables": tmp_path / "t.jsonl"}), ("b", release)):
        [sample] = samples(import_wikitablequestions(tmp_path / name, **settings, **places))
        assert (said(sample, "user"), said(sample)) == (["who won?"], ["Ann, Bob|Rob"])
        assert [sample.json["meta"]["table"]] == [t.key for t in read_tables(places["tables"])]
        [picture] = sample.members.values()
        assert Image.open(io.BytesIO(picture)).width > 60
    problems = []
    with pytest.raises(ValueError, match="not one of 1 items can be used.*max_rows"):
        import_wikitablequestions(tmp_path / "c", max_rows=1, problems=problems, **settings, **release)


def test_splits_share_the_items_out(tmp_path):
    files = {f"{n}.png": image(colour=(n, 0, 0)) for n in range(40)} | {f"{n}.txt": f"number {n}" for n in range(40)}
    root = write(tmp_path / "in", files)
    parts = {}
    for split in ("train", "development"):
        made = samples(import_folder(tmp_path / split, workers=1, images=root, split=split))
        parts[split] = {said(s)[0] for s in made}
    assert parts["train"].isdisjoint(parts["development"]) and parts["development"]
    assert len(parts["train"] | parts["development"]) == 40
    with pytest.raises(ValueError, match="no split 'test'"):
        import_folder(tmp_path / "x", workers=1, images=root, split="test")


def test_text_files(tmp_path):
    long = "\n\n".join(f"Paragraph {n}. " + "word " * 40 for n in range(10))
    root = write(tmp_path / "in", {"a.txt": "One.\n", "b/c.md": long, "d.png": b"", "e.txt": "", "f.txt": b"\xff\xfe1"})
    problems = []
    made = samples(import_text_files(tmp_path / "out", workers=1, files=root, longest=700, problems=problems))
    by_file = sorted((s.json["meta"]["from"], s.json["text"]) for s in made)
    assert by_file[0] == ("a.txt/0", "One.") and all(len(text) <= 700 for _, text in by_file)
    assert " ".join(" ".join(text for _, text in by_file[1:]).split()) == " ".join(long.split())
    assert len(problems) == 1 and "f.txt: not UTF-8" in problems[0]


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]"])
def test_files_of_another_form_are_one_clear_line(tmp_path, content):
    write(tmp_path, {"f.json": content, "x.png": image()})
    for run in (
        lambda: import_coco(tmp_path / "o", file=tmp_path / "f.json", images=tmp_path),
        lambda: import_docvqa(tmp_path / "o", file=tmp_path / "f.json", images=tmp_path),
        lambda: import_chartqa(tmp_path / "o", file=tmp_path / "f.json", images=tmp_path),
    ):
        with pytest.raises(ValueError, match="f.json: ") as error:
            run()
        assert "\n" not in str(error.value)
