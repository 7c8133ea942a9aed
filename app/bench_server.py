"""`mmvl bench server`: many clients at once against a running server, and what they and its memory make of it.

Every client asks, reads to the end, and asks again. Mixed traffic is streams about texts, pictures and PDFs, answers in
JSON, clients that leave in mid-stream, and requests that must be refused; plain traffic is streams about texts.
"""

import asyncio
import base64
import io
import json
import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

_SHAPE = {"enum": ["circle", "square", "triangle"]}
_JSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "shape",
        "schema": {
            "type": "object",
            "properties": {"shape": _SHAPE},
            "required": ["shape"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Tally:
    """What the clients saw. Times in seconds, memory in bytes, sampled once a second from the server's own metrics."""

    statuses: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    first_words: list[float] = field(default_factory=list)
    between_words: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    pieces: int = 0
    memory: list[float] = field(default_factory=list)


def server(
    url: str,
    *,
    streams: int,
    seconds: float,
    max_tokens: int,
    mixed: bool,
    pause: float = 0.0,
    json_path: Path | None,
) -> None:
    """Runs the clients and prints what came of them. pause: seconds that a client rests after each request.

    Raises OSError if the server cannot be reached.
    """
    tally = asyncio.run(_run(url.rstrip("/").removesuffix("/v1"), streams, seconds, max_tokens, mixed, pause))
    asked = {"streams": streams, "max_tokens": max_tokens, "mixed": mixed, "pause_seconds": pause}
    result = _result(tally, seconds) | asked
    table = Table("measure", "value")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), json.dumps(value))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


async def _run(url: str, streams: int, seconds: float, max_tokens: int, mixed: bool, pause: float) -> Tally:
    key = os.environ.get("MMVL_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:
        try:
            models = (await client.get("/v1/models")).raise_for_status().json()
        except httpx.HTTPError as error:
            raise OSError(f"no answer from {url}: {error}; start a server with `mmvl serve`") from None
        bodies = _bodies(models["data"][0]["id"], max_tokens, mixed)
        tally, end = Tally(), time.monotonic() + seconds
        watching = asyncio.create_task(_watch(client, tally))
        turns = (bodies[n % len(bodies) :] + bodies[: n % len(bodies)] for n in range(streams))
        await asyncio.gather(*(_ask_on(client, turn, tally, end, pause) for turn in turns))
        watching.cancel()
        return tally


def _bodies(model: str, max_tokens: int, mixed: bool) -> list[tuple[str, dict]]:
    """(kind, body) of the requests that clients send in turn."""

    def body(*parts: dict, **more) -> dict:
        content = [*parts, {"type": "text", "text": "Describe in detail what can be seen, and where."}]
        return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens} | more

    plain = ("stream", body(stream=True))
    if not mixed:
        return [plain]
    picture = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(picture).ellipse((200, 100, 440, 340), fill="red")
    image = {"type": "image_url", "image_url": {"url": _data_url(picture, "PNG", "image/png")}}
    pdf = {"type": "file", "file": {"filename": "page.pdf", "file_data": _data_url(picture, "PDF", "application/pdf")}}
    return [
        plain,
        ("stream", body(image, stream=True)),
        ("stream", body(pdf, stream=True)),
        ("whole", body(image, response_format=_JSON)),
        ("leave", body(image, stream=True)),
        ("refused", body(temperature=9)),
    ]


def _data_url(picture: Image.Image, format: str, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def _ask_on(
    client: httpx.AsyncClient, bodies: list[tuple[str, dict]], tally: Tally, end: float, pause: float
) -> None:
    """One client: request after request until the time is over."""
    number = 0
    while time.monotonic() < end:
        kind, body = bodies[number % len(bodies)]
        number += 1
        try:
            status = await _ask(client, kind, body, tally)
        except httpx.HTTPError as error:
            tally.faults[type(error).__name__] += 1
            status = None
        else:
            tally.statuses[status] += 1
        await asyncio.sleep(max(pause, 1.0 if status in (None, 429, 503) else 0.0))


async def _ask(client: httpx.AsyncClient, kind: str, body: dict, tally: Tally) -> int:
    start = last = time.monotonic()
    if kind in ("whole", "refused"):
        response = await client.post("/v1/chat/completions", json=body)
        if kind == "refused":
            tally.faults["not refused"] += response.status_code != 400
        elif response.status_code == 200:
            tally.whole.append(time.monotonic() - start)
            choice = response.json()["choices"][0]
            if choice["finish_reason"] == "stop":  # else max_tokens cut it off
                shape = json.loads(choice["message"]["content"])["shape"]
                tally.faults["not in the schema"] += shape not in _SHAPE["enum"]
        return response.status_code
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        pieces, ended = 0, False
        async for line in response.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if line.startswith('data: {"error"'):
                tally.faults["error in a stream"] += 1
            elif line.startswith("data: {"):
                now = time.monotonic()
                (tally.between_words if pieces else tally.first_words).append(now - last)
                last, pieces = now, pieces + 1
            if kind == "leave" and pieces == 3:
                return response.status_code
        if response.status_code == 200:
            tally.faults["a stream without an end"] += not ended
            tally.pieces += pieces
            tally.whole.append(time.monotonic() - start)
        return response.status_code


async def _watch(client: httpx.AsyncClient, tally: Tally) -> None:
    while True:
        try:
            page = (await client.get("/metrics")).text
        except httpx.HTTPError as error:
            tally.faults[f"{type(error).__name__} for its metrics"] += 1
            page = ""
        resident = re.search(r"^process_resident_memory_bytes (\S+)", page, re.MULTILINE)
        if resident is not None:  # else the server runs where its process cannot be looked at
            tally.memory.append(float(resident[1]))
        await asyncio.sleep(1)


def _result(tally: Tally, seconds: float) -> dict:
    mib = [round(resident / 2**20) for resident in tally.memory]
    result = {
        "seconds": seconds,
        "requests": sum(tally.statuses.values()),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "faults": {name: count for name, count in tally.faults.items() if count},
        "pieces_a_second": round(tally.pieces / seconds, 1),
    }
    for name in ("first_words", "between_words", "whole"):
        times = getattr(tally, name)
        result[f"{name}_p50_p95_seconds"] = [_quantile(times, 0.5), _quantile(times, 0.95)]
    if mib:
        result["server_memory_mib"] = {"start": mib[0], "peak": max(mib), "end": mib[-1]}
        if quarter := len(mib) // 4:
            means = [round(sum(mib[n * quarter : (n + 1) * quarter]) / quarter) for n in range(4)]
            result["server_memory_mib"]["mean_of_each_quarter"] = means
    return result


def _quantile(values: list[float], q: float) -> float | None:
    return round(sorted(values)[min(len(values) - 1, math.ceil(q * len(values)) - 1)], 4) if values else None
