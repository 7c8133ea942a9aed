"""What comes over the wire and is no request, or never becomes one: told in our shape, and let go of."""

import json
import socket
import time

import pytest

from mmvl.app.server.wire import Http


def said(server, data: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(server.address) as connection:
        connection.settimeout(20)
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"this is no HTTP\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),  # TLS to a port without it
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nbad header secret\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", 400),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"secret: x\r\n" * 20_000, 431),
    ],
)
def test_what_is_no_http_is_told_as_every_failure_is(server, data, status):
    head, _, body = said(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == "invalid_http"
    assert b"secret" not in body and b"content-type: application/json" in head.lower()


def test_a_body_that_turns_into_nonsense_frees_its_request(server, until):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    answer = said(server, head + b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\nnonsense\r\n')
    assert answer.startswith(b"HTTP/1.1 400 ")
    until(lambda: server.service.bodies.used == 0)
    assert server.idle()


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nhost: local"])
def test_a_head_that_never_ends_is_given_up(server, monkeypatch, data):
    monkeypatch.setattr(Http, "head_seconds", 0.3)
    start = time.monotonic()
    assert said(server, data) == b""
    assert 0.2 < time.monotonic() - start < 5


def test_a_connection_that_rests_between_requests_is_not_given_up(server, monkeypatch):
    monkeypatch.setattr(Http, "head_seconds", 0.2)
    with socket.create_connection(server.address) as connection:
        connection.settimeout(5)
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.5)
