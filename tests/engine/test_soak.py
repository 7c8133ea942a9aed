"""A random load on an engine: lengths, images, priorities, aborts and bad requests, where memory is short.

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

import pytest
import torch
from PIL import Image

from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.model import VLModel
from mmvl.processor import Processor, Prompt

COUNT = int(os.environ.get("MMVL_SOAK", "25"))  # requests of each test here
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
        abort_after = draw.randrange(0, 12) if draw.random() < 0.1 else None
        prompt = self.processor.encode(messages)
        too_long = len(prompt.token_ids) >= self.context
        return Job(prompt, params, draw.choice([0, 0, 0, 1, -1]), abort_after, too_long)


def soak(model: VLModel, processor: Processor, count: int, seed: int = 0, **settings) -> dict:
    """Run `count` jobs and check each; what was seen. AssertionError where an answer differs or something is left."""
    load = Load(model, processor, seed)
    cached = {"max_cached_tokens": min(load.context, 1024)}  # of which a single request may have all
    engine = Engine(model, processor, **(SHORT_OF_MEMORY | cached | settings))
    plain = Engine(model, processor, **PLAIN, **cached)
    load.context = engine.context
    jobs, refused, memory = {}, 0, []
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
        engine.step()
        for request in [*engine.running, *engine.waiting]:
            after = jobs[request].abort_after
            if after is not None and len(request.output_ids) >= after:
                engine.abort(request)
        for request in [r for r in jobs if r.finish_reason is not None]:
            _check(plain, request, jobs.pop(request))
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
        "preemptions": stats.preemptions_total,
        "prefix_hit_tokens": stats.prefix_hit_tokens,
        "prompt_tokens": stats.prefix_query_tokens,
        "draft_tokens": stats.draft_tokens_total,
        "accepted": stats.draft_tokens_accepted,
        "peak_memory_mb": [round(kb / 1024) for kb in memory[:: max(len(memory) // 8, 1)]],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _check(plain: Engine, request, job: Job) -> None:
    """The same tokens as alone, up to where it ended."""
    assert request.finish_reason in ("stop", "length", "abort"), (request.finish_reason, request.error)
    if request.finish_reason == "abort":
        assert job.abort_after is not None
        if not request.output_ids:
            return
        job = replace(job, params=replace(job.params, max_tokens=len(request.output_ids), ignore_eos=True))
    alone = plain.submit(job.prompt, job.params)
    while plain.has_work:
        plain.step()
    assert request.output_ids == alone.output_ids, f"request {request.number} differs from itself alone"
    if request.finish_reason != "abort":
        assert (request.text, request.finish_reason) == (alone.text, alone.finish_reason)


@pytest.mark.parametrize(
    "settings", [{}, {"behind": True}, {"behind": True, "swap_bytes": 0, "max_batch_tokens": 40, "draft_tokens": 0}]
)
def test_a_random_load_is_answered_as_alone_and_leaves_nothing(tiny_model_dir, settings):
    model = load_model(tiny_model_dir, dtype=torch.float32)
    seen = soak(model, Processor.from_pretrained(tiny_model_dir), COUNT, seed=len(settings), **settings)
    print(json.dumps(seen))
    assert seen["preemptions"] > 0 and seen["prefix_hit_tokens"] > 0
    assert seen["accepted"] > 0 or settings.get("draft_tokens") == 0


if __name__ == "__main__":
    from mmvl.vlm import MMVL_TINY

    torch.set_num_threads(1)
    directory = sys.argv[2] if len(sys.argv) > 2 else MMVL_TINY
    loaded, prepared = load_model(directory, dtype=torch.float64), Processor.from_pretrained(directory)
    print(json.dumps(soak(loaded, prepared, int(sys.argv[1])), indent=1))
