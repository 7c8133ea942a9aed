"""Images behind http(s) URLs: from allowed hosts only, and never from a private network.

A host's name is resolved once, every address it has must be a public one, and the connection goes to that address (so
a second answer of the DNS changes nothing). Redirects are followed by hand and checked like the first URL. Proxies,
cookies and credentials of this machine are not used.

Followed: the fixes and regression tests of CVE-2025-6242, GHSA-v359-jj2v-j536 (backslash before @) and their kin.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import urljoin, urlsplit

import httpcore

from mmvl.app.server.errors import ApiError
from mmvl.app.server.settings import MIB, ServerSettings

MAX_REDIRECTS = 3
MAX_URL = 4096
_PORTS = {"http": 80, "https": 443}
# RFC 3986's characters only: what parsers disagree about (backslashes, blanks, controls, other scripts) is refused.
_URL = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?([/?][A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]*)?", re.IGNORECASE)
# Public by IANA's registry, but they stand for another address (NAT64, 6to4, Teredo) that may be private.
_TRANSLATED = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]

Resolver = Callable[[str, int], Awaitable[list[str]]]


class Refused(Exception):
    """Why a URL is not fetched; in words for the client."""


class Fetcher:
    """Fetches images. resolve(host, port) -> addresses; backend: opens connections to addresses (both for tests)."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        resolve: Resolver | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ):
        self._hosts = frozenset(settings.media_hosts)
        self._seconds, self._max_bytes = settings.fetch_seconds, settings.max_image_mb * MIB
        self._resolve = resolve or _resolve
        self._backend = backend or httpcore.AnyIOBackend()

    async def fetch(self, url: str) -> bytes:
        """The body behind `url`. Raises ApiError: 400 where it is not allowed, 422 where nothing usable came."""
        try:
            async with asyncio.timeout(self._seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    body, location = await self._get(url)
                    if location is None:
                        return body
                    url = urljoin(url, location)
            raise Refused("it redirects too often")
        except Refused as error:
            raise ApiError(400, f"An image's URL cannot be used: {error}.", code="invalid_image_url") from None
        except TimeoutError:
            raise _unusable(f"it did not arrive within {self._seconds:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            raise _unusable("the connection failed") from None

    async def _get(self, url: str) -> tuple[bytes, str | None]:
        """One exchange: the body, or where a redirect points to."""
        scheme, host, port, target = self._allowed(url)
        address = _public(await self._resolve(host, port))
        shown_port = "" if port == _PORTS[scheme] else f":{port}"
        headers = {"host": host + shown_port, "accept": "image/*", "accept-encoding": "identity", "user-agent": "mmvl"}
        pool = httpcore.AsyncConnectionPool(network_backend=_Pinned(self._backend, address), max_connections=1)
        where = httpcore.URL(scheme=scheme, host=host, port=port, target=target)
        async with pool, pool.stream("GET", where, headers=headers) as response:
            answered = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and "location" in answered:
                return b"", answered["location"]
            if response.status != 200:
                raise _unusable(f"its server answered {response.status}")
            if answered.get("content-encoding", "identity").lower() != "identity":
                raise _unusable("it came compressed")
            declared = answered.get("content-length", "")
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise self._too_large()
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._max_bytes:
                    raise self._too_large()
            return bytes(body), None

    def _allowed(self, url: str) -> tuple[str, str, int, str]:
        """(scheme, host, port, target) of a URL that may be fetched."""
        if not self._hosts:
            raise Refused("this server takes images as data: URLs only")
        if len(url) > MAX_URL or not _URL.fullmatch(url):
            raise Refused("only plain http and https URLs without a user name are fetched")
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, int(parts.netloc.partition(":")[2] or 0)
        port = port or _PORTS[scheme]
        name = host if port == _PORTS[scheme] else f"{host}:{port}"
        if name not in self._hosts:
            raise Refused("its host is not on this server's list")
        return scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"An image behind a URL is larger than {self._max_bytes // MIB} MiB.")


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to one address whatever host it is asked for; TLS still checks the host's name."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, address: str):
        self._backend, self._address = backend, address

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        return await self._backend.connect_tcp(self._address, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [answer[4][0] for answer in answers]


def _public(addresses: Iterable[str]) -> str:
    """The first address, if all are public."""
    addresses = list(addresses)
    if not addresses or not all(is_public(address) for address in addresses):
        raise Refused("its host is not on the public internet")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also if it stands for another one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _unusable(why: str) -> ApiError:
    return ApiError(422, f"An image behind a URL cannot be used: {why}.", code="invalid_image_url")
