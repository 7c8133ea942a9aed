"""`mmvl demo`: asks the model about the example files and prints what was asked, what it said, and how fast."""

import time
from itertools import groupby

from mmvl.app.about import about, timings
from mmvl.app.examples import load_examples
from mmvl.app.pages import open_pages, user_turn
from mmvl.app.safe_text import for_terminal


def demo(open_model, max_tokens: int = 200) -> None:
    """Raises ValueError or OSError if the model or an example cannot be used."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False)
    examples = load_examples()
    start = time.perf_counter()
    with console.status("opening the model"):
        vlm = open_model()
    console.print(f"{about(vlm)}, opened in {time.perf_counter() - start:.1f} s\n")

    tokens = seconds = 0.0
    for file, asked in groupby(examples, key=lambda example: example.file):
        body = Text()
        for example in asked:
            with console.status(f"{file.name}: {example.question}"):
                answer = vlm.chat([user_turn(open_pages([file]), example.question)], max_tokens=max_tokens)
            tokens += answer.completion_tokens
            seconds += answer.prefill_seconds + answer.decode_seconds
            body.append(f"{example.question}\n", "bold").append(f"{for_terminal(answer.text)}\n")
            body.append(f"{timings(answer)}\n\n", "dim")
        body.rstrip()
        title = f"{file.name} (was in the training data)" if example.trained_on else file.name
        console.print(Panel(body, title=Text(title, "cyan"), title_align="left"))
    speed = f"{tokens:.0f} tokens in {seconds:.1f} s: {tokens / max(seconds, 1e-9):.1f} tokens/s, pictures included"
    console.print(f"\n{speed}")
    console.print("Ask about your own: [bold]mmvl ask FILE -q TEXT[/]. Open the chat page: [bold]mmvl chat[/]")
