"""Shards from a web server: fetched once into a directory, held to their manifest, never through a shell.

Only http:// and https:// are taken. WebDataset's own opener would run a program for `pipe:` and `ssh:` addresses.
"""

import fcntl
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from mmvl.data.manifest import FILE, load_manifest
from mmvl.data.shards import ShardError

CHUNK = 1 << 20
TRIES = 3


def fetch_shards(url: str, dir: str | Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Fetch the folder of shards at `url` (it must hold a manifest.json) into `dir`; return the shards' paths.

    What is there with the right size is left alone, so that an interrupted fetch goes on with the shard that it was at;
    several processes may call this at once. progress(done, total) counts bytes. Every shard fetched has the SHA-256 of
    the manifest.

    Raises:
        ValueError: not an http(s) address. OSError: the server cannot be reached or refuses. ShardError: what came is
            not as the manifest says.
    """
    base, dir = checked_address(url), Path(dir)
    dir.mkdir(parents=True, exist_ok=True)
    with open(dir / ".fetch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (dir / FILE).exists():
            _download(urljoin(base, FILE), dir / FILE, None, None)
        shards = load_manifest(dir)["shards"]
        total = done = sum(shard["bytes"] for shard in shards)
        wanted = [s for s in shards if not _is_there(dir / _plain(s["name"], url), s["bytes"])]
        done -= sum(shard["bytes"] for shard in wanted)
        for shard in wanted:
            if progress:
                progress(done, total)
            _download(urljoin(base, shard["name"]), dir / shard["name"], shard["bytes"], shard["sha256"])
            done += shard["bytes"]
        if progress:
            progress(done, total)
    return [dir / shard["name"] for shard in shards]


def checked_address(url: str) -> str:
    """The address of a folder of shards, with a slash at its end. Raises ValueError if it is none on the web."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url}: shards are fetched from http:// and https:// addresses only")
    if parts.query or parts.fragment:
        raise ValueError(f"{url}: name the folder of the shards, without ? and #")
    return url if url.endswith("/") else url + "/"


def _plain(name: str, url: str) -> str:
    """The manifest is a stranger's: its names must stay inside the directory."""
    if name != os.path.basename(name) or not name.endswith(".tar") or ":" in name:
        raise ShardError(f"{url}: the manifest names '{name}', which is not a file name of a shard")
    return name


def _is_there(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """A redirection must not lead from the web to a local file."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        if urlsplit(new_url).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {new_url}, which is not http(s)")
        return super().redirect_request(request, file, code, message, headers, new_url)


def _download(url: str, path: Path, size: int | None, digest: str | None) -> None:
    part = path.with_name(path.name + ".part")
    opener = urllib.request.build_opener(_HttpOnly)
    for attempt in range(1, TRIES + 1):
        try:
            found, count = hashlib.sha256(), 0
            with opener.open(url, timeout=60) as response, open(part, "wb") as file:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    found.update(chunk)
                    count += len(chunk)
            if size is not None and (count != size or found.hexdigest() != digest):
                raise ShardError(f"{url}: {count} bytes came, which are not the {size} of the manifest")
            if size is None:
                json.loads(part.read_bytes())
            os.replace(part, path)
            return
        except urllib.error.HTTPError as error:
            part.unlink(missing_ok=True)
            if error.code < 500 or attempt == TRIES:
                raise OSError(f"{url}: the server says {error.code} {error.reason}") from None
        except (ValueError, OSError) as error:
            part.unlink(missing_ok=True)
            if attempt == TRIES:
                if isinstance(error, ShardError):
                    raise
                raise OSError(f"{url} cannot be fetched: {getattr(error, 'reason', error)}") from None
        time.sleep(0.2 * attempt)
