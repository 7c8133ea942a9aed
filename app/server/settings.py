"""Everything that can be set on the server, with its default. The command line's options and a YAML file fill it."""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?=.{1,253}(:|$))[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[1-9]\d{0,4})?")

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ServerSettings(BaseModel):
    """Settings of one server; wrong values raise pydantic's `ValidationError`, which is a `ValueError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000  # 0 takes a free one
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # Who may ask. Without keys everyone who can reach the port may.
    api_keys: tuple[SecretStr, ...] = ()
    allow_origins: tuple[str, ...] = ()  # of web pages that may call this server (CORS)
    allow_hosts: tuple[str, ...] = ()  # values of the Host header; none: any, but on loopback only its own names
    served_names: tuple[str, ...] = ()  # the model's names; none: that of its directory

    # How much at once.
    max_requests: Count = 256  # in this server at one time, running and waiting; further ones are told 429
    max_body_mb: Count = 64  # of one request
    max_bodies_mb: Count = 512  # of all requests that are being read or opened
    max_choices: Count = 8  # `n` of one request
    default_max_tokens: Count = 1024  # where a request names none
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2  # images opened at one time, and as many PDFs
    max_tiles: Count = 8192  # of all images of all requests in this server

    # Of one request.
    max_images: Count = 64  # pages of PDFs among them
    max_image_mb: Count = 32
    max_image_megapixels: Count = 40
    max_pdf_pages: Count = 20  # of one PDF
    pdf_seconds: Seconds = 30
    media_hosts: tuple[
        str, ...
    ] = ()  # the only hosts that images are fetched from: "example.com" or "example.com:8443"
    fetch_seconds: Seconds = 10

    # Time.
    request_seconds: Seconds = 600  # for a whole request; the header X-Request-Timeout can ask for less
    body_seconds: Seconds = 60  # for its body to arrive
    keep_alive_seconds: Seconds = 10  # between signs of life in a stream
    stall_seconds: Seconds = 60  # without a finished step while there is work: /health then says 503
    drain_seconds: Seconds = 30  # that running requests get after SIGTERM

    @model_validator(mode="after")
    def _one_fits(self) -> "ServerSettings":
        if self.max_bodies_mb < self.max_body_mb:
            raise ValueError("max_bodies_mb is for all requests together: at least max_body_mb")
        return self

    @field_validator("media_hosts")
    @classmethod
    def _plain_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in hosts)
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError("write plain host names like images.example.com or images.example.com:8443")
        return hosts

    @field_validator("api_keys")
    @classmethod
    def _long_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if len(text) < 8 or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("an API key has at least 8 printable ASCII characters and no blanks")
        return keys

    @property
    def checked_hosts(self) -> tuple[str, ...]:
        """Values of the Host header that are answered; () is any.

        On loopback a foreign name means a web page that had its own name resolved to this machine (DNS rebinding).
        """
        return self.allow_hosts or (LOOPBACK if self.host in LOOPBACK else ())


def load_settings(file: Path | None, given: dict) -> ServerSettings:
    """`given` over what the YAML file says over the defaults. Raises ValueError with one line."""
    from_file = {}
    if file is not None:
        try:
            from_file = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ValueError(f"{file} is not YAML") from None
        if not isinstance(from_file, dict):
            raise ValueError(f"{file} must hold settings, one `name: value` a line")
    try:
        return ServerSettings(**(from_file | given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        where = f"{file}: " if file is not None and set(first["loc"][:1]) & (from_file.keys() - given.keys()) else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(ServerSettings.model_fields)
            raise ValueError(f"{where}unknown setting {name!r}; there are: {known}") from None
        # Before our own words pydantic would put "Value error, ".
        told = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        raise ValueError(f"{where}{name}: {told}") from None
