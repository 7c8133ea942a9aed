"""Whatever is wrong with what was given: one clear line on stderr, exit code 1 or 2, nothing on stdout."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest

import mmvl

FILES = Path(__file__).parent / "files"


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid black-and-white PNG that is small in bytes and huge in pixels."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bad(tmp_path_factory, picture_path, tiny_model_dir) -> dict[str, Path]:
    """Bad files and model directories by name."""
    folder = tmp_path_factory.mktemp("bad")
    paths = {
        "missing": folder / "missing.png",
        "text": folder / "text.png",
        "truncated": folder / "truncated.png",
        "bomb": folder / "bomb.png",
        "empty": folder / "empty.png",
        "broken_pdf": folder / "broken.pdf",
        "encrypted": FILES / "encrypted.pdf",
        "recipe": folder / "recipe.yaml",
    }
    paths["text"].write_text("this is no picture")
    paths["truncated"].write_bytes(picture_path.read_bytes()[:-40])
    paths["bomb"].write_bytes(png_of_zeros(20_000, 20_000))
    paths["empty"].touch()
    paths["broken_pdf"].write_bytes(b"%PDF-1.7\nthis is no PDF")
    good = (Path(mmvl.__file__).parent / "recipes" / "tiny" / "text.yaml").read_text(encoding="utf-8")
    paths["recipe"].write_text(good.replace("batch_tokens:", "batch_tokenz:"))
    for name in ("no_weights", "corrupt_weights", "no_config"):
        paths[name] = shutil.copytree(tiny_model_dir, folder / name)
    (paths["no_weights"] / "model.safetensors").unlink()
    (paths["corrupt_weights"] / "model.safetensors").write_bytes(b"\xff" * 1000)
    (paths["no_config"] / "config.json").unlink()
    assert paths["bomb"].stat().st_size < 100_000
    return paths


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("missing", "no such file"),
        ("text", "not an image"),
        ("truncated", "truncated"),
        ("bomb", "pixels"),
        ("empty", "empty"),
        ("broken_pdf", "PDF"),
        ("encrypted", "password"),
    ],
)
def test_a_file_that_cannot_be_used(run_cli, bad, file, says):
    result = run_cli("ask", bad[file], "-q", "What is this?")
    assert_one_line(result, says, bad[file].name)


def test_a_file_that_cannot_be_used_among_good_ones(run_cli, bad, picture_path):
    assert_one_line(run_cli("ask", picture_path, bad["text"], "-q", "What?"), "text.png")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(run_cli, picture_path, question):
    assert_one_line(run_cli("ask", picture_path, "-q", question), "question is empty")


def test_a_question_longer_than_the_context(run_cli, picture_path, tiny_model_dir):
    result = run_cli("ask", picture_path, "-q", "why? " * 1000, "--model", tiny_model_dir)
    assert_one_line(result, "longer than the context", "256")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("missing", "no model directory"),
        ("no_weights", "no weights"),
        ("no_config", "no config.json"),
        ("corrupt_weights", "not a readable safetensors file"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "caption", "chat", "eval"])
def test_a_model_that_cannot_be_used(run_cli, bad, picture_path, tmp_path, model, says, command):
    arguments = {
        "ask": [picture_path, "-q", "What?"],
        "caption": [picture_path, "-o", tmp_path / "rows.jsonl"],
        "chat": ["--no-browser"],
        "eval": ["easy-vqa"],
    }[command]
    result = run_cli(command, *arguments, "--model", bad[model])
    assert_one_line(result, says, bad[model].name)


def test_an_unknown_device(run_cli, picture_path, tiny_model_dir):
    result = run_cli("ask", picture_path, "-q", "What?", "--model", tiny_model_dir, "--device", "abacus")
    assert_one_line(result, "unknown device 'abacus'")


def test_a_sampling_setting_out_of_range(run_cli, picture_path, tiny_model_dir):
    result = run_cli("ask", picture_path, "-q", "What?", "--model", tiny_model_dir, "--top-p", "0")
    assert_one_line(result, "top_p")


def test_a_recipe_with_a_misspelt_key(run_cli, bad):
    assert_one_line(run_cli("train", bad["recipe"]), "batch_tokenz", "recipe.yaml")


def test_a_misspelt_key_of_a_recipe_on_the_command_line(run_cli):
    recipe = Path(mmvl.__file__).parent / "recipes" / "tiny" / "text.yaml"
    assert_one_line(run_cli("train", recipe, "--set", "optimizer.learning_rat=1"), "learning_rat")


def test_a_recipe_that_is_not_there(run_cli, bad):
    assert_one_line(run_cli("train", bad["missing"]), "no such recipe")


@pytest.mark.parametrize("command", [["eval", "nonsense"], ["data", "render", "nonsense", "-o", "x"]])
def test_an_unknown_name_lists_the_known_ones(run_cli, command):
    assert_one_line(run_cli(*command), "nonsense", "there are")


@pytest.mark.parametrize("command", [["data", "inspect"], ["data", "manifest"]])
def test_shards_that_are_not_there(run_cli, bad, command):
    assert_one_line(run_cli(*command, bad["missing"]), "missing.png")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["ask"], ["ask", "x.png"], ["ask", "x.png", "-q", "?", "--max-tokens", "many"]]
)
def test_wrong_usage(run_cli, arguments):
    result = run_cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err
    assert "Traceback" not in result.err


def test_a_wrong_command_is_code_2_and_what_is_missing_code_1(run_cli, bad, picture_path):
    caption = ["caption", picture_path, "-o", bad["missing"].with_name("x.jsonl")]
    for command in (["ask", picture_path, "-q", "?"], caption, ["chat"], ["serve", "--port", "0"]):
        wrong = run_cli(*command, "--device", "abacus")
        assert_one_line(wrong, "abacus")
        missing = run_cli(*command, "--model", bad["missing"])
        assert_one_line(missing, "no model directory")
        assert (wrong.code, missing.code) == (2, 1)


def assert_one_line(result, *says: str) -> None:
    assert result.code in (1, 2), result
    assert result.out == ""
    line = result.err.removesuffix("\n")
    assert "\n" not in line, line
    assert line.startswith("mmvl: ")
    assert "unexpected" not in line
    for words in says:
        assert words in line
