"""`mmvl ask` on a real, tiny model; and what reaches the terminal."""

import pytest
from PIL import Image

from mmvl import VLM
from mmvl.app import cli
from mmvl.app.safe_text import for_terminal


@pytest.fixture(scope="module")
def vlm(tiny_model_dir):
    return VLM(tiny_model_dir, device="cpu")


def test_it_prints_what_the_library_answers(run_cli, vlm, tiny_model_dir, picture_path):
    result = run_cli("ask", picture_path, "-q", "What is this?", "--model", tiny_model_dir, "--max-tokens", "12")
    assert result.code == 0
    assert result.out == for_terminal(vlm.ask(picture_path, "What is this?", max_tokens=12)) + "\n"
    assert result.err == ""


def test_sampling_settings_reach_the_engine(run_cli, vlm, tiny_model_dir, picture_path):
    settings = ["--temperature", "0.9", "--top-p", "0.9", "--top-k", "50", "--seed", "7", "--max-tokens", "12"]
    result = run_cli("ask", picture_path, "-q", "What?", "--model", tiny_model_dir, *settings)
    same = vlm.ask(picture_path, "What?", temperature=0.9, top_p=0.9, top_k=50, seed=7, max_tokens=12)
    greedy = vlm.ask(picture_path, "What?", max_tokens=12)
    assert result.out == for_terminal(same) + "\n" != for_terminal(greedy) + "\n"


def test_stats_tell_tokens_and_speed_on_stderr(run_cli, tiny_model_dir, picture_path):
    result = run_cli("ask", picture_path, "-q", "What?", "--model", tiny_model_dir, "--max-tokens", "5", "--stats")
    assert " of pictures) in " in result.err
    assert " 5 written at " in result.err
    assert result.err.endswith(" tokens/s, cut at the longest answer\n")


def test_several_files_and_chosen_pdf_pages_are_all_seen(run_cli, monkeypatch, scripted, picture_path, tmp_path):
    pages = [Image.new("RGB", (50, 50), colour) for colour in ("white", "black", "red")]
    pages[0].save(tmp_path / "three.pdf", save_all=True, append_images=pages[1:])
    vlm = scripted(["fine"])
    monkeypatch.setattr(cli, "_open_model", lambda model, device, quantize: vlm)
    result = run_cli("ask", picture_path, tmp_path / "three.pdf", "-q", " What? ", "--pages", "2-3")
    assert result.out == "fine\n"
    (message,) = vlm.asked[0]
    assert [part["type"] for part in message["content"]] == ["image", "image", "image", "text"]
    assert message["content"][2]["image"].getpixel((5, 5))[0] > 200, "page 3 is red"
    assert message["content"][-1]["text"] == "What?"


def test_control_characters_of_an_answer_do_not_reach_the_terminal(run_cli, monkeypatch, scripted, picture_path):
    monkeypatch.setattr(cli, "_open_model", lambda model, device, quantize: scripted(["\x1b]0;owned\x07", "text"]))
    assert run_cli("ask", picture_path, "-q", "What?").out == "]0;ownedtext\n"
