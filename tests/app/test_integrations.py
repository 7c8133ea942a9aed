"""docs/integrations.md: its Python runs, and what other tools do to mmvl is done to it here as they do it."""

import asyncio
import base64
import importlib
import importlib.metadata
import inspect
import json
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import uvicorn
from markdown_it import MarkdownIt
from PIL import Image

import mmvl.vlm
from mmvl import VLM
from mmvl.app.chat.mount import mount_page
from mmvl.app.server import ServerSettings, create_app

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [t.content for t in MarkdownIt().parse(PAGE) if t.type == "fence" and t.info.strip() == language]


@pytest.fixture(scope="module")
def address(tiny_model_dir):
    """Of `mmvl chat`: the page and the API, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = create_app(VLM(tiny_model_dir), ServerSettings(port=port))
    mount_page(app)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def photo(tmp_path, monkeypatch, tiny_model_dir):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    monkeypatch.setattr(mmvl.vlm, "MMVL_TINY", tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photo.png"


def test_its_python_api(photo, capsys):
    first, second, _ = blocks("python")
    assert first.count("\n") <= 5, "five lines"
    exec(compile(first + second, "docs/integrations.md", "exec"), {})
    assert "Which colour is it?" in capsys.readouterr().out


def test_its_gradio_client(photo, address, capsys):
    code = blocks("python")[2]
    assert "127.0.0.1:7860" in code
    exec(compile(code.replace("127.0.0.1:7860", address), "docs/integrations.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_what_vlmevalkit_sends(photo, address):
    """Its `LMDeployAPI`: the model's name from /v1/models, then chat completions with these fields and JPEGs."""
    (text,) = blocks("json")
    settings = json.loads(text)["model"]["mmvl"]
    url = settings["api_base"].replace("127.0.0.1:8000", address)
    name = httpx.get(url.split("v1")[0] + "v1/models").json()["data"][0]["id"]
    picture = {
        "type": "image_url",
        "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()},
    }
    content = [picture, {"type": "text", "text": "What is it?"}]
    body = {"model": name, "messages": [{"role": "user", "content": content}], "n": 1}
    body |= {"max_tokens": settings["max_tokens"], "temperature": settings["temperature"]}
    reply = httpx.post(url, json=body, headers={"Authorization": "Bearer sk-123456"}, timeout=60)
    assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"].strip()


@dataclass
class Instance:
    args: tuple


@pytest.fixture
def lmms_eval(monkeypatch):
    """What mmvl uses of lmms-eval 0.7.3, which itself is 70 packages."""

    class Lmms:
        def __init__(self):
            self.task_dict = {}

        @staticmethod
        def _resolve_system_prompt(value):
            return value

    @dataclass
    class TokenCounts:
        input_tokens: int | None = None
        output_tokens: int | None = None

    @dataclass
    class GenerationResult:
        text: str
        token_counts: TokenCounts | None = None

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None

    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {
            "Instance": Instance,
            "TokenCounts": TokenCounts,
            "GenerationResult": GenerationResult,
        },
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in names.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "mmvl.app.lmms_eval", raising=False)


@pytest.fixture
def model(lmms_eval, tiny_model_dir):
    """The model as lmms-eval finds and opens it."""
    (entry,) = importlib.metadata.entry_points(group="lmms_eval.models", name="mmvl")
    manifest = entry.load()
    module, _, name = manifest.chat_class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert manifest.model_id == "mmvl" and not cls.is_simple
    return cls(model=str(tiny_model_dir), batch_size=1, device="cpu", system_prompt="Be brief.")


def request(model, document: dict, settings: dict) -> Instance:
    def to_messages(document):
        content = [{"type": kind, "url": document[kind]} for kind in ("image", "video") if kind in document]
        return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]

    documents = model.task_dict.setdefault("task", {}).setdefault("test", [])
    documents.append(document)
    return Instance(("", to_messages, settings, len(documents) - 1, "task", "test"))


def test_a_task_of_lmms_eval(model):
    picture = Image.new("RGB", (30, 30), "red")
    greedy = {"max_new_tokens": 3, "until": ["\n\n"], "do_sample": False, "temperature": 0.7, "top_p": None}
    requests = [request(model, {"question": f"Q{n}?", "image": picture}, greedy) for n in range(3)]
    requests.append(request(model, {"question": "text alone"}, {"max_new_tokens": 5, "until": "x"}))
    answers = model.generate_until(requests)
    assert len(answers) == 4 and all(answer.text is not None for answer in answers)
    assert all(answer.token_counts.output_tokens <= 3 for answer in answers[:3])
    assert answers == model.generate_until(requests), "greedy"


def test_what_it_cannot_do_is_said(model):
    with pytest.raises(ValueError, match="document 0 of task: .*no video"):
        model.generate_until([request(model, {"question": "?", "video": "x.mp4"}, {})])
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            method([])
    with pytest.raises(ValueError, match="no model_args colour"):
        type(model)(colour="red")


def test_the_arguments_in_its_command_are_known(lmms_eval):
    (arguments,) = re.findall(r"--model_args (\S+)", PAGE)
    parameters = inspect.signature(importlib.import_module("mmvl.app.lmms_eval").MMVL).parameters
    assert {argument.partition("=")[0] for argument in arguments.split(",")} <= parameters.keys()
