"""mmvl-tiny in fp32 says the same on a GPU, by the kernels, as on the CPU, by the references: 50 greedy answers."""

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mmvl.app.examples import load_examples
from mmvl.vlm import VLM, user_turn

SUBJECTS = (
    "the red circle", "a train to Berlin", "Mr. Baker", "seven green apples", "the meeting on Monday", "a seahorse",
    "12 + 30", "the word HELLO", "my sister's cat", "an invoice of 48.50 euros", "nothing", "a very long letter",
)  # fmt: skip
QUESTIONS = (
    "Describe the image.",
    "Read the text.",
    "what color is the shape?",
    "what shape is present?",
    "What is this?",
)
COLOURS = ("red", "green", "blue", "black", "orange", "purple")


def make_prompts() -> list[list[dict]]:
    """25 without and 25 with pictures: the examples, shapes, lines of print, tall and wide, one and two a question."""
    prompts = [user_turn(None, f"Tell me about {subject}.") for subject in SUBJECTS]
    prompts += [user_turn(None, f"Is {subject} there? Answer yes or no.") for subject in SUBJECTS]
    prompts.append(user_turn(None, "? " * 150))
    examples = load_examples()
    prompts += [user_turn(str(example.file), example.question) for example in examples]
    number = 0
    while len(prompts) < 49:
        prompts.append(user_turn(_picture(number), QUESTIONS[number % len(QUESTIONS)]))
        number += 1
    prompts.append(user_turn([_picture(number), _picture(number + 1)], "what is in the images?"))
    return prompts


def _picture(number: int) -> Image.Image:
    size = ((112, 100), (330, 90), (90, 330), (224, 224))[number % 4]
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    colour = COLOURS[number % len(COLOURS)]
    if number % 2:
        draw.text((8, size[1] // 3), SUBJECTS[number % len(SUBJECTS)], fill=colour, font=ImageFont.load_default(20))
    else:
        shape = draw.ellipse if number % 4 else draw.rectangle
        shape((size[0] // 5, size[1] // 5, size[0] * 4 // 5, size[1] * 4 // 5), fill=colour)
    return picture


def answers(device: str) -> list[tuple[str, str]]:
    vlm = VLM(device=device, dtype=torch.float32)
    found = dict(vlm.batch(make_prompts(), max_tokens=48, temperature=0.0))
    return [(found[index].text, found[index].finish_reason) for index in range(len(found))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU, and there is no GPU")
def test_the_same_text_on_cuda_as_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions round to 10 bits otherwise
    here, there = answers("cpu"), answers("cuda")
    different = [
        f"{n}: {a!r} on the CPU, {b!r} on CUDA" for n, (a, b) in enumerate(zip(here, there, strict=True)) if a != b
    ]
    assert not different, "\n".join(different)
    assert len({text for text, _ in here}) > 20, "the answers are all alike: equal ones show little"


def test_there_are_fifty_different_prompts():
    prompts = make_prompts()
    assert len(prompts) == 50
    images = [[part["image"] for part in turn["content"] if part["type"] == "image"] for (turn,) in prompts]
    assert [len(i) for i in images] == [0] * 25 + [1] * 24 + [2]
    contents = {
        (turn["content"][-1]["text"], *(image if isinstance(image, str) else image.tobytes() for image in own))
        for own, (turn,) in zip(images, prompts, strict=True)
    }
    assert len(contents) == 50
