"""`mmvl ask`: one question about some files; the answer streams to stdout, the timings go to stderr."""

import sys

from mmvl.app.about import timings
from mmvl.app.pages import checked_question, open_pages, user_turn
from mmvl.app.safe_text import for_terminal


def ask(files, question: str, open_model, *, pages: str | None = None, stats: bool, **sampling) -> None:
    """Opens the files before the model, so that a bad file is told at once.

    `open_model` is called without arguments and returns an `mmvl.VLM`.
    Raises ValueError or OSError when a file, the question or the model cannot be used.
    """
    question = checked_question(question)
    pictures = open_pages(files, pages)
    answer = print_answer(open_model(), [user_turn(pictures, question)], **sampling)
    if stats:
        print(timings(answer), file=sys.stderr)


def print_answer(vlm, messages, **sampling):
    """Streams the answer to stdout as it is generated, ends the line, and returns the `Answer`."""
    stream = vlm.stream(messages, **sampling)
    try:
        while True:
            sys.stdout.write(for_terminal(next(stream)))
            sys.stdout.flush()
    except StopIteration as end:
        sys.stdout.write("\n")
        sys.stdout.flush()
        return end.value
    finally:
        stream.close()
