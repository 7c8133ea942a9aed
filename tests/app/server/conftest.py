"""What the tests of the server share: a tiny model behind a real web server in a thread, and ways to ask it."""

import asyncio
import base64
import io
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from PIL import Image

from mmvl import VLM
from mmvl.app.server import ServerSettings, create_app
from mmvl.app.server.run import web_server_config
from tests.waiting import wait_until

MODEL = "tiny"


class Served:
    """A running server: its `url`, event `loop`, `service`, `vlm`, and clients for it."""

    def __init__(self, url: str, service, loop):
        self.url, self.service, self.vlm, self.loop = url, service, service.vlm, loop
        self.http = httpx.Client(base_url=url, timeout=30, verify=False)  # certificates take 50 ms to load

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def client(self, **options) -> openai.OpenAI:
        options = {"api_key": "none needed", "max_retries": 0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def post(self, path: str = "/v1/chat/completions", **options) -> httpx.Response:
        return self.http.post(path, **options)

    def metric(self, name: str, **labels) -> float:
        """The sum of a metric's samples that have these labels."""
        page = self.http.get("/metrics").text
        lines = [line for line in page.splitlines() if line.partition("{")[0] == f"mmvl:{name}"]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(text in line for text in wanted))

    def idle(self) -> bool:
        stats = self.vlm.engine.stats()
        return not (stats.running or stats.waiting or stats.state_slots_used or self.service.gate.inside)


@contextmanager
def running(vlm, fetcher=None, **settings):
    """A server on a free port of this machine."""
    settings = {"served_names": (MODEL,), "port": 0} | settings
    app = create_app(vlm, ServerSettings(**settings), fetcher=fetcher)
    listener = socket.create_server(("127.0.0.1", 0))
    config = web_server_config(app)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(sockets=[listener])))
    thread.start()
    try:
        wait_until(lambda: server.started)
        served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service, loop)
        with served.http:
            yield served
    finally:
        server.should_exit = True
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="session")
def serve():
    """serve(vlm, **settings) -> a context with a `Served` (test modules cannot import a conftest)."""
    return running


@pytest.fixture(scope="session")
def tiny(tiny_model_dir) -> VLM:
    return VLM(tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def server(tiny):
    """A server with the default limits."""
    with running(tiny) as served:
        yield served


@pytest.fixture
def slow(tiny_model_dir, monkeypatch) -> VLM:
    """A model that takes 20 ms a step, for two answers at a time: 200 tokens are 4 s."""
    vlm = VLM(tiny_model_dir, device="cpu", max_sequences=2)
    step = vlm.engine.step

    def slow_step():
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(vlm.engine, "step", slow_step)
    return vlm


@pytest.fixture(scope="session")
def asked():
    """asked(text, *parts, **more) -> the body of a request for a chat answer."""

    def body(text: str = "What is this?", *parts: dict, **more) -> dict:
        content = [*parts, {"type": "text", "text": text}] if parts else text
        return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8} | more

    return body


@pytest.fixture(scope="session")
def as_image():
    """as_image(file's bytes or PIL image) -> a part of a message."""

    def part(image, detail=None, mime="image/png") -> dict:
        if isinstance(image, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            image = buffer.getvalue()
        url = {"url": f"data:{mime};base64,{base64.b64encode(image).decode()}"}
        return {"type": "image_url", "image_url": url | ({"detail": detail} if detail else {})}

    return part


@pytest.fixture(scope="session")
def as_file():
    """as_file(PDF's bytes, **more) -> a part of a message."""

    def part(data: bytes, **more) -> dict:
        url = f"data:application/pdf;base64,{base64.b64encode(data).decode()}"
        return {"type": "file", "file": {"filename": "some.pdf", "file_data": url} | more}

    return part


@pytest.fixture(scope="session")
def two_pages() -> bytes:
    """A PDF of a white and a black page."""
    pages = [Image.new("RGB", (50, 50), colour) for colour in ("white", "black")]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()
