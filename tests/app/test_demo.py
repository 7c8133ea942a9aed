"""`mmvl demo` and the examples that it and the chat page use."""

import json

import pytest
from PIL import Image

from mmvl.app.examples import load_examples


def test_the_examples_that_come_with_mmvl_are_pictures_with_questions():
    examples = load_examples()
    assert len(examples) >= 3
    for example in examples:
        with Image.open(example.file) as image:
            image.verify()
        assert example.question.strip()
        assert example.file.stat().st_size < 200_000, "it is in everybody's clone"


def test_it_prints_names_questions_answers_and_speed(run_cli, tiny_model_dir):
    result = run_cli("demo", "--model", tiny_model_dir, "--device", "cpu")
    assert result.code == 0
    for example in load_examples():
        assert example.file.name in result.out
        assert example.question[:20] in result.out
    assert "parameters, float32) on cpu" in result.out
    assert "tokens/s" in result.out
    assert "mmvl chat" in result.out


def test_a_missing_example_is_one_clear_error(tmp_path):
    (tmp_path / "examples.json").write_text(json.dumps([{"file": "gone.png", "question": "What?"}]))
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing"):
        load_examples(tmp_path)
