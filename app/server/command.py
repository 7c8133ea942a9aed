"""`mmvl serve` and `mmvl bench server`: their options, and how a server's become settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmvl.app.engine_options import EngineOptions, engine_settings
from mmvl.app.errors import UsageError, one_line, usage
from mmvl.app.options import Device, JsonFile, KvCacheDtype, Model, Quantize, SequenceParallel


def _option(*names: str, default: object, metavar: str, text: str):
    """An option that is only handed on if it was given; `default` is what the settings say otherwise."""
    return typer.Option(*names, metavar=metavar, help=f"{text}  [default: {default}]")


def serve(
    model: Model = None,
    device: Device = None,
    quantize: Quantize = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    engine: EngineOptions = None,
    sequence_parallel: SequenceParallel = False,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", min=1, metavar="N", help="Answers that are written at the same time.")
    ] = 32,
    host: Annotated[
        str | None,
        _option("--host", default="127.0.0.1", metavar="ADDRESS", text="Where to listen; 0.0.0.0 is every network."),
    ] = None,
    port: Annotated[int | None, _option("--port", default=8000, metavar="N", text="0 takes a free one.")] = None,
    served_names: Annotated[
        list[str] | None,
        _option(
            "--served-name", default="the directory's", metavar="NAME", text="The model's name for clients; repeatable."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="Keys, one a line; all but /health then needs one. MMVL_API_KEY adds one.",
        ),
    ] = None,
    allow_origins: Annotated[
        list[str] | None,
        _option(
            "--allow-origin",
            default="none",
            metavar="URL",
            text="Origin of web pages that may call (CORS); repeatable.",
        ),
    ] = None,
    allow_hosts: Annotated[
        list[str] | None,
        _option(
            "--allow-host",
            default="any; on loopback its own",
            metavar="NAME",
            text="Host names it answers under; repeatable.",
        ),
    ] = None,
    media_hosts: Annotated[
        list[str] | None,
        _option(
            "--image-host", default="none", metavar="NAME", text="Host that images may be fetched from; repeatable."
        ),
    ] = None,
    default_max_tokens: Annotated[
        int | None,
        _option("--max-tokens", default=1024, metavar="N", text="Longest answer where a request does not say."),
    ] = None,
    max_requests: Annotated[
        int | None,
        _option("--max-requests", default=256, metavar="N", text="Running and waiting; further ones are told 429."),
    ] = None,
    max_body_mb: Annotated[
        int | None, _option("--max-body-mb", default=64, metavar="N", text="Largest request.")
    ] = None,
    max_images: Annotated[
        int | None, _option("--max-images", default=64, metavar="N", text="Images and PDF pages of a request.")
    ] = None,
    max_image_megapixels: Annotated[
        int | None, _option("--max-image-megapixels", default=40, metavar="N", text="Largest image, in million pixels.")
    ] = None,
    max_pdf_pages: Annotated[
        int | None, _option("--max-pdf-pages", default=20, metavar="N", text="Pages of a PDF.")
    ] = None,
    request_seconds: Annotated[
        float | None, _option("--timeout", default=600, metavar="SECONDS", text="For a whole request.")
    ] = None,
    drain_seconds: Annotated[
        float | None,
        _option("--drain-seconds", default=30, metavar="SECONDS", text="For running requests after SIGTERM."),
    ] = None,
    stall_seconds: Annotated[
        float | None,
        _option("--stall-seconds", default=60, metavar="SECONDS", text="No step for so long: /health says 503."),
    ] = None,
    log_level: Annotated[
        str | None, _option("--log-level", default="info", metavar="LEVEL", text="debug, info, warning or error.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, see --print-config; repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings; options go over what it says.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML and exit.")] = False,
) -> None:
    """Serve the model to OpenAI clients: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics."""
    options = {
        "host": host,
        "port": port,
        "served_names": served_names,
        "allow_origins": allow_origins,
        "allow_hosts": allow_hosts,
        "media_hosts": media_hosts,
        "default_max_tokens": default_max_tokens,
        "max_requests": max_requests,
        "max_body_mb": max_body_mb,
        "max_images": max_images,
        "max_image_megapixels": max_image_megapixels,
        "max_pdf_pages": max_pdf_pages,
        "request_seconds": request_seconds,
        "drain_seconds": drain_seconds,
        "stall_seconds": stall_seconds,
        "log_level": log_level,
    }
    settings = settings_of(options, more or [], config, api_key_file)
    of_engine = engine_settings(engine, kv_cache_dtype)
    if print_config:
        print(as_yaml(settings), end="")
        return
    from mmvl.app.server.listener import bind

    with bind(settings) as listener:  # before the model, which may take minutes to load
        from mmvl.app.server.app import create_app
        from mmvl.app.server.run import open_model, run_app

        how = {"quantize": quantize, "sequence_parallel": sequence_parallel, "max_sequences": max_sequences}
        vlm = open_model(model, device=device, engine=of_engine, **how)
        app = create_app(vlm, settings)
        name = app.state.service.names[0]

        def ready(url: str) -> None:
            print(f"mmvl serves {name} at {url}/v1 (Ctrl-C ends it)", flush=True)

        run_app(app, settings, listener=listener, ready=ready)


def bench_server(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a running server.")] = "http://127.0.0.1:8000",
    streams: Annotated[int, typer.Option("--streams", min=1, metavar="N", help="Clients at the same time.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long they go on asking.")] = 60.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer.")] = 32,
    mixed: Annotated[
        bool, typer.Option("--mixed/--plain", help="Pictures, PDFs, JSON, clients that leave; or texts alone.")
    ] = True,
    pause: Annotated[
        float, typer.Option("--pause", min=0, metavar="SECONDS", help="How long a client rests after each request.")
    ] = 0.0,
    json_file: JsonFile = None,
) -> None:
    """Many clients at once against a running server: latencies, failures, and the server's memory."""
    from mmvl.app.bench_server import server

    server(url, streams=streams, seconds=seconds, max_tokens=max_tokens, mixed=mixed, pause=pause, json_path=json_file)


def settings_of(options: dict[str, Any], more: list[str], config: Path | None, api_key_file: Path | None):
    """`ServerSettings` of a command line: options that are not None, over `NAME=VALUE`s, over the file, over defaults.

    Raises UsageError with one line.
    """
    try:
        with usage():
            return _settings_of(options, more, config, api_key_file)
    except OSError as error:  # a file of settings or keys
        raise UsageError(one_line(error)) from error


def _settings_of(options: dict[str, Any], more: list[str], config: Path | None, api_key_file: Path | None):
    import os

    import yaml

    from mmvl.app.server.settings import load_settings

    given = {}
    for text in more:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write it as NAME=VALUE")
        try:
            given[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {name}: the value is not YAML") from None
    given |= {name: value for name, value in options.items() if value is not None}
    keys = api_key_file.read_text(encoding="utf-8").split() if api_key_file is not None else []
    if api_key_file is not None and not keys:
        raise ValueError(f"{api_key_file} holds no key")
    if key := os.environ.get("MMVL_API_KEY"):
        keys.append(key)
    if keys:
        given["api_keys"] = keys
    return load_settings(config, given)


def as_yaml(settings) -> str:
    """All settings, keys hidden, as a file for --config."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
