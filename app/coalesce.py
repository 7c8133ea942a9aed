"""Turns a stream of small text pieces into updates at a steady pace, and lets its reader stop it at any moment."""

import queue
import threading
from collections.abc import Callable, Iterator


def coalesce(stream, stopped: Callable[[], bool], interval: float = 1 / 15) -> Iterator[str]:
    """Yields what has arrived since the last yield, about every `interval` seconds.

    stream: an `mmvl.vlm.Stream`, or any iterator of str whose `close` may be called from another thread and ends it.

    Yields "" when nothing came, so that whoever consumes it gets the chance to close it even while the model is still
    reading a long prompt. Once `stopped()` is true, or when it is closed itself, it closes `stream` at once.
    Returns what `stream` returned. An error in `stream` is raised here, after the text that came before it.
    """
    pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
    outcome: dict = {}

    def read() -> None:
        try:
            while True:
                pieces.put(next(stream))
        except StopIteration as end:
            outcome["value"] = end.value
        except Exception as error:
            outcome["error"] = error

    reader = threading.Thread(target=read, name="mmvl-answer", daemon=True)
    reader.start()
    try:
        while reader.is_alive() and not stopped():
            reader.join(interval)
            yield _drain(pieces)
    finally:
        stream.close()
    reader.join()
    if rest := _drain(pieces):
        yield rest
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _drain(pieces: queue.SimpleQueue) -> str:
    text = []
    while not pieces.empty():
        text.append(pieces.get())
    return "".join(text)
