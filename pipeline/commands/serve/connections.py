"""Connections of the server: their number, and the time that a client may take."""

import asyncio
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 100  # connections: each is an open file, of which a process may have 256 on some systems
BACKLOG = 32  # connections that wait to be accepted; so many more are open until those over MOST are closed
PATIENCE = 10.0  # seconds for a client to send the headers of a request, and to end a body after its response


class Connection(H11Protocol):
    """A connection that is closed if the client is slow, or if there are too many.

    uvicorn limits the requests, but neither the connections that wait for one nor the time for its headers.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection. If there are too many, close the oldest that waits for its client."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > MOST:
            waiting = [each for each in self.connections if isinstance(each, Connection) and each.waits_for_client]
            min(waiting, key=lambda each: each._since).abort()  # this connection is one of them
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP, and end the request in which it is: uvicorn would answer that one as well."""
        with suppress(h11.LocalProtocolError):  # a response has begun, or must not have a body
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()

    def shutdown(self) -> None:
        """Close the connection as the server stops, unless a response is being computed."""
        with suppress(h11.LocalProtocolError):  # invalid HTTP has ended it
            super().shutdown()
        if self.waits_for_client:
            self.abort()

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send or to receive something before the connection can go on."""
        sending = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return sending or self.flow.write_paused or self.transport.is_closing()

    def abort(self) -> None:
        """Close the connection at once."""
        self.connections.discard(self)  # which the loop does later, after it has accepted others
        self.transport.abort()

    def _watch(self) -> None:
        """Start the deadline when only the client can go on, and stop it when the headers of a request are complete."""
        if self.conn.our_state not in (h11.IDLE, h11.DONE) and not self.transport.is_closing():
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE, self.abort)
