"""`mmvl caption`: a row for every picture, failures included; it can be stopped, taken up again, and never hoards."""

import gc
import json
import weakref

import pytest
from PIL import Image

from mmvl.app.caption import caption, find_files
from mmvl.vlm import Answer


def rows_of(path) -> dict[tuple, dict]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_key = {(row["file"], row.get("page")): row for row in rows}
    assert len(by_key) == len(rows), "a picture has two rows"
    return by_key


class CountingVLM:
    """Answers in batches of two, with the size of the picture; keeps count of what it was asked and what is alive."""

    def __init__(self, fail_at: int | None = None):
        self.fail_at, self.asked, self.most_alive = fail_at, 0, 0

    def batch(self, conversations, **sampling):
        pictures = []
        waiting = []
        for index, messages in enumerate(conversations):
            image = messages[0]["content"][0]["image"]
            pictures.append(weakref.ref(image))
            waiting.append((index, f"{image.width}x{image.height} ü"))
            del image, messages
            gc.collect(0)
            self.most_alive = max(self.most_alive, sum(picture() is not None for picture in pictures))
            if len(waiting) == 2:
                yield from map(self._answer, waiting)
                waiting = []
        yield from map(self._answer, waiting)

    def _answer(self, item):
        self.asked += 1
        if self.asked == self.fail_at:
            raise KeyboardInterrupt
        return item[0], Answer(item[1], "stop", 10, 4, 3, 0.1, 0.1)


def run(vlm, sources, dest, on_existing="skip", prompt="Describe."):
    return caption(sources, dest, lambda: vlm, model_name="m", prompt=prompt, on_existing=on_existing)


def test_a_folder_on_a_real_model(run_cli, picture_folder, tiny_model_dir, tmp_path):
    dest = tmp_path / "rows.jsonl"
    result = run_cli("caption", picture_folder, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "4")
    assert (result.code, result.out) == (3, "")
    assert "4 rows written" in result.err and "1 failed" in result.err and "tokens/s" in result.err
    rows = rows_of(dest)
    good = {("red.png", None), ("inside/blue.jpg", None), ("two.pdf", 1), ("two.pdf", 2)}
    assert set(rows) == good | {("damaged.png", None)}
    assert "damaged" in rows.pop(("damaged.png", None))["error"]
    for row in rows.values():
        assert row["tokens"] == 4 and row["finish_reason"] == "length" and "error" not in row
        assert row["model"] == str(tiny_model_dir) and row["prompt"] == "Describe the image."


def test_all_good_is_exit_code_0(run_cli, picture_path, tiny_model_dir, tmp_path):
    arguments = ["-o", tmp_path / "rows.jsonl", "--model", tiny_model_dir, "--max-tokens", "2"]
    assert run_cli("caption", picture_path, *arguments).code == 0
    assert set(rows_of(tmp_path / "rows.jsonl")) == {(str(picture_path), None)}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    folder, dest = _many_pictures(tmp_path, 9), tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(CountingVLM(fail_at=5), [folder], dest)
    assert len(rows_of(dest)) == 4
    with dest.open("a") as file:
        file.write('{"file": "pic7.png", "te')  # what kill -9 in the middle of a write leaves
    second = CountingVLM()
    assert run(second, [folder], dest) == 0
    assert second.asked == 5
    assert {key: row["text"] for key, row in rows_of(dest).items()} == {
        (f"pic{i}.png", None): f"{10 + i}x8 ü" for i in range(9)
    }


def test_failed_rows_are_tried_again_and_good_ones_are_not(picture_folder, tmp_path):
    dest = tmp_path / "rows.jsonl"
    assert run(CountingVLM(), [picture_folder], dest) == 1
    Image.new("RGB", (9, 9)).save(picture_folder / "damaged.png")
    again = CountingVLM()
    assert run(again, [picture_folder], dest) == 0
    assert again.asked == 1
    assert rows_of(dest)[("damaged.png", None)]["text"] == "9x9 ü"


def test_overwrite_starts_afresh(picture_folder, tmp_path):
    dest = tmp_path / "rows.jsonl"
    run(CountingVLM(), [picture_folder], dest)
    vlm = CountingVLM()
    run(vlm, [picture_folder], dest, on_existing="overwrite", prompt="Other.")
    assert vlm.asked == 4
    assert {row["prompt"] for row in rows_of(dest).values()} == {"Other."}


def test_rows_of_another_prompt_are_never_mixed_in(picture_folder, tmp_path):
    dest = tmp_path / "rows.jsonl"
    run(CountingVLM(), [picture_folder], dest)
    before = dest.read_bytes()
    with pytest.raises(ValueError, match="made with prompt 'Describe.'"):
        run(CountingVLM(), [picture_folder], dest, prompt="Other.")
    assert dest.read_bytes() == before


@pytest.mark.parametrize("contents", ["no json\n", '{"other": 1}\n', "[1]\n", "no json\n{}"])
def test_a_file_of_something_else_is_left_alone(picture_folder, tmp_path, contents):
    dest = tmp_path / "rows.jsonl"
    dest.write_text(contents)
    with pytest.raises(ValueError, match="line 1 is no row of captions"):
        run(CountingVLM(), [picture_folder], dest)
    assert dest.read_text() == contents


def test_only_pictures_in_flight_are_in_memory(tmp_path):
    vlm = CountingVLM()
    assert run(vlm, [_many_pictures(tmp_path, 40)], tmp_path / "rows.jsonl") == 0
    assert vlm.asked == 40
    assert vlm.most_alive <= 4


def test_an_answer_that_failed_in_the_engine_is_a_row_with_the_reason(tmp_path, picture_path):
    class Failing:
        def batch(self, conversations, **sampling):
            for index, _ in enumerate(conversations):
                yield index, RuntimeError("out of\nmemory")

    assert run(Failing(), [picture_path], tmp_path / "rows.jsonl") == 1
    (row,) = rows_of(tmp_path / "rows.jsonl").values()
    assert row["error"] == "out of memory"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": ["missing"]}, "no such file or folder"),
        ({"source": ["."]}, "no picture and no PDF"),
        ({"dest": "."}, "is a folder"),
        ({"dest": "missing/rows.jsonl"}, "no folder missing to write rows.jsonl into"),
        ({"on_existing": "append"}, "skip or overwrite"),
        ({"prompt": " "}, "question is empty"),
    ],
)
def test_bad_arguments_are_told_before_the_model_is_opened(run_cli, tmp_path, picture_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    settings = {"source": [picture_path], "dest": "rows.jsonl", "on_existing": "skip", "prompt": "What?"} | change
    arguments = [*settings["source"], "-o", settings["dest"], "--on-existing", settings["on_existing"]]
    result = run_cli("caption", *arguments, "--prompt", settings["prompt"], "--model", "there is no model here")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert says in result.err


def test_two_folders_with_the_same_name_inside_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 5)).save(tmp_path / name / "same.png")
    with pytest.raises(ValueError, match=r"both hold same\.png"):
        find_files([tmp_path / "a", tmp_path / "b"])


def _many_pictures(tmp_path, count):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (10 + i, 8)).save(folder / f"pic{i}.png")
    return folder
