"""npm packages: fetched by pinned version from a registry, and refused if they are not what was pinned."""

import base64
import hashlib
import io
import tarfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from mmvl.data import npm

NAME = "@iconify-json/fxemoji"


def tarball(name: str = "package/icons.json") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch):
    """{path: what is answered}, and what was asked for, of a registry on this machine."""
    files, asked = {}, []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Registry)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    yield files, asked
    server.shutdown()
    server.server_close()


def pin(monkeypatch, data: bytes) -> str:
    integrity = base64.b64encode(hashlib.sha512(data).digest()).decode()
    monkeypatch.setitem(npm.PACKAGES, NAME, ("1.0.0", integrity))
    return f"/{NAME}/-/fxemoji-1.0.0.tgz"


def test_a_package_is_fetched_once(registry, monkeypatch, tmp_path):
    files, asked = registry
    data = tarball()
    files[pin(monkeypatch, data)] = data
    for _ in range(2):
        assert npm.fetch_npm(tmp_path, packages=[NAME]) == [tmp_path / NAME]
    assert asked == list(files)
    assert [p.name for p in (tmp_path / "@iconify-json").iterdir()] == ["fxemoji"]
    assert (tmp_path / NAME / "icons.json").read_text() == "{}"


def test_another_tarball_is_refused(registry, monkeypatch, tmp_path):
    files, _ = registry
    files[pin(monkeypatch, tarball())] = tarball("package/other.json")
    with pytest.raises(ValueError, match="fxemoji-1.0.0.tgz: its SHA-512 is .* not unpacked"):
        npm.fetch_npm(tmp_path, packages=[NAME])
    assert not (tmp_path / NAME).exists()


def test_a_tarball_stays_in_its_folder(registry, monkeypatch, tmp_path):
    files, _ = registry
    data = tarball("../../outside.json")
    files[pin(monkeypatch, data)] = data
    with pytest.raises(ValueError, match="fxemoji: its tarball has ../../outside.json, which is outside"):
        npm.fetch_npm(tmp_path / "in", packages=[NAME])
    assert not list(tmp_path.rglob("outside.json"))


def test_what_cannot_be_fetched_is_said_clearly(registry, monkeypatch, tmp_path):
    with pytest.raises(OSError, match="fxemoji.*: the registry answers 404"):
        npm.fetch_npm(tmp_path, packages=[NAME])
    with pytest.raises(ValueError, match="left-pad: no version"):
        npm.fetch_npm(tmp_path, packages=["left-pad"])
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(ValueError, match="http:// or https://"):
        npm.fetch_npm(tmp_path, packages=[NAME])
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    with pytest.raises(OSError, match="cannot be fetched"):
        npm.fetch_npm(tmp_path, packages=[NAME])


def test_every_integrity_is_a_sha512():
    assert all(len(base64.b64decode(integrity, validate=True)) == 64 for _, integrity in npm.PACKAGES.values())
