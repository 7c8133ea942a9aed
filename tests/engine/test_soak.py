"""A random load on an engine: lengths, images, priorities, aborts, bad requests and all that may be asked of sampling,
where memory is short.

`python tests/engine/test_soak.py 2000 [MODEL]` runs it long and says what it saw; the test here runs it short. Every
answer is compared with the answer of the same request alone, in an engine without any of the tricks. The long one is in
fp64, as rounding in fp32 may turn one of a million choices between experts, and the answer with it.
"""

import json
import os
import random
import resource
import sys
import time
from dataclasses import dataclass, replace

import torch
from PIL import Image

from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.model import VLModel
from mmvl.processor import Processor, Prompt

COUNT = int(os.environ.get("MMVL_SOAK", "30"))  # requests of each schedule here
PLAIN = {"prefix_cache": "off", "draft_tokens": 0, "behind": False, "max_sequences": 1}
SHORT_OF_MEMORY = {"max_sequences": 6, "max_batch_tokens": 96, "draft_tokens": 20, "swap_bytes": 1 << 16}


@dataclass(frozen=True)
class Job:
    """A request to be: `bad` ones are to be refused, those with `abort_after` are ended after so many tokens."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    abort_after: int | None = None
    bad: bool = False


@dataclass(frozen=True)
class Mask:
    """Of `size` ids a random part may come, another one after each answer so far, and now and then any; it breaks when
    the answer has `breaks_after` tokens."""

    size: int
    seed: int
    breaks_after: int

    def next_mask(self, token_ids):
        if len(token_ids) >= self.breaks_after:
            raise RuntimeError("a mask that breaks")
        generator = torch.Generator().manual_seed(hash((self.seed, *token_ids)) % (1 << 63))
        mask_V = torch.rand(self.size, generator=generator) < 0.3
        return mask_V if mask_V[0] else None


class Load:
    """Draws jobs; conversations go on, and documents are asked about again, so that prefixes are found."""

    def __init__(self, model: VLModel, processor: Processor, seed: int):
        self.random, self.processor = random.Random(seed), processor
        self.context = model.config.text.max_position_embeddings
        colours = ("red", "green", "blue", "yellow", "black", "white")
        tile = processor.tiling.tile
        self.images = [
            Image.new("RGB", (self.random.randrange(8, 3 * tile), self.random.randrange(8, 3 * tile)), colour)
            for colour in colours
        ]
        self.texts = [" ".join(self._words(self.random.randrange(2, 40))) for _ in range(12)]
        self.said = ["e"]  # pieces of answers: what may stop others

    def _words(self, count: int) -> list[str]:
        words = ("circle", "red", "is", "there", "what", "shape", "naïve", "日本", "blue", "triangle", "the", "image")
        return [self.random.choice(words) for _ in range(count)]

    def job(self) -> Job:
        draw = self.random
        if draw.random() < 0.03:
            prompt = draw.choice([Prompt([]), Prompt([5] * self.context), Prompt([5, self.processor.image_id, 6])])
            return Job(prompt, SamplingParams(), bad=True)
        parts = [{"type": "image", "image": image} for image in draw.sample(self.images, draw.choice([0, 0, 1, 1, 2]))]
        parts.append({"type": "text", "text": draw.choice(self.texts)})
        messages = [{"role": "user", "content": parts}]
        for _ in range(draw.choice([0, 0, 1, 2])):
            messages.append({"role": "assistant", "content": " ".join(self._words(3))})
            messages.append({"role": "user", "content": " ".join(self._words(draw.randrange(1, 9)))})
        params = SamplingParams(
            max_tokens=draw.choice([1, 2, 7, 20, 40, 120]),
            temperature=draw.choice([0.0, 0.0, 1.0, 3.0]),
            top_p=draw.choice([1.0, 0.9]),
            repetition_penalty=draw.choice([1.0, 1.0, 1.0, 1.3]),
            seed=draw.randrange(1000),
            ignore_eos=draw.random() < 0.5,
        )
        if draw.random() < 0.5:
            params = replace(params, **self._demands())
        abort_after = draw.randrange(0, 12) if draw.random() < 0.1 else None
        prompt = self.processor.encode(messages)
        too_long = len(prompt.token_ids) >= self.context
        return Job(prompt, params, draw.choice([0, 0, 0, 1, -1]), abort_after, too_long)

    def _demands(self) -> dict:
        draw, size = self.random, self.processor.valid_vocab_size
        breaks_after = draw.choice([999, 999, 999, 3])
        return {
            "top_k": draw.choice([0, 5, 40]),
            "min_p": draw.choice([0.0, 0.05, 0.3]),
            "presence_penalty": draw.choice([0.0, 0.0, 0.7, -0.4]),
            "frequency_penalty": draw.choice([0.0, 0.0, 0.3, -0.1]),
            "stop": tuple(draw.sample(self.said, min(draw.choice([0, 0, 1, 2]), len(self.said)))),
            "stop_token_ids": tuple(draw.sample(range(size), draw.choice([0, 0, 2, 20]))),
            "min_tokens": draw.choice([0, 0, 3, 10]),
            "logprobs": draw.choice([None, None, 0, 4]),
            "logit_mask": draw.choice([None, None, Mask(size, draw.randrange(1000), breaks_after)]),
        }

    def remember(self, text: str) -> None:
        """Other answers may be stopped by a piece of this one."""
        at = self.random.randrange(len(text) + 1)
        if piece := text[at : at + self.random.randrange(1, 4)]:
            self.said.append(piece)


def soak(model: VLModel, processor: Processor, count: int, seed: int = 0, **settings) -> dict:
    """Run `count` jobs and check each; what was seen. AssertionError where an answer differs or something is left."""
    load = Load(model, processor, seed)
    cached = {"max_cached_tokens": min(load.context, 1024)}  # of which a single request may have all
    engine = Engine(model, processor, **(SHORT_OF_MEMORY | cached | settings))
    plain = Engine(model, processor, **PLAIN, **cached)
    load.context = engine.context
    jobs, refused, memory, logprobs, stopped = {}, 0, [], {}, 0
    begun = time.perf_counter()
    left = count
    while left or engine.has_work:
        while left and len(engine.waiting) < 12 and load.random.random() < 0.5:
            left -= 1
            job = load.job()
            try:
                request = engine.submit(job.prompt, job.params, job.priority)
            except ValueError:
                assert job.bad, "a good request was refused"
                refused += 1
                continue
            assert not job.bad, "a bad request was taken"
            jobs[request] = job
        for update in engine.step():
            logprobs.setdefault(update.request, []).extend(update.logprobs or ())
        for request in [*engine.running, *engine.waiting]:
            after = jobs[request].abort_after
            if after is not None and len(request.output_ids) >= after:
                engine.abort(request)
        for request in [r for r in jobs if r.finish_reason is not None]:
            _check(plain, request, jobs.pop(request), logprobs.pop(request, []))
            stopped += request.text_stream.stopped
            load.remember(request.text)
        if left % max(count // 8, 1) == 0:
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_pages_used, stats.state_slots_used) == (0, 0, 0, 0)
    engine.prefixes.clear()
    assert engine.cache.free_pages == engine.num_pages and engine.cache.free_checkpoints == engine.sizes.max_checkpoints
    assert not engine.cache._swapped and engine.pools._swap_bytes == (SHORT_OF_MEMORY | settings)["swap_bytes"]
    return {
        "requests": count,
        "refused": refused,
        "finished": dict(stats.finished_total),
        "stopped_by_a_string": stopped,
        "preemptions": stats.preemptions_total,
        "prefix_hit_tokens": stats.prefix_hit_tokens,
        "prompt_tokens": stats.prefix_query_tokens,
        "draft_tokens": stats.draft_tokens_total,
        "accepted": stats.draft_tokens_accepted,
        "peak_memory_mb": [round(kb / 1024) for kb in memory[:: max(len(memory) // 8, 1)]],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _check(plain: Engine, request, job: Job, logprobs: list) -> None:
    """The same tokens as alone, up to where it ended, and as likely."""
    params = job.params
    if request.finish_reason == "abort":
        assert job.abort_after is not None
        if not request.output_ids:
            return
        params = replace(params, max_tokens=len(request.output_ids))
    alone, expected = plain.submit(job.prompt, params), []
    while plain.has_work:
        for update in plain.step():
            expected += update.logprobs or ()
    assert request.output_ids == alone.output_ids, f"request {request.number} differs from itself alone"
    if request.finish_reason != "abort":
        assert (request.text, request.finish_reason) == (alone.text, alone.finish_reason)
        assert (request.finish_reason == "error") == (str(request.error) == "a mask that breaks"), request.error
    assert len(logprobs) == (0 if params.logprobs is None else len(request.output_ids))
    for here, there in zip(logprobs, expected, strict=True):
        assert len(here.top) == params.logprobs and here.token_id == there.token_id
        values = [[one.logprob, *(value for _, value in one.top)] for one in (here, there)]
        torch.testing.assert_close(*map(torch.tensor, values), rtol=0, atol=1e-3)


SCHEDULES = (
    {},
    {"behind": True},
    {"behind": True, "swap_bytes": 0, "max_batch_tokens": 40, "draft_tokens": 0},
)


def test_a_random_load_is_answered_as_alone_and_leaves_nothing(tiny_model_dir):
    model, processor = load_model(tiny_model_dir, dtype=torch.float32), Processor.from_pretrained(tiny_model_dir)
    runs = [soak(model, processor, COUNT, seed, **settings) for seed, settings in enumerate(SCHEDULES)]
    print(json.dumps(runs, indent=1))
    for what in ("refused", "stopped_by_a_string", "preemptions", "prefix_hit_tokens", "accepted"):
        assert sum(seen[what] for seen in runs) > 0, f"the load was to have some {what}"
    for reason in ("stop", "length", "abort", "error"):
        assert sum(seen["finished"].get(reason, 0) for seen in runs) > 0, reason


if __name__ == "__main__":
    from mmvl.vlm import MMVL_TINY

    torch.set_num_threads(1)
    directory = sys.argv[2] if len(sys.argv) > 2 else MMVL_TINY
    loaded, prepared = load_model(directory, dtype=torch.float64), Processor.from_pretrained(directory)
    print(json.dumps(soak(loaded, prepared, int(sys.argv[1])), indent=1))
