"""docs/training.md, "Your own pictures", as a reader does it: their pictures, a few steps, a question at the end."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mmvl.data.shards import read_shard

REPOSITORY = Path(__file__).parents[2]
[SECTION] = re.findall(r"## Your own pictures\n(.*?)\n## ", (REPOSITORY / "docs/training.md").read_text(), re.DOTALL)
[LINE] = re.findall(r"```json\n(.*?)\n```", SECTION, re.DOTALL)
[COMMANDS] = re.findall(r"(?<=\n\n)```\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def own(tmp_path, monkeypatch, tiny_model_dir):
    """Forty pictures in the reader's folder, two lines about each, written as the documentation writes one."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "mmvl").symlink_to(REPOSITORY / "mmvl")
    lines = []
    for n in range(1, 41):
        picture = Image.new("RGB", (120, 40), "white")
        ImageDraw.Draw(picture).text((8, 8), f"Bay C{n}", fill="black")
        picture.save(tmp_path / "pictures" / f"shelf{n}.png")
        lines += [LINE.replace("shelf1", f"shelf{n}").replace("C14", f"C{n}")] * 2
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_pictures_from_jsonl_to_an_answer(run_cli, own, tiny_model_dir):
    assert json.loads(LINE)["messages"][1]["role"] == "assistant"
    small = [f"init_from={tiny_model_dir}", "budget.tokens=1200", "data.batch_tokens=400", "data.max_sample_tokens=256",
             "data.workers=0"]  # fmt: skip
    for line in COMMANDS.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if arguments[0] == "train":
            arguments += [word for setting in small for word in ("--set", setting)]
        result = run_cli(*arguments)
        assert program == "mmvl" and result.code == 0, f"{line}: {result.err}"
    pictures = {
        name: {data for shard in Path("runs/own", name).glob("*.tar") for s in read_shard(shard) for data in
               s.members.values()} for name in ("train", "development")
    }  # fmt: skip
    assert pictures["train"] and pictures["development"] and not pictures["train"] & pictures["development"]
    assert sum(map(len, pictures.values())) == 40
