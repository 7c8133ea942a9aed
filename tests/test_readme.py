"""What the README claims: its commands exist, its Python runs, its numbers come from result files."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt
from PIL import Image

import mmvl.vlm
from mmvl.app import cli

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
TRAINING = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(text: str, language: str = "") -> list[str]:
    """The contents of the fenced blocks of that language."""
    return [t.content for t in MarkdownIt().parse(text) if t.type == "fence" and t.info.strip() == language]


PAGES = (README, CONTRIBUTING, TRAINING)
COMMANDS = [line for page in PAGES for block in blocks(page) for line in block.splitlines() if line.strip()]
STARTED_BY = r"^([A-Z_]+=\S+ )+|^torchrun --nproc-per-node \d+ --no-python "


@pytest.fixture(scope="module")
def make_tables():
    spec = importlib.util.spec_from_file_location("make_tables", REPOSITORY / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_begins_with_the_two_commands_and_the_picture():
    assert [shlex.split(line, comments=True) for line in COMMANDS[:2]] == [["make", "demo"], ["make", "test"]]
    assert README.index("make demo") < README.index("docs/chat-page.png") < README.index("## ")


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exists_with_its_options_and_files(line):
    program, *arguments = shlex.split(re.sub(STARTED_BY, "", line), comments=True)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "mmvl":
        command = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            name, *arguments = arguments
            assert name in command.commands, f"there is no command {name}"
            command = command.commands[name]
        command.make_context(name, list(arguments))  # raises on a wrong option or a missing argument
        for recipe in (argument for argument in arguments if argument.endswith(".yaml")):
            assert (REPOSITORY / recipe).is_file()
    else:
        assert program in ("bash", ".venv/bin/python"), f"nothing checks {line!r}"
        for path in (argument for argument in arguments if "/" in argument):
            assert (REPOSITORY / path).exists()


def test_its_names_of_data_and_tasks_exist():
    from mmvl.datasets import KINDS
    from mmvl.evaluation.run import list_tasks

    likewise = re.search(r"# likewise: (.*)", README)[1]
    for verb, names in re.findall(r"(render|import) ([\w, -]+)", likewise):
        assert set(re.split(r", ", names)) <= set(KINDS[verb])
    tasks = re.findall(r"^mmvl eval (\S+)", README, flags=re.MULTILINE)
    assert tasks and set(tasks) <= set(list_tasks())


def test_its_python_runs(monkeypatch, tmp_path, tiny_model_dir, capsys):
    monkeypatch.setattr(mmvl.vlm, "MMVL_TINY", tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "red").save("photo.png")
    (code,) = blocks(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("text", [README, CONTRIBUTING])
def test_every_file_it_links_or_names_exists(text):
    paths = re.findall(r"\]\(([^)#:]+)\)", text)
    paths += [name for name in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if not name.startswith(("runs/", ".venv"))]
    assert paths
    missing = [path for path in paths if not (REPOSITORY / path).exists()]
    assert not missing


def test_its_numbers_are_those_of_the_result_files(make_tables):
    results = make_tables.find_results()
    assert {result["task"] for result in results} >= {"easy-vqa"}, "no results in mmvl/models/mmvl-tiny"
    assert make_tables.with_table(README, results, speed=make_tables.speed_of()) == README, "run docs/make_tables.py"
    card = make_tables.CARD.read_text(encoding="utf-8")
    assert make_tables.with_table(card, results, full=True) == card, "run docs/make_tables.py"


def test_the_numbers_of_the_training_page_are_those_of_the_result_files(make_tables):
    assert make_tables.between_markers(TRAINING, make_tables.training_tables()) == TRAINING, "run docs/make_tables.py"


def test_its_numbers_are_of_the_model_that_is_shipped(make_tables):
    from mmvl.evaluation.run import model_digest

    digest = model_digest(make_tables.MODEL)
    for result in make_tables.find_results():
        assert result["model"]["digest"] == digest, f"measure {result['task']} again: the model has changed"
        assert result["limit"] is None or result["limit"] >= 100


def test_texts_that_are_not_ours_to_give_on_are_not_in_the_results(make_tables):
    theirs = {"receipts", "receipt-lines", "chartqa", "tables"}
    kept = {result["task"]: len(result["predictions"]) for result in make_tables.find_results()}
    assert {task for task, count in kept.items() if not count} == theirs


def test_the_table_script_writes_only_between_its_markers(make_tables, tmp_path):
    scores = [{"metric": "accuracy", "value": 0.9612, "low": 0.95, "high": 0.97, "n": 2000}]
    (tmp_path / "results").mkdir()
    result = {"task": "easy-vqa", "scores": scores, "limit": 2000}
    (tmp_path / "results" / "easy-vqa.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text("{}")
    readme = "before\n<!-- results: x -->\nold\n<!-- end of results -->\nafter 1.0%\n"
    new = make_tables.with_table(readme, make_tables.find_results(tmp_path), full=True)
    assert new.startswith("before\n<!-- results: x -->\n| task |")
    assert new.endswith("<!-- end of results -->\nafter 1.0%\n")
    assert "| easy-vqa | accuracy | 96.1% | 95.0% to 97.0% | 2,000 |" in new
    assert "mmvl eval easy-vqa --limit 2000\n" in new
    assert make_tables.command(result | {"limit": None, "data": {"name": "x.tar"}}) == "mmvl eval easy-vqa --data x.tar"
    assert "old" not in new
    speed = {"first_token_seconds": 2.5, "tokens_per_second": 99.4, "peak_mib": 1000}
    aims = make_tables.with_table(readme, make_tables.find_results(tmp_path), speed=speed)
    assert "| shapes and colours | at least 99.0% | 96.1% | 95.0% to 97.0% | 2,000 | no |" in aims
    assert "| real charts | at least 40.0% | not measured | | | |" in aims
    assert "| first token of a page, two cores | at most 2.00 s | 2.50 s | | | no |" in aims
    with pytest.raises(ValueError, match="0 places"):
        make_tables.with_table("nothing", [])
