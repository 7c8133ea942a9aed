"""What every request passes before anything looks at it: Host and Origin headers, the key, its body's size and pace.

Pure ASGI, around the whole application, so that a page mounted beside the API is guarded by the same rules.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable

from mmvl.app.server.errors import ApiError
from mmvl.app.server.gate import Budget, Lease
from mmvl.app.server.settings import MIB, ServerSettings

OPEN_PATH = "/health"
_READING = ("GET", "HEAD", "OPTIONS")  # change nothing; whether a page may see the answer is CORS's business
LEASE = "mmvl.body_lease"  # of the scope: where a handler finds what its body holds of the budget
_MAX_DISCARDED_BODIES, _DISCARD_SECONDS = 4, 10.0


class Guard:
    """ASGI middleware. bodies: bytes of bodies that requests hold at one time; refused: told the status of refusals."""

    def __init__(self, app, settings: ServerSettings, bodies: Budget, refused: Callable[[int], None]):
        self._app, self._bodies, self._refused = app, bodies, refused
        self._hosts = frozenset(host.lower() for host in settings.checked_hosts)
        self._origins = frozenset(origin.lower() for origin in settings.allow_origins)
        self._max_body, self._body_seconds = settings.max_body_mb * MIB, settings.body_seconds
        self._keys = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        headers = {name: value for name, value in scope["headers"]}
        refusal = None if scope["path"] == OPEN_PATH else self._refusal(headers, scope.get("method", "GET"))
        if refusal is None and scope["type"] == "http" and scope["path"] != OPEN_PATH:
            refusal = self._body_refusal(headers)
        if refusal is not None:
            self._refused(refusal.status)
            if scope["type"] == "http":
                await self._discard(receive, headers)
            return await _refuse(refusal, scope, send)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = _Body(receive, self._bodies.lease(), self._max_body, self._body_seconds)
        started = False

        async def send_ours(message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if body.refusal is not None:
                    return
                started = True
                nosniff = (b"x-content-type-options", b"nosniff")
                message = message | {"headers": [*message.get("headers", ()), nosniff]}
            if started:
                await send(message)

        try:
            await self._app(scope | {LEASE: body.lease}, body.receive, send_ours)
        except _BodyRefused:
            pass  # told below
        finally:
            body.lease.release()
        if body.refusal is not None and not started:
            self._refused(body.refusal.status)
            if not body.over:
                await self._discard(receive, headers)
            await _refuse(body.refusal, scope, send)

    def _refusal(self, headers: dict[bytes, bytes], method: str) -> ApiError | None:
        """Why someone with these headers is not answered."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if self._hosts and name not in self._hosts:
            return ApiError(403, "This server does not answer under that Host name.", code="host_not_allowed")
        # Browsers send forms of any page (an upload is one) without asking first, with the key that they know.
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        own = origin.partition("://")[2] == host
        if origin and method not in _READING and not own and not self._origins & {origin, "*"}:
            return ApiError(403, "Pages of that origin may not ask this server.", code="origin_not_allowed")
        if self._keys and not self._known(_key(headers.get(b"authorization", b""))):
            return ApiError(
                401, "An API key is needed: send it as 'Authorization: Bearer KEY'.", code="invalid_api_key"
            )
        return None

    def _body_refusal(self, headers: dict[bytes, bytes]) -> ApiError | None:
        declared = headers.get(b"content-length", b"0")
        return _too_large(self._max_body) if declared.isdigit() and int(declared) > self._max_body else None

    async def _discard(self, receive, headers: dict[bytes, bytes]) -> None:
        """Reads on for a while: a client that still sends would miss the answer."""
        declared, limit = headers.get(b"content-length", b"0"), _MAX_DISCARDED_BODIES * self._max_body
        if not declared.isdigit() or int(declared) > limit:
            return  # it would never end
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while size < limit:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return  # slower than we wait: the connection is closed on it

    def _known(self, key: bytes) -> bool:
        """Compares digests with all keys, always: neither length nor place of a difference shows in the time."""
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._keys) > 0


class _BodyRefused(Exception):
    """Ends the reading of a body; why is in `_Body.refusal`."""


class _Body:
    """A request's `receive` that counts, times and charges what arrives."""

    def __init__(self, receive, lease: Lease, limit: int, seconds: float):
        self._receive, self.lease, self._limit = receive, lease, limit
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self.over = False  # nothing more is to come, or to be waited for
        self.refusal: ApiError | None = None

    async def receive(self) -> dict:
        if self.over:  # what comes now is the client's leaving
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
            if message["type"] == "http.request":
                chunk, self.over = message.get("body", b""), not message.get("more_body", False)
                self._size += len(chunk)
                if self._size > self._limit:
                    raise _too_large(self._limit)
                self.lease.take(len(chunk))
            return message
        except TimeoutError:
            self.over = True
            self.refusal = ApiError(408, "The request's body did not arrive in time.", code="body_timeout")
        except ApiError as error:
            self.refusal = error
        raise _BodyRefused


async def _refuse(error: ApiError, scope, send) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = json.dumps(error.body()).encode()
    headers = error.headers() | {"content-type": "application/json", "content-length": str(len(body))}
    if error.status == 401:
        # A browser that opens a page beside the API asks its user for the key, as the password.
        headers["www-authenticate"] = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="mmvl"'
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit // MIB} MiB.", code="request_too_large")


def _key(authorization: bytes) -> bytes:
    """The key of a Bearer header, or the password of a Basic one; b"" without one."""
    kind, _, value = authorization.partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
