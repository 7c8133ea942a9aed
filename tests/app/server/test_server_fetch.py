"""Images behind URLs: nothing of a private network is ever asked, however the URL is written or redirected."""

import io
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import pytest
from PIL import Image

from mmvl.app.server import ServerSettings
from mmvl.app.server.fetch import Fetcher, is_public

PUBLIC = "93.184.216.34"


class Host:
    """A web server of this machine that counts who asks; `answers` maps a path to (status, headers, body or chunks)."""

    def __init__(self):
        self.hits, self.answers, self.seen = 0, {}, []
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                host.hits += 1
                host.seen.append((self.headers["host"], self.path))
                status, headers, body = host.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                chunks = [body] if isinstance(body, bytes) else body
                if isinstance(body, bytes) and "content-length" not in headers:
                    headers = headers | {"content-length": str(len(body))}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("connection", "close")
                self.end_headers()
                try:
                    for chunk in chunks:
                        self.wfile.write(chunk)
                        self.wfile.flush()
                except OSError:
                    pass  # the client has had enough

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def host():
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


class Backend(httpcore.AsyncNetworkBackend):
    """Connects to this machine's web server where a public address is asked for; notes the addresses."""

    def __init__(self, port: int):
        self.port, self.addresses, self._real = port, [], httpcore.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.addresses.append(host)
        return await self._real.connect_tcp("127.0.0.1", self.port, timeout, local_address, socket_options)

    async def sleep(self, seconds):
        await self._real.sleep(seconds)


class Names:
    """A DNS that counts; each name's answers are given one list after the other, the last one for ever."""

    def __init__(self, **answers):
        self.asked, self.answers = [], answers

    async def __call__(self, host, port):
        self.asked.append(host)
        answers = self.answers.get(host.partition(".")[0], [[host]])
        return answers[min(self.asked.count(host), len(answers)) - 1]


ALLOWED = ("good.example", "other.example", "bad.example", "127.0.0.1", "localhost")


@pytest.fixture
def fetching(serve, tiny, host, asked):
    """fetching(names, backend=None, **settings) -> a context with ask(url) -> response."""

    @contextmanager
    def opened(names=None, backend=None, **settings):
        settings = {"media_hosts": ALLOWED + (f"127.0.0.1:{host.port}", f"localhost:{host.port}")} | settings
        fetcher = Fetcher(ServerSettings(**settings), resolve=names, backend=backend)
        with serve(tiny, fetcher, **settings) as server:

            def ask(url: str):
                return server.post(json=asked("?", {"type": "image_url", "image_url": {"url": url}}))

            yield ask

    return opened


@pytest.fixture(scope="module")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_by_default_nothing_is_fetched(fetching, host):
    with fetching(media_hosts=()) as ask:
        answer = ask(f"http://127.0.0.1:{host.port}/x.png")
        assert answer.status_code == 400 and "data: URLs only" in answer.json()["error"]["message"]
    assert host.hits == 0


PRIVATE = [
    "http://127.0.0.1:{port}/x.png",
    "http://localhost:{port}/x.png",
    "http://127.0.0.1/x.png",
    "http://[::1]:{port}/x.png",
    "http://[::ffff:127.0.0.1]:{port}/x.png",
    "http://2130706433:{port}/x.png",
    "http://0x7f000001:{port}/x.png",
    "http://0177.0.0.1:{port}/x.png",
    "http://127.1:{port}/x.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://good.example@127.0.0.1:{port}/x.png",
    "http://127.0.0.1:{port}\\@good.example/x.png",
    "http://good.example\\@127.0.0.1:{port}/x.png",
    "http://good.example#@127.0.0.1:{port}/x.png",
    "http://good.example:99999/x.png",
    "http://good.example:{port}/x.png",
    "http://sub.good.example/x.png",
    "http://good.example./x.png",
    "http://good.example.evil.example/x.png",
    "http://g\u043e\u043ed.example/x.png",
    "http://good.example /x.png",
    "http://good.example\t/x.png",
    "http://good.example\r\nHost: evil/x.png",
    "http:/good.example/x.png",
    "//good.example/x.png",
    "file:///etc/passwd",
    "ftp://good.example/x.png",
    "gopher://127.0.0.1:{port}/x",
    "unix:///var/run/docker.sock",
    "/etc/passwd",
    "",
]


def test_private_and_odd_urls(fetching, host):
    with fetching() as ask:  # the machine's own resolver
        for url in PRIVATE:
            answer = ask(url.format(port=host.port))
            assert answer.status_code in (400, 422), url
            assert len(answer.content) < 4096 and "127" not in answer.text and "example" not in answer.text
    with fetching(Names(good=[["10.0.0.5"]])) as ask:
        assert ask("http://good.example/x.png").status_code == 400
    assert host.hits == 0


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.1 198.18.0.1 "
    "224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 fe80::1 fe80::1%eth0 "
    "fc00::1 ff02::1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1:: 2001::1 2001:db8::1".split(),
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_addresses_that_are_public():
    assert all(map(is_public, (PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:93.184.216.34")))


def test_an_image_is_fetched_from_the_address_that_was_checked(fetching, host, png):
    host.answers["/a/x.png?size=1"] = (200, {}, png)
    names, backend = Names(good=[[PUBLIC], ["127.0.0.1"]]), Backend(host.port)
    with fetching(names, backend) as ask:
        answer = ask("http://GOOD.example/a/x.png?size=1")
        assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert names.asked == ["good.example"], "asked once: a second answer could be another (DNS rebinding)"
    assert backend.addresses == [PUBLIC] and host.seen == [("good.example", "/a/x.png?size=1")]


def test_one_private_address_among_public_ones_is_enough(fetching, host):
    names, backend = Names(good=[[PUBLIC, "10.0.0.1"]]), Backend(host.port)
    with fetching(names, backend) as ask:
        assert ask("http://good.example/x.png").status_code == 400
    assert host.hits == 0 and not backend.addresses


@pytest.mark.parametrize(
    ("target", "status", "hits"),
    [
        ("http://other.example/end.png", 200, 2),
        ("/end.png", 200, 2),
        ("http://unlisted.example/end.png", 400, 1),
        ("http://bad.example/end.png", 400, 1),  # on the list, but of a private network
        ("http://127.0.0.1:{port}/end.png", 400, 1),
        ("http://169.254.169.254/latest/meta-data/", 400, 1),
        ("file:///etc/passwd", 400, 1),
        ("http://good.example/start", 400, 4),  # for ever
    ],
)
def test_redirects_are_checked_like_the_first(fetching, host, png, target, status, hits):
    host.answers["/start"] = (302, {"location": target.format(port=host.port)}, b"")
    host.answers["/end.png"] = (200, {}, png)
    names, backend = Names(good=[[PUBLIC]], other=[["1.1.1.1"]], bad=[["192.168.0.1"]]), Backend(host.port)
    with fetching(names, backend) as ask:
        assert ask("http://good.example/start").status_code == status
    assert host.hits == hits
    assert set(backend.addresses) <= {PUBLIC, "1.1.1.1"}


def endless():
    while True:
        yield b"x" * 65536


def dripping():
    for _ in range(100):
        time.sleep(0.1)
        yield b"x"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, {"content-length": str(10**9)}, [b"x"]), 413),
        ((200, {}, endless()), 413),
        ((200, {}, dripping()), 422),
        ((200, {"content-encoding": "gzip"}, b"x"), 422),
        ((404, {}, b"secret page"), 422),
        ((500, {}, b"secret page"), 422),
        ((200, {}, b"secret page, no image"), 422),
        ((200, {}, b""), 422),
    ],
)
def test_what_does_not_arrive_as_an_image(fetching, host, answer, status):
    host.answers["/x"] = answer
    names, backend = Names(good=[[PUBLIC]]), Backend(host.port)
    with fetching(names, backend, max_image_mb=1, fetch_seconds=0.6) as ask:
        start = time.monotonic()
        answer = ask("http://good.example/x")
        assert time.monotonic() - start < 3
        assert answer.status_code == status and "secret" not in answer.text and "good" not in answer.text


def test_a_host_that_cannot_be_reached(fetching):
    async def none(host, port):
        raise OSError("no such host, says a resolver with a path /etc/resolv.conf")

    with fetching(none) as ask:
        answer = ask("http://good.example/x")
        assert answer.status_code == 422 and "resolv" not in answer.text
