"""A hundred streams at once: none fails, what they say is right, and nothing is left behind."""

import asyncio
import json
import time

import httpx
import pytest

from mmvl.app import bench_server


def test_a_hundred_streams_at_once(serve, tiny, asked, as_image, picture_path, until):
    picture = as_image(picture_path.read_bytes())
    bodies = [asked("Go on.", *[picture] * (n % 2), stream=True, max_tokens=12, ignore_eos=True) for n in range(4)]
    with serve(tiny) as server:
        expected = [_said(server.post(json=body).text) for body in bodies]
        answers = asyncio.run(_all(server.url, [bodies[n % 4] for n in range(100)]))
        until(server.idle)
        firsts = sorted(first for _, _, first in answers)
        assert [status for status, _, _ in answers] == [200] * 100
        assert sum(text == expected[n % 4] for n, (_, text, _) in enumerate(answers)) >= 95, "ties may fall otherwise"
        assert firsts[94] < 20, "p95 of the first token"
        assert server.service.bodies.used == 0 and server.metric("num_requests_waiting") == 0


def test_more_streams_than_the_limit_are_told_so_and_the_rest_goes_on(serve, tiny, asked, until):
    body = asked("Go on.", stream=True, max_tokens=12, ignore_eos=True)
    with serve(tiny, max_requests=10) as server:
        answers = asyncio.run(_all(server.url, [body] * 60))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 10
        assert all(text for status, text, _ in answers if status == 200)
        until(server.idle)


def test_the_benchmark_sees_every_kind_of_traffic(serve, tiny, tmp_path, until, capsys):
    with serve(tiny) as server:
        file = tmp_path / "result.json"
        bench_server.server(server.url, streams=6, seconds=1.5, max_tokens=30, mixed=True, pause=0.01, json_path=file)
        result = json.loads(file.read_text())
        assert result["statuses"]["200"] > 5 and result["statuses"]["400"] > 0 and result["faults"] == {}
        assert result["pause_seconds"] == 0.01
        assert result["first_words_p50_p95_seconds"][0] > 0 and result["server_memory_mib"]["peak"] > 0
        until(server.idle)
    with pytest.raises(OSError, match="mmvl serve"):
        bench_server.server(server.url, streams=1, seconds=1, max_tokens=1, mixed=False, json_path=None)
    assert "first words" in capsys.readouterr().out


async def _all(url: str, bodies: list[dict]) -> list[tuple[int, str, float]]:
    """(status, what was said, seconds to the first words) of all, asked at the same time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, verify=False) as client:

        async def one(body: dict) -> tuple[int, str, float]:
            start, first, lines = time.monotonic(), 0.0, []
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    first = first or time.monotonic() - start
                    lines.append(line)
            return response.status_code, _said("\n".join(lines)) if response.status_code == 200 else "", first

        return await asyncio.gather(*map(one, bodies))


def _said(events: str) -> str:
    """The words of a stream. Fails if it ends otherwise than it should."""
    lines = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
