"""`mmvl chat`: its options, and the page and the API served until Ctrl-C."""

import errno
import socket
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app.engine_options import EngineOptions, engine_settings
from mmvl.app.options import Device, KvCacheDtype, Model, Quantize
from mmvl.app.server.command import settings_of

FIRST_PORT, LAST_PORT = 7860, 7959


def chat(
    model: Model = None,
    device: Device = None,
    quantize: Quantize = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    engine: EngineOptions = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every network.  [default: 127.0.0.1]"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, metavar="N", help="0 or none: 7860, or the next free one."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="Keys, one a line; a browser asks for one as the password."
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of `mmvl serve --print-config`; repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings; options go over what it says.")
    ] = None,
) -> None:
    """Open the chat page: attach pictures and PDFs, ask, read along. The API of `mmvl serve` is on the same port."""
    of_engine = engine_settings(engine, kv_cache_dtype)
    settings = _settings(settings_of({"host": host, "port": port or None}, more or [], config, api_key_file))
    from mmvl.app.server.listener import bind

    listener = bind(settings)  # before the model, which may take minutes to load
    from mmvl.app.chat.mount import mount_page
    from mmvl.app.server.app import create_app
    from mmvl.app.server.run import open_model, run_app

    vlm = open_model(model, device=device, quantize=quantize, engine=of_engine)
    app = create_app(vlm, settings)
    mount_page(app)

    def ready(url: str) -> None:
        print(f"The page is at {url}, the API at {url}/v1 (Ctrl-C ends both)", flush=True)
        if browser:
            webbrowser.open(url)

    run_app(app, settings, listener=listener, ready=ready)


def _settings(given):
    """What was said, and for the rest the page's own defaults where they differ from those of `mmvl serve`."""
    own = {}
    if "port" not in given.model_fields_set:
        own["port"] = _free_port(given.host)
    if "log_level" not in given.model_fields_set:
        own["log_level"] = "warning"
    return given.model_copy(update=own)


def _free_port(host: str) -> int:
    """The first free one from 7860 on. Raises OSError if there is none, or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(FIRST_PORT, LAST_PORT + 1):
        try:
            with socket.create_server((host, port), family=family):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"no page at {host}: {error.strerror}; choose another address with --host") from error
    raise OSError(f"no page at {host}: ports {FIRST_PORT} to {LAST_PORT} are taken; choose one with --port")
