"""`mmvl serve`: its options become settings, their defaults are those that its help tells, and keys stay hidden."""

import re

import pytest
import typer
import yaml

from mmvl.app import cli
from mmvl.app.server import ServerSettings, create_app, run_app
from mmvl.app.server.command import as_yaml, settings_of
from mmvl.app.server.listener import bind


def test_every_option_names_its_default():
    command = typer.main.get_command(cli.app).commands["serve"]
    told = {}
    for option in command.params:
        default = re.search(r"\[default: ([\d.]+)\]", option.help or "")
        if default and option.name in ServerSettings.model_fields:
            told[option.name] = default[1]
    assert len(told) >= 10
    defaults = ServerSettings()
    for name, text in told.items():
        assert str(getattr(defaults, name)).removesuffix(".0") == text, name


def test_options_go_over_values_over_the_file_over_defaults(tmp_path, monkeypatch):
    monkeypatch.delenv("MMVL_API_KEY", raising=False)
    file = tmp_path / "server.yaml"
    file.write_text("port: 1\nmax_images: 2\nfetch_seconds: 3\nmedia_hosts: [Images.Example.com]\n")
    settings = settings_of({"port": 4, "host": None}, ["max_images=5", "max_tiles=6"], file, None)
    assert (settings.port, settings.max_images, settings.fetch_seconds, settings.max_tiles) == (4, 5, 3, 6)
    assert settings.host == ServerSettings().host and settings.media_hosts == ("images.example.com",)


def test_what_it_prints_can_be_read_again_and_hides_keys(run_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MMVL_API_KEY", "secret-of-the-environment")
    (tmp_path / "keys").write_text("first-secret\nsecond-secret\n")
    result = run_cli("serve", "--print-config", "--port", "9", "--api-key-file", tmp_path / "keys")
    assert result.code == 0 and "secret" not in result.out
    printed = yaml.safe_load(result.out)
    assert printed["port"] == 9 and len(printed.pop("api_keys")) == 3
    monkeypatch.delenv("MMVL_API_KEY")
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(printed))
    assert yaml.safe_load(as_yaml(settings_of({}, [], tmp_path / "server.yaml", None))) == printed | {"api_keys": []}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "99999"], "port"),
        (["--set", "max_imagez=1"], "max_imagez"),
        (["--set", "max_images"], "NAME=VALUE"),
        (["--set", "max_images=many"], "max_images"),
        (["--image-host", "http://example.com/"], "host names"),
        (["--image-host", "*.example.com"], "host names"),
        (["--max-body-mb", "9999"], "max_bodies_mb"),
        (["--timeout", "0"], "request_seconds"),
        (["--log-level", "loud"], "log_level"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--device", "cpu,cpu"], "unknown device 'cpu,cpu'"),
        (["--quantize", "int3"], "int8, int4, fp8, or none; not 'int3'"),
        (["--kv-cache-dtype", "fp4"], "auto, fp8, int8; not 'fp4'"),
        (["--api-key-file", "{tmp}/missing"], "missing"),
        (["--api-key-file", "{tmp}/short"], "8 printable"),
        (["--api-key-file", "{tmp}/empty"], "no key"),
        (["--config", "{tmp}/list.yaml"], "name: value"),
        (["--config", "{tmp}/odd.yaml"], "unknown setting 'pot'"),
        (["--config", "{tmp}/missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_set_is_one_clear_line(run_cli, tmp_path, arguments, says):
    for name, text in {"short": "hunter2", "empty": "", "list.yaml": "- 1", "odd.yaml": "pot: 1"}.items():
        (tmp_path / name).write_text(text)
    result = run_cli("serve", *[argument.format(tmp=tmp_path) for argument in arguments], "--print-config")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("mmvl: ") and says in result.err and "hunter2" not in result.err


@pytest.mark.parametrize(("host", "says"), [("127.0.0.1", "taken"), ("192.0.2.1", "--host"), ("no.example", "--host")])
def test_an_address_that_cannot_be_had_is_told_before_the_model_is_opened(run_cli, server, host, says):
    port = server.address[1]
    result = run_cli("serve", "--model", "there is no model here", "--host", host, "--port", port)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"mmvl: no server at {host}:{port}: ") and says in result.err


def test_a_port_that_another_begins_to_listen_on_meanwhile(tiny, capsys):
    settings = ServerSettings(port=0)
    with bind(settings) as ours:
        settings = ServerSettings(port=ours.getsockname()[1])
        with bind(settings) as theirs:
            theirs.listen()
            with pytest.raises(OSError, match="the port is taken"):
                run_app(create_app(tiny, settings), settings, listener=ours)
