"""Fetching the npm packages that hold emoji in further drawing styles: over HTTPS, so that npm itself is not needed.

Versions are pinned, and a tarball is unpacked only if its SHA-512 is the one that the registry states for that version.
"""

import base64
import hashlib
import io
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

REGISTRY = "https://registry.npmjs.org"  # or what npm_config_registry says, as npm itself has it

# name: (version, integrity: the tarball's SHA-512 in base64). Licences: see the model card of mmvl-tiny.
PACKAGES = {
    "@iconify-json/emojione": (
        "1.2.3", "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg=="),
    "@iconify-json/emojione-monotone": (
        "1.2.1", "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA=="),
    "@iconify-json/emojione-v1": (
        "1.2.3", "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww=="),
    "@iconify-json/fluent-emoji": (
        "1.2.7", "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA=="),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6", "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    "@iconify-json/fluent-emoji-high-contrast": (
        "1.2.6", "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w=="),
    "@iconify-json/fxemoji": (
        "1.2.2", "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ=="),
    "@iconify-json/noto-v1": (
        "1.2.5", "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
    "@iconify-json/openmoji": (
        "1.2.29", "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ=="),
    "@iconify-json/streamline-emojis": (
        "1.2.4", "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A=="),
    "@iconify-json/twemoji": (
        "1.2.5", "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
    "@fontsource/noto-emoji": (
        "5.3.2", "N9CSzXJB04AVWYvFbuBgL2Dq964Zo91th/uOu/QLSuWBYuL9FWXGcEo6ZNwc/IJ7vmpm8KHaIKD7jF8pYm4taw=="),
}  # fmt: skip


def fetch_npm(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    packages: Iterable[str] = tuple(PACKAGES),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Unpack `packages` of PACKAGES into out_dir/@scope/name, as npm has them in node_modules; returns the folders.

    Those already there are left alone. `count`, `seed` and `workers` change nothing. OSError where the registry cannot
    be reached or refuses, ValueError for an unknown package and for a tarball that is not the pinned one.
    """
    packages = list(packages)
    folders = []
    for name in packages:
        if name not in PACKAGES:
            raise ValueError(f"{name}: no version of this npm package is pinned; there are: {', '.join(PACKAGES)}")
        folder = Path(out_dir) / name
        if not folder.exists():
            _unpack(_download(name), folder)
        folders.append(folder)
        if progress:
            progress(len(folders), len(packages))
    return folders


def _download(name: str) -> bytes:
    """The tarball of a package, as its integrity says."""
    version, integrity = PACKAGES[name]
    registry = os.environ.get("npm_config_registry") or REGISTRY
    if urlsplit(registry).scheme not in ("http", "https"):
        raise ValueError(f"npm_config_registry={registry}: an http:// or https:// address is wanted")
    url = f"{registry.rstrip('/')}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: the registry answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"{url} cannot be fetched: {error.reason}") from error
    came = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if came != integrity:
        raise ValueError(f"{url}: its SHA-512 is {came}, not {integrity}: not unpacked; try again, or another registry")
    return data


def _unpack(tarball: bytes, folder: Path) -> None:
    """The contents of the tarball's only folder into `folder`, which is there whole or not at all."""
    work = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for member in archive:  # Python 3.11.2 of Debian 12 has no filters yet
            if not (path := (work / member.name).resolve()).is_relative_to(work.resolve()):
                raise ValueError(f"{folder.name}: its tarball has {member.name}, which is outside: not unpacked")
            if member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    [content] = work.iterdir()
    content.rename(folder)
    work.rmdir()
