"""HTTP as uvicorn speaks it over h11, which bounds the size of a request's head; here its time is bounded too, and what
is no HTTP at all is told in the shape of every other failure."""

import asyncio
import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmvl.app.server.errors import ApiError

HEAD_SECONDS = 30.0  # for the line and the headers of a request, from the first byte (or the connection) on
_LINGER_SECONDS = 2.0


class Http(H11Protocol):
    """One connection. A client that never finishes its headers would hold it, and a file of this process, for ever."""

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None
    _over = False  # told that it is no HTTP; what still comes is not looked at

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if not self._over:
            super().data_received(data)
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls, while it handles h11's error, for bytes that are no HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way: it cannot be taken back
            self.transport.close()
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        words = "The request's headers are too large." if status == 431 else "This is not a valid HTTP request."
        body = json.dumps(ApiError(status, words, code="invalid_http").body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        if self.cycle is not None and not self.cycle.response_complete:  # it waits for a body that will not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Closed with something unread, the connection would be reset, and the answer lost on the way.
        self._over = True
        self._stop_waiting()
        self.transport.write_eof()
        self._late = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _wait_for_head(self) -> None:
        if self._over:
            return
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
