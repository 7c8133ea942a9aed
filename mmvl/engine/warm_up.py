"""Before the first request, on a GPU: steps of every size once, so that nobody waits for kernels to be compiled and
loaded, for libraries to be set up, or for decode steps to be captured as graphs.

The steps are requests like any other, of made-up tokens; afterwards the engine has no trace of them.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from mmvl.engine.draft import Worth
from mmvl.engine.request import Request
from mmvl.engine.sampling_params import SamplingParams
from mmvl.processor import Prompt

CONTEXTS = (1024, 4096)  # tokens of sequences for which graphs are captured beforehand
_PAST = 512  # tokens of a chunk behind which another one comes
_DRAFTS = (1, 3, 7)
_NAMES = {
    "decode": "{rows} sequences", "draft": "drafts, {tokens} tokens of {rows} sequences",
    "chunk": "prompts, {tokens} tokens of {rows} sequences",
}  # fmt: skip
_FIRST_ID = 16  # special tokens come before
Progress = Callable[[str], None]


class _Guesses:
    """In the place of prompt look-up: always has an idea."""

    hot = True

    def __init__(self, count: int):
        self._count = count

    def propose(self, limit: int) -> list[int]:
        return [_FIRST_ID] * min(self._count, limit)

    def push(self, token: int) -> None:
        pass

    def learn(self, drafted: int, held: int) -> None:
        pass


@torch.inference_mode()
def warm_up(engine, progress: Progress) -> None:
    """Run an engine that nobody uses yet through all that will come. Raises what a request fails with."""
    with engine.prefixes.off():  # each is computed
        _prefill(engine, progress)
        progress("warming up: answers beside prompts, sampling, drafts")
        _beside(engine)
        for settings in ({"temperature": 1.0, "top_p": 0.9}, {"logprobs": 5}, {"repetition_penalty": 1.1}):
            _run(engine, [_request(engine, 8, 3, **settings)])
        for count in _DRAFTS:
            if count <= engine.draft_tokens:
                engine.scheduler.worth = Worth()  # whatever they brought so far
                request = _request(engine, 8, count + 3)
                request.lookup = _Guesses(count)
                _run(engine, [request])
        if hasattr(engine.model, "embed_images"):
            progress("warming up: images")
            tile = engine.model.config.vision.image_size
            parts = [{"type": "image", "image": Image.new("RGB", (tile, tile), "white")}, {"type": "text", "text": "x"}]
            prompt = engine.processor.encode([{"role": "user", "content": parts}])
            if len(prompt.token_ids) < engine.context:
                _run(engine, [engine.prepare(prompt, SamplingParams(max_tokens=1))])
    _capture(engine, progress)
    engine.forget_all()


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most`: launch parameters are kept by the next power of two."""
    return [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]


def _prefill(engine, progress: Progress) -> None:
    longest = engine.context - 4
    for tokens in sizes(min(engine.pace.most, longest)):
        progress(f"warming up: a prompt of {tokens:,} tokens")
        _run(engine, [_request(engine, tokens, 2)])
    if longest > 2 * _PAST:
        with engine.pace.limited(_PAST):
            _run(engine, [_request(engine, 2 * _PAST, 2)])


def _beside(engine) -> None:
    """Somebody is answered while two prompts come."""
    if engine.max_sequences > 2 and engine.context > 3 * _PAST:
        first = _request(engine, 8, 8)
        engine.add(first)
        while not first.output_ids and first.finish_reason is None:
            engine.step()
        _run(engine, [_request(engine, 100, 3), _request(engine, _PAST, 3)])


def _capture(engine, progress: Progress) -> None:
    graphs = engine.graphs
    if graphs is None:
        return
    broken: set[str] = set()
    for kind, tokens, rows in graphs.shapes():
        progress(f"capturing graphs: {_NAMES[kind].format(tokens=tokens, rows=rows)}")
        for context in CONTEXTS:
            if kind not in broken and not graphs.capture(kind, tokens, rows, context):
                broken.add(kind)


def _request(engine, tokens: int, new_tokens: int, **settings) -> Request:
    """A prompt of made-up tokens, no two alike."""
    known = min(engine.processor.valid_vocab_size, engine.model.config.text.vocab_size)
    ids = [_FIRST_ID + (7919 * n + tokens) % (known - _FIRST_ID) for n in range(tokens)]
    ids = [token if token != engine.processor.image_id else _FIRST_ID for token in ids]
    return engine.prepare(Prompt(ids), SamplingParams(max_tokens=new_tokens, ignore_eos=True, **settings))


def _run(engine, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error
