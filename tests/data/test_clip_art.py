"""The Open Clip Art Library: every drawing has a name, splits keep series together, copies are small."""

import io
import re

import pytest
from PIL import Image, ImageDraw

from mmvl.data.clip_art import (
    TITLES,
    compact_clip_art,
    find_clip_art,
    import_clip_art,
    load_clip_art,
    read_titles,
    thing,
)
from mmvl.data.debian import CLIP_ART_PACKAGES
from mmvl.data.import_captions import QUESTIONS
from mmvl.data.registry import IMPORTERS
from mmvl.data.shards import read_shard
from mmvl.data.splits import split_of
from mmvl.datasets import MATERIAL


def samples(shards):
    return [sample for path in shards for sample in read_shard(path)]


def said(sample):
    return [part["text"] for m in sample.json["messages"] for part in m["content"] if part["type"] == "text"]


def look(sample):
    return Image.open(io.BytesIO(sample.members["0.webp"])).convert("RGB")


@pytest.fixture
def package(tmp_path):
    """40 drawings by two artists each, of 300 x 200 pixels with empty margins, and their titles."""
    base = tmp_path / CLIP_ART_PACKAGES[0] / "usr/share/openclipart/png/food"
    base.mkdir(parents=True)
    lines = ["# the titles"]
    for i in range(40):
        fruit = f"fruit{chr(97 + i % 26)}{chr(97 + i // 26)}"
        for name in (f"{fruit}_ganson", f"{fruit}_bw_ganson"):
            drawn = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
            ImageDraw.Draw(drawn).ellipse((50, 50, 349, 249), fill=(200, 6 * i, 0, 255), outline="black", width=5)
            drawn.save(base / f"{name}.png")
            lines.append(f"food/{name}.png\tfruit of kind {i}")
    (tmp_path / "titles.tsv").write_text("\n".join(lines) + "\n")
    return {"packages": tmp_path, "titles": tmp_path / "titles.tsv", "workers": 1}


def test_every_drawing_that_is_used_has_a_short_name():
    titles = read_titles()
    assert len(titles) > 1900 and len(set(titles.values())) > 1000
    for name, title in titles.items():
        assert re.fullmatch(r"[a-z_]+(/[\w.-]+)*/[\w.,-]+\.png", name), name
        assert re.fullmatch(r"[A-Za-z][A-Za-z', -]*", title) and len(title.split()) <= 7, name
        assert not re.search(r"\b(clip ?art|icon|ganson|architetto|flag of)\b", title), name
    assert titles["food/desserts/cone1_bw_ganson.png"] == "ice cream cone"
    assert list(titles) == sorted(titles), "sorted, so that a change can be read"


def test_samples_are_a_question_the_drawing_and_its_name(package, tmp_path):
    got = samples(import_clip_art(tmp_path / "out", **package))
    assert [said(sample)[1] for sample in got] == list(read_titles(package["titles"]).values())
    assert {said(sample)[0] for sample in got} == set(QUESTIONS)
    assert all(sample.json["kind"] == "caption" and sample.json["source"] == "openclipart" for sample in got)
    first = look(got[0])
    assert 224 < first.width <= 224 * 3 and min(first.getpixel((0, 0))) >= 115  # margins of a light ground
    small = samples(import_clip_art(tmp_path / "small", 3, longest=40, **package))
    assert max(look(small[0]).size) < 140


def test_training_sees_other_drawings_than_development_and_views_of_them(package, tmp_path):
    train = samples(import_clip_art(tmp_path / "train", 160, split="train", views=1.0, **package))
    held = samples(import_clip_art(tmp_path / "held", split="development", **package))
    train_files, held_files = ({sample.json["meta"]["file"] for sample in part} for part in (train, held))
    assert held_files and not train_files & held_files and len(train_files | held_files) == 80
    assert {split_of(thing(name)) for name in held_files} == {"development"}
    assert {name.replace("_bw", "") for name in held_files} <= held_files, "both drawings of a thing on one side"
    views = {sample.members["0.webp"] for sample in train if sample.json["meta"]["file"] == min(train_files)}
    assert len(views) >= 2, "the same drawing again is drawn otherwise"
    again = samples(import_clip_art(tmp_path / "again", 160, split="train", views=1.0, **package))
    assert [sample.members for sample in again] == [sample.members for sample in train]


def test_one_thing_is_what_two_words_call_it():
    assert thing("people/home0.png") == thing("buildings/homes/home15.png") == "clip-art/home"
    assert thing("food/glace_01_bw_jean-victor__01.png") == thing("food/glace_2_jean-victor_bali_01.png")
    assert thing("animals/crow_01.png") != thing("animals/eagle_01.png")
    assert thing("a/8_01.png") == "clip-art/a/8_01.png"


def test_a_compact_copy_gives_the_same_samples_but_for_their_colours(package, tmp_path):
    seen = []
    settings = {"packages": package["packages"], "titles": package["titles"]}
    copied = compact_clip_art(tmp_path / "copy", longest=100, progress=lambda *of: seen.append(of), **settings)
    assert len(copied) == 80 and seen[-1] == (80, 80) and all(path.stat().st_size < 3000 for path in copied)
    picture = load_clip_art(copied[5])
    assert picture.size == (100, 67) and picture.getpixel((0, 0))[3] == 0 and picture.getpixel((50, 33))[0] > 150
    of_copy = samples(import_clip_art(tmp_path / "a", **package | {"packages": tmp_path / "copy"}))
    of_package = samples(import_clip_art(tmp_path / "b", **package, longest=100))
    assert [s.json for s in of_copy] == [s.json for s in of_package]
    assert len(compact_clip_art(tmp_path / "few", count=3, **settings)) == 3


def test_what_is_missing_or_wrong_is_named(package, tmp_path):
    base = find_clip_art(tmp_path, read_titles(package["titles"]))
    (base / "food/fruitaa_ganson.png").unlink()
    (base / "food/fruitba_ganson.png").write_bytes(b"no picture")
    Image.new("RGBA", (9, 9)).save(base / "food/fruitca_ganson.png")
    problems = []
    assert len(samples(import_clip_art(tmp_path / "out", problems=problems, **package))) == 77
    reasons = ("fruitaa_ganson.png.*No such file", "fruitba_ganson.png.*cannot identify", "fruitca.*nothing is drawn")
    for line, reason in zip(problems, reasons, strict=True):
        assert re.search(reason, line)
    with pytest.raises(ValueError, match="fruitaa_ganson"):
        compact_clip_art(tmp_path / "copy", packages=tmp_path, titles=package["titles"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="no clip art .*openclipart-png"):
        import_clip_art(tmp_path / "x", packages=tmp_path / "nothing")
    with pytest.raises(ValueError, match="views is 3"):
        import_clip_art(tmp_path / "x", views=3, **package)
    for text, line in (("a.png\tpear\nb.png pear\n", 2), ("# x\na.png\tpear\na.png\tplum\n", 3), ("a.png\t \n", 1)):
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(ValueError, match=f"bad.tsv: line {line} is not"):
            read_titles(tmp_path / "bad.tsv")
    (tmp_path / "bad.tsv").write_text("# only this\n")
    with pytest.raises(ValueError, match="no titles"):
        read_titles(tmp_path / "bad.tsv")


def test_it_is_found_by_name_and_its_table_is_beside_it():
    assert IMPORTERS["clip-art"].run is import_clip_art and MATERIAL["clip-art-pictures"].run is compact_clip_art
    assert TITLES.is_file()
