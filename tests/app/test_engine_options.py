"""`--engine NAME=VALUE`: what becomes of it, which mistakes it tells, and that it reaches the engine."""

import pytest
from typer.testing import CliRunner

import mmvl.app.bench_engine
import mmvl.app.server.run
from mmvl.app.cli import app
from mmvl.app.engine_options import LEAST, NAMES, engine_settings
from mmvl.app.errors import UsageError
from mmvl.engine.settings import CHOICES, NUMBERS

GIVEN = {
    "prefix_cache=int8": "int8", "kv_cache_dtype=fp8": "fp8", "draft_tokens=0": 0, "max_cached_tokens=4096": 4096,
    "max_batch_tokens=512": 512, "graph_tokens=0": 0, "swap_bytes=2GiB": 2 << 30, "expert_workspace= 7": 7,
}  # fmt: skip


def test_all_are_settings_of_the_engine():
    assert engine_settings([*GIVEN]) == {text.partition("=")[0]: value for text, value in GIVEN.items()}
    assert len(GIVEN) == len(NAMES) and set(NAMES) <= {*NUMBERS, *CHOICES}
    assert LEAST == {name: NUMBERS[name][0] for name in LEAST}
    assert engine_settings(None) == {} and engine_settings(None, "int8") == {"kv_cache_dtype": "int8"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["prefix_cach=off"], "there is no setting 'prefix_cach'; there are prefix_cache, kv_cache_dtype,"),
        (["draft_tokens"], "write it as draft_tokens=VALUE"),
        (["draft_tokens=-1"], "a whole number from 0 on, not '-1'"),
        (["max_cached_tokens=1GiB"], "a whole number from 1 on, not '1GiB'"),
        (["max_cached_tokens=0"], "from 1 on, not '0'"),
        (["swap_bytes=2GB"], "a number of bytes, as 4GiB, from 0 on, not '2GB'"),
        (["prefix_cache=int4"], "it can be exact, int8, off; not 'int4'"),
        (["draft_tokens=1", "draft_tokens=2"], "draft_tokens: it is given twice"),
    ],
)
def test_mistakes_get_one_line(given, said):
    with pytest.raises(UsageError) as error:
        engine_settings(given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_has_an_option_of_its_own_is_said_once():
    with pytest.raises(UsageError, match="kv_cache_dtype: it is given twice"):
        engine_settings(["kv_cache_dtype=fp8"], "int8")


class Stop(Exception):
    """Far enough."""


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["chat", "--no-browser"]])
def test_it_reaches_the_engine_of_a_server(command, monkeypatch):
    told = []

    def open_model(model, **options):
        told.append(options["engine"])
        raise Stop

    monkeypatch.setattr(mmvl.app.server.run, "open_model", open_model)
    options = ["--engine", "draft_tokens=0", "--engine", "prefix_cache=off", "--kv-cache-dtype", "int8"]
    assert isinstance(CliRunner().invoke(app, [*command, *options]).exception, Stop)
    assert told == [{"kv_cache_dtype": "int8", "draft_tokens": 0, "prefix_cache": "off"}]
    wrong = CliRunner().invoke(app, [*command, "--engine", "x=1"]).exception
    assert isinstance(wrong, UsageError) and len(told) == 1, "told before a model is loaded"


def test_it_reaches_the_engine_that_is_measured(monkeypatch):
    told = []
    monkeypatch.setattr(mmvl.app.bench_engine, "engine", lambda *args, **options: told.append(options["settings"]))
    CliRunner().invoke(app, ["bench", "engine", "--engine", "draft_tokens=3"], catch_exceptions=False)
    assert told == [{"draft_tokens": 3}]
