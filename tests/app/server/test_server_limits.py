"""Who is answered, how much at once, and what is free again afterwards however a request ends."""

import base64
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from mmvl.app.server.errors import ApiError
from mmvl.app.server.gate import Budget
from mmvl.app.server.health import Progress
from mmvl.engine.stats import Counters

KEY = "a-long-enough-key"


@pytest.fixture
def stream_of(asked):
    """stream_of(server) -> a context with the events of a stream that goes on for 4 s, the first of them read."""

    @contextmanager
    def opened(server):
        body = asked("Go on.", stream=True, max_tokens=200, ignore_eos=True)
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            yield lines

    return opened


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/health", None, 200),
        ("/v1/models", None, 401),
        ("/metrics", None, 401),
        ("/openapi.json", None, 401),
        ("/nothing", None, 401),
        ("/v1/models", "Bearer wrong", 401),
        ("/v1/models", f"Bearer {KEY}x", 401),
        ("/v1/models", f"Basic {base64.b64encode(b'me:wrong').decode()}", 401),
        ("/v1/models", "Basic ???", 401),
        ("/v1/models", "Bearer \xe9", 401),
        ("/v1/models", KEY, 401),
        ("/v1/models", f"Bearer {KEY}", 200),
        ("/v1/models", "bearer another-key", 200),
        ("/metrics", f"Basic {base64.b64encode(f'me:{KEY}'.encode()).decode()}", 200),
    ],
)
def test_all_but_health_needs_a_key(guarded, path, header, status):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = guarded.http.get(path, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error" and KEY not in answer.text
        assert answer.headers["www-authenticate"].split()[0] == ("Bearer" if path.startswith("/v1/") else "Basic")


@pytest.fixture(scope="module")
def guarded(serve, tiny):
    with serve(tiny, api_keys=(KEY, "another-key"), allow_origins=("https://page.example",)) as server:
        yield server


def test_pages_of_others(guarded, server, asked):
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    answer = guarded.http.options("/v1/chat/completions", headers=preflight)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    answer = guarded.http.options("/v1/chat/completions", headers=preflight | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    # A form or a script of another page may send this without asking first.
    answer = server.post(content=json.dumps(asked()), headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    for origin, status in (("https://evil.example", 403), ("null", 403), (server.url, 200)):
        answer = server.post(json=asked(max_tokens=1), headers={"origin": origin})
        assert answer.status_code == status, origin
    answer = guarded.post(json=asked(max_tokens=1), headers={"origin": "https://page.example", "x-api-key": KEY})
    assert answer.status_code == 401, "past the check of its origin"
    # A name of someone's own that resolves to this machine.
    answer = server.http.get("/v1/models", headers={"host": "evil.example"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"
    for host in ("localhost", "[::1]:80", "127.0.0.1:1"):
        assert server.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_bodies_that_are_too_large_too_slow_or_too_many(serve, tiny, asked):
    with serve(tiny, max_body_mb=1, max_bodies_mb=1, body_seconds=0.5) as server:
        large = json.dumps(asked("x" * (1 << 20))).encode()
        json_type = {"content-type": "application/json"}
        assert server.post(content=large, headers=json_type).status_code == 413
        start = time.monotonic()
        with socket.create_connection(server.address) as liar:
            liar.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
            assert b" 413 " in liar.recv(4096).splitlines()[0] and time.monotonic() - start < 5
        in_chunks = (large[i : i + 65536] for i in range(0, len(large), 65536))
        assert server.post(content=in_chunks, headers=json_type).status_code == 413
        with socket.create_connection(server.address) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n")
            slow.sendall(b"content-type: application/json\r\n\r\n{")
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        others = server.service.bodies.lease()
        others.take(1 << 20)
        answer = server.post(json=asked())
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        others.release()
        assert server.service.bodies.used == 0


def test_many_small_values_are_refused_before_they_are_made(server):
    headers = {"content-type": "application/json"}
    body = b'{"model":"tiny","messages":[' + b"{}," * 600_000 + b"{}]}"
    assert server.post(content=body, headers=headers).status_code == 413
    for body in (b'{"a":' + b"[" * 400_000, b'{"model":"tiny","messages":[' + b"1," * 200_000 + b"1]}"):
        answer = server.post(content=body, headers=headers)
        assert answer.status_code == 400 and len(answer.content) < 4096


def test_more_requests_than_the_limit(serve, slow, asked, stream_of, until):
    with serve(slow, max_requests=1) as server:
        with stream_of(server):
            refused = server.post(json=asked())
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        until(server.idle)
        assert server.post(json=asked(max_tokens=1)).status_code == 200


def test_the_tiles_of_waiting_images_are_bounded(serve, tiny, asked, as_image, picture_path):
    (image,) = tiny.processor.tile([picture_path])
    with serve(tiny, max_tiles=2 * len(image.tiles_N3TT)) as server:
        picture = as_image(picture_path.read_bytes())
        answers = [server.post(json=asked("?", *[picture] * n)).status_code for n in (1, 3, 1)]
        assert answers == [200, 429, 200]


def test_what_is_taken_after_the_end_is_not_kept():
    budget = Budget(10, "things")
    lease = budget.lease()
    lease.take(4)
    lease.release()
    with pytest.raises(ApiError):  # on a thread that opened files while its client left
        lease.take(1)
    lease.release()
    assert budget.used == 0


def test_a_deadline(serve, slow, asked, until):
    with serve(slow, request_seconds=0.6) as server:
        body = asked("Go on.", max_tokens=200, ignore_eos=True)
        late = server.post(json=body)
        assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
        sooner = time.monotonic()
        assert server.post(json=body, headers={"x-request-timeout": "0.2"}).status_code == 504
        assert time.monotonic() - sooner < 0.55
        events = server.post(json=body | {"stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-2][6:])["error"]["code"] == "timeout" and events[-1] == "data: [DONE]"
        assert server.post(json=body, headers={"x-request-timeout": "soon"}).status_code == 400
        until(server.idle)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("point", ["waiting", "first token", "in the middle"])
def test_a_client_that_leaves_frees_everything_at_once(serve, slow, asked, stream_of, until, point, streamed):
    with serve(slow) as server, ExitStack() as others:
        if point == "waiting":
            for _ in range(2):
                others.enter_context(stream_of(server))
        before = server.service.gate.inside
        with sent(server, asked("Go on.", stream=streamed, max_tokens=200, ignore_eos=True)):
            if point == "waiting":
                until(lambda: slow.engine.stats().waiting == 1)
            else:
                tokens = 1 if point == "first token" else 10
                until(lambda: slow.engine.stats().generation_tokens_total >= tokens)
            assert server.service.gate.inside == before + 1
        left = time.monotonic()
        until(lambda: server.service.gate.inside == before and slow.engine.stats().waiting == 0)
        until(lambda: slow.engine.stats().running == before)
        assert time.monotonic() - left < 1
        others.close()
        until(server.idle)
        assert server.service.bodies.used == 0
        assert slow.engine.stats().finished_total.get("abort") == 1 + before


def test_a_client_that_leaves_while_it_sends(serve, tiny, until):
    with serve(tiny) as server:
        with socket.create_connection(server.address) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n")
            half.sendall(b"content-type: application/json\r\n\r\n{")
            until(lambda: server.service.bodies.used == 1)
        until(lambda: server.service.bodies.used == 0)
        assert server.idle()


def test_an_image_that_waits_for_its_opening_is_forgotten_with_its_client(serve, tiny, asked, as_image, until):
    with serve(tiny, decode_threads=1) as server:
        opening, go_on = threading.Event(), threading.Event()
        server.service._image_openers.submit(lambda: (opening.set(), go_on.wait(10)))
        opening.wait(10)
        with sent(server, asked("?", as_image(b"not looked at"))):
            until(lambda: server.metric("num_requests_waiting") == 1)
        until(server.idle)
        go_on.set()
        assert server.service.bodies.used == 0 and server.metric("num_requests_waiting") == 0


def test_health_tells_a_hanging_engine_from_an_idle_one(serve, tiny_model_dir, monkeypatch, asked, until):
    from mmvl import VLM

    vlm = VLM(tiny_model_dir, device="cpu")
    step, go_on = vlm.engine.step, threading.Event()
    with serve(vlm, stall_seconds=0.5) as server:
        assert server.http.get("/health").json() == {"status": "ok"}
        time.sleep(0.8)
        assert server.http.get("/health").status_code == 200, "rest is no stall"
        monkeypatch.setattr(vlm.engine, "step", lambda: (go_on.wait(10), step())[1])
        with sent(server, asked()):
            until(lambda: server.http.get("/health").status_code == 503)
            assert server.http.get("/health").json() == {"status": "stalled"}
            go_on.set()
            until(lambda: server.http.get("/health").status_code == 200)
        until(server.idle)
        server.service.gate.draining = True
        assert server.http.get("/health").json() == {"status": "draining"}


def test_work_after_a_long_rest_is_no_stall():
    counters = Counters(last_step_time=time.monotonic() - 1000)
    numbers = dict(running=0, waiting=0, kv_pages_used=0, kv_pages=1, state_slots_used=0, state_slots=1)
    progress = Progress(lambda: counters.look(**numbers), 100)
    progress.look()
    numbers["waiting"] = 1
    assert not progress.stalled


def test_metrics_count_exactly(serve, tiny_model_dir, asked, as_image, picture_path, until):
    from mmvl import VLM

    with serve(VLM(tiny_model_dir, device="cpu")) as server:
        bodies = [asked("?", as_image(picture_path.read_bytes()), max_tokens=5, ignore_eos=True, n=2) for _ in range(3)]
        answers = [server.post(json=body).json() for body in bodies]
        server.post(json=asked(temperature=9))
        until(server.idle)
        tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert server.metric("generation_tokens_total") == tokens == 30
        assert server.metric("request_generation_tokens_sum") == 30
        assert server.metric("request_generation_tokens_count") == 6
        assert server.metric("prompt_tokens_total") == 2 * sum(answer["usage"]["prompt_tokens"] for answer in answers)
        assert server.metric("request_success_total", finished_reason="length") == 6
        assert server.metric("time_to_first_token_seconds_count") == 6
        assert server.metric("inter_token_latency_seconds_count") == 6 * 4
        assert server.metric("e2e_request_latency_seconds_count") == 3
        assert server.metric("requests_refused_total", status=400) == 1
        for gauge in ("num_requests_running", "num_requests_waiting", "state_slots_usage_perc"):
            assert server.metric(gauge) == 0
        page = server.http.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
        assert page.endswith("# EOF\n")


@contextmanager
def sent(server, body: dict):
    """A request on a connection that is closed at the end, whatever has come."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
    with socket.create_connection(server.address) as connection:
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + data)
        yield connection
