"""What tests of a VLM share: its updates as a list, and whether it is at rest."""

import asyncio


def collect(vlm, prompt, params=None, **kwargs):
    async def run():
        return [update async for update in vlm.generate(prompt, params, **kwargs)]

    return asyncio.run(run())


def idle(vlm) -> bool:
    engine = vlm.engine
    return not engine.has_work and engine.cache.free_slots == engine.max_sequences
