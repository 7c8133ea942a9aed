"""`mmvl caption` and `mmvl vqa` as commands: real models, exit codes, and what is told before the model is opened."""

import gc
import json
import weakref
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmvl.app.batch.answers import Answering, ModelAnswerer
from mmvl.app.batch.items import FilePicture
from mmvl.engine import Engine
from mmvl.vlm import Answer

DESTINATIONS = ("rows.jsonl", "rows.parquet", "shards")


class CountingVLM:
    """Answers in batches of two, with the size of the picture; keeps count of what it was asked and what is alive."""

    engine = SimpleNamespace(max_sequences=1)

    def __init__(self, fail_at: int | None = None):
        self.fail_at, self.asked, self.most_alive = fail_at, 0, 0

    def batch(self, conversations, **sampling):
        pictures = []
        waiting = []
        for index, messages in enumerate(conversations):
            image = messages[-1]["content"][0]["image"]
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


def over(vlm) -> ModelAnswerer:
    return ModelAnswerer(vlm, Answering(None, None, "m", "", {}))


@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_folder_on_a_real_model(run_cli, batch, picture_folder, tiny_model_dir, tmp_path, name):
    dest = tmp_path / name
    result = run_cli("caption", picture_folder, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "4")
    assert (result.code, result.out) == (3, ""), result.err
    assert f"5 rows written to {dest}, 1 failed, 0 skipped; " in result.err and "tokens/s" in result.err
    rows = batch.rows(dest)
    good = {"red.png", "inside/blue.jpg", "two.pdf#page=1", "two.pdf#page=2"}
    assert set(rows) == good | {"damaged.png"}
    assert "damaged" in rows.pop("damaged.png")["error"]
    assert rows["two.pdf#page=2"]["file"] == "two.pdf" and rows["two.pdf#page=2"]["page"] == 2
    for row in rows.values():
        assert row["completion_tokens"] == 4 and row["finish_reason"] == "length" and "error" not in row
        assert row["prompt_tokens"] > row["image_tokens"] > 0
    again = run_cli("caption", picture_folder, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "4")
    assert again.code == 3 and "5 items had a row" in again.err and "0 rows written" in again.err
    assert "1 row of earlier failures kept" in again.err and "0 failed, 5 skipped" in again.err
    other = run_cli("caption", picture_folder, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "5")
    assert other.code == 2 and "max_tokens was 4, now 5" in other.err


def test_texts_beside_the_pictures_on_a_real_model(run_cli, picture_folder, tiny_model_dir):
    arguments = ["caption", picture_folder, "-o", ".txt", "--model", tiny_model_dir, "--max-tokens", "3"]
    assert run_cli(*arguments).code == 3
    texts = {path.relative_to(picture_folder).as_posix() for path in picture_folder.rglob("*.txt")}
    assert texts == {"red.txt", "inside/blue.txt", "two.page-1.txt", "two.page-2.txt", "notes.txt"}
    assert (picture_folder / "notes.txt").read_text() == "not a picture"
    assert "5 items had a row" in run_cli(*arguments).err


def test_all_good_is_exit_code_0(run_cli, batch, picture_path, tiny_model_dir, tmp_path):
    dest = tmp_path / "rows.jsonl"
    result = run_cli("caption", picture_path, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "2")
    assert result.code == 0 and result.err.startswith(f"1 row written to {dest}, 0 failed, 0 skipped; ")
    assert set(batch.rows(dest)) == {str(picture_path)}


def test_questions_of_rows_on_a_real_model(run_cli, batch, picture_path, tiny_model_dir, tmp_path):
    rows = [{"id": i, "image": str(picture_path), "question": f"What is {i}?", "answer": i} for i in range(3)]
    rows.append({"id": "none", "image": str(picture_path)})
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dest = tmp_path / "answers.jsonl"
    options = ["--keep", "answer", "--system", "Be brief.", "--model", tiny_model_dir, "--max-tokens", "2"]
    assert run_cli("vqa", source, "-o", dest, *options).code == 3
    found = batch.rows(dest)
    assert found["1"]["question"] == "What is 1?" and found["1"]["answer"] == 1
    assert "needs a field that is not there ('question' is undefined)" in found["none"]["error"]


def test_an_interrupted_run_goes_on_where_it_stopped(batch, many_pictures, tmp_path):
    folder, dest = many_pictures(9), tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        batch.run(folder, dest, over(CountingVLM(fail_at=5)))
    assert len(batch.rows(dest)) == 4
    with dest.open("a") as file:
        file.write('{"id": "pic0007.png", "te')  # what kill -9 in the middle of a write leaves
    second = CountingVLM()
    tally = batch.run(folder, dest, over(second))
    assert (tally.done, tally.good, second.asked) == (4, 5, 5)
    assert {id: row["text"] for id, row in batch.rows(dest).items()} == {
        f"pic{i:04d}.png": f"{1 + i}x1 ü" for i in range(9)
    }


def test_only_pictures_in_flight_are_in_memory(batch, many_pictures, tmp_path):
    vlm = CountingVLM()
    assert batch.run(many_pictures(60), tmp_path / "rows.jsonl", over(vlm)).good == 60
    assert vlm.asked == 60
    assert vlm.most_alive <= 12, "eight that are opened ahead, and those that are answered"


def test_an_answer_that_failed_in_the_engine_is_a_row_with_the_reason(batch, tmp_path, picture_path):
    class Failing:
        engine = SimpleNamespace(max_sequences=1)

        def batch(self, conversations, **sampling):
            for index, _ in enumerate(conversations):
                yield index, RuntimeError("out of\nmemory")

    assert batch.run(picture_path, tmp_path / "rows.jsonl", over(Failing())).failed == 1
    (row,) = batch.rows(tmp_path / "rows.jsonl").values()
    assert row["error"] == "out of memory"


def test_a_picture_that_breaks_a_library_costs_one_row(batch, many_pictures, tmp_path, monkeypatch):
    def broken(self):
        if "0001" in self.path:
            raise MemoryError
        return opened(self)

    opened = FilePicture.open
    monkeypatch.setattr(FilePicture, "open", broken)
    assert batch.run(many_pictures(3), tmp_path / "rows.jsonl", over(CountingVLM())).good == 2
    assert batch.rows(tmp_path / "rows.jsonl")["pic0001.png"]["error"] == "MemoryError"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": ["notes.md"]}, "nothing to read pictures from"),
        ({"source": ["picture", "rows.jsonl"]}, "several kinds"),
        ({"-o": ".txt"}, "the pictures of one folder"),
        ({"source": ["rows"], "-o": ".txt"}, "beside pictures of a folder"),
        ({"source": ["rows.jsonl"], "-o": "rows.jsonl", "--on-existing": "overwrite"}, "lies in what is read"),
        ({"source": ["rows"], "-o": "rows/new.jsonl"}, "lies in what is read"),
        ({"source": ["rows/rows.jsonl"], "-o": "rows", "--on-existing": "overwrite"}, "lies in what is read"),
        ({"--engine": "ray", "--device": "cpu"}, "for --engine local"),
        ({"--workers": "2"}, "for --engine ray"),
        ({"-o": "x.csv"}, "none of x.jsonl, x.parquet"),
        ({"-o": "full"}, "holds other files"),
        ({"-o": "notes.md"}, "another file"),
        ({"--on-existing": "append"}, "skip, overwrite, retry-failed"),
        ({"--engine": "abacus"}, "local, ray"),
        ({"--prompt": " "}, "prompt is empty"),
        ({"--prompt": "{{ name"}, "no template"),
        ({"--prompt": "{{ colour }}"}, "'colour' is undefined"),
        ({"--device": "abacus"}, "unknown device 'abacus'"),
        ({"--device": "cpu,cuda"}, "one kind of device for a job"),
        ({"--device": "cpu,"}, "unknown device ''"),
        ({"--top-p": "0"}, "top_p"),
        ({"--quantize": "int3"}, "int8, int4, fp8, or none; not 'int3'"),
    ],
)
def test_a_wrong_command_is_told_before_the_model_is_opened(told, change, says):
    told(change, 2, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": ["missing"]}, "no such file or folder"),
        ({"source": ["empty"]}, "no picture and no PDF"),
        ({"-o": "empty"}, "no model directory"),
        ({"-o": "missing/rows.jsonl"}, "no folder missing to write rows.jsonl into"),
        ({"-o": "missing/shards"}, "no folder missing to make shards in"),
    ],
)
def test_what_is_not_there_is_told_before_the_model_is_opened(told, change, says):
    told(change, 1, says)


@pytest.fixture
def told(run_cli, tmp_path, picture_path, monkeypatch):
    """told(change, code, says): `mmvl caption` with these arguments over good ones ends so, and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "full", "rows"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "thesis.md").touch()
    (tmp_path / "notes.md").write_text("not a row")
    for name in ("rows.jsonl", "rows/rows.jsonl"):
        (tmp_path / name).write_text(json.dumps({"image": str(picture_path)}))

    def check(change: dict, code: int, says: str) -> None:
        settings = {"source": ["picture"], "-o": "new.jsonl"} | change
        sources = [picture_path if source == "picture" else source for source in settings.pop("source")]
        options = [word for option in settings.items() for word in option]
        before = sorted(tmp_path.rglob("*"))
        result = run_cli("caption", *sources, *options, "--model", "there is no model here")
        assert (result.code, result.out, result.err.count("\n")) == (code, "", 1), result
        assert result.err.startswith("mmvl: ") and says in result.err
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"

    return check


@pytest.mark.parametrize("wrong", [["--device", "abacus"], ["--device", "cuda:99"], ["--top-p", "0"]])
def test_what_cannot_be_opened_overwrites_nothing(run_cli, picture_path, tiny_model_dir, tmp_path, wrong):
    dest = tmp_path / "rows.jsonl"
    options = ["-o", dest, "--model", tiny_model_dir, "--max-tokens", "2"]
    assert run_cli("caption", picture_path, *options).code == 0
    before = dest.read_bytes()
    assert run_cli("caption", picture_path, *options, "--on-existing", "overwrite", *wrong).code in (1, 2)
    assert dest.read_bytes() == before


def test_two_folders_with_the_same_name_inside_are_refused(batch, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 5)).save(tmp_path / name / "same.png")
    with pytest.raises(ValueError, match=r"both hold same\.png"):
        batch.open_source([tmp_path / "a", tmp_path / "b"])


def test_a_broken_engine_ends_the_job_and_the_next_run_goes_on(run_cli, batch, tiny_model_dir, tmp_path, monkeypatch):
    pictures, dest = tmp_path / "pictures", tmp_path / "rows.jsonl"
    pictures.mkdir()
    for n in range(6):
        Image.new("RGB", (30 + n, 20), "red").save(pictures / f"{n}.png")
    command = ("caption", pictures, "-o", dest, "--model", tiny_model_dir, "--max-tokens", 1, "--max-sequences", 1)
    fault, step = torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Engine.step

    def breaks(engine):
        if engine.counters.finished_total.total() >= 2:
            raise fault
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", breaks)
        patch.setattr("mmvl.engine.engine.device_fault", lambda device: fault)
        result = run_cli(*command)
    told = [line for line in result.err.splitlines() if line.startswith("mmvl: ")]
    assert result.code == 1 and len(told) == 1 and "the engine is broken until the process is started anew" in told[0]
    answered = batch.rows(dest)
    assert 0 < len(answered) < 6 and not any("error" in row for row in answered.values())
    result = run_cli(*command)
    assert result.code == 0 and len(batch.rows(dest)) == 6, result.err
