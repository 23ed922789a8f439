"""The process around the app: the port is bound first, the model loads behind it, and SIGTERM drains.

Uvicorn's own answer to SIGTERM closes the door before the guests have left: new connections are refused at once. Ours
keeps the door open, answers new requests with 503, and closes it when the running ones have finished or the grace time
is over. A second signal cuts them short, with an error each; a third ends the process.

A client that sends nothing, or sends slowly, is waited for as long as the settings say, and no longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import weakref
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.replies import CONNECTION
from server.errors import SettingsError
from server.service import Phase, Service
from server.settings import Settings

logger = logging.getLogger(__name__)

CUTTING_SIGNAL = 2
OFFER = re.compile(rb"(\r\n)upgrade:", re.IGNORECASE)
LONGEST_HEAD = 65_536  # bytes
LINE_ENDS, HEAD_ENDS = b"\r\n", b"\r\n\r\n"
KEEP_ALIVE_S = 75  # a client may hold a connection between two requests for longer than uvicorn's 5 s
CLOSING_S = 3.0  # after the drain: for the last bytes to leave


def bind(host: str, port: int) -> socket.socket:
    """Raises: SettingsError where the address can't be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise SettingsError(f"cannot bind {host}:{port}: {reason}; choose another --host or --port") from error


class Http1(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, deaf to offers of another protocol and not endlessly patient.

    Java's HttpClient offers HTTP/2 with every plain request, as curl --http2 does. A server may ignore it (RFC 9110,
    7.8); the parser would stop there instead, and lose the body.

    uvicorn waits for a head for ever, and takes one of any length. Here a connection ends when a head takes longer than
    `read_timeout_s` or has more than `LONGEST_HEAD` bytes, and when a body whose answer is out already does not end.
    (While its answer is not out the route waits for a body, and says 408.)
    """

    read_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._held = b""  # the last line of a head that is still coming
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # uvloop writes at once then, instead of queueing: a tenth more tokens/s
        self._set_alarm(self.read_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._alarm is None:  # the connection was idle
                self._set_alarm(self.read_timeout_s)
            head, end, rest = (self._held + data).partition(HEAD_ENDS)
            complete = len(head)
            if not end:
                complete = head.rindex(LINE_ENDS) if LINE_ENDS in head else complete - head.endswith(b"\r")
            self._head_bytes += complete
            if max(self._head_bytes, len(head)) > LONGEST_HEAD:
                self.send_400_response(f"The head has more than {LONGEST_HEAD} bytes.")
                return
            self._held = head[complete:]
            data = OFFER.sub(rb"\1x-offer:", head[:complete]) + end + rest
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._set_alarm(self.read_timeout_s)
        super().on_headers_complete()
        connection = {"abort": self.transport.abort, "write": partial(self._write_part, weakref.ref(self.cycle))}
        self.scope["extensions"] = {CONNECTION: connection}  # type: ignore[dict-item]  # typed for ASGI's own alone

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0
        self._unset_alarm()
        if self.cycle.response_complete:  # so nothing else would end an idle connection
            self._set_alarm(self.timeout_keep_alive)

    def _write_part(self, cycle: weakref.ref[RequestResponseCycle], content: bytes) -> bool:
        """Write a part of a chunked answer as its `send` would, past the layers around that. False: `send` has to."""
        answer = cycle()  # whose scope has this method: to hold it would be a circle, which only a collection finds
        if answer is None:
            return False
        begun = answer.response_started and answer.chunked_encoding and not answer.response_complete
        if not begun or not content or self.flow.write_paused or answer.disconnected:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(content), content))
        return True

    def _set_alarm(self, seconds: float) -> None:
        self._unset_alarm()
        self._alarm = self.loop.call_later(seconds, self._give_up)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give_up(self) -> None:
        self._alarm = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        elif self._in_head:  # the next request, half sent: the answer before it is still on its way
            self._set_alarm(self.read_timeout_s)


def patient(read_timeout_s: float) -> type[Http1]:
    """`Http1` that waits for so long."""
    return type("Http1", (Http1,), {"read_timeout_s": read_timeout_s})


class Server(uvicorn.Server):
    """uvicorn with a drain between the signal and the shutdown."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = grace_s
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > CUTTING_SIGNAL:
            self.should_exit = self.force_exit = True
            return
        if self._draining is not None:
            self._draining.cancel()
        grace_s = self._grace_s if self._signals < CUTTING_SIGNAL else 0.0
        self._draining = asyncio.get_running_loop().create_task(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        try:
            await self._service.drain(grace_s)
        except Exception:
            logger.exception("the drain failed")
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.phase is Phase.FAILED:
            return True
        return await super().on_tick(counter)


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal. Raises: SettingsError where the port or the model can't be had."""
    listener = bind(settings.host, settings.port)
    service: Service = app.state.service
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d, loading %s", f"[{host}]" if ":" in host else host, port, service.model_name)
    config = uvicorn.Config(
        app,
        http=patient(settings.read_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(CLOSING_S),
    )
    Server(config, service, settings.grace_s).run(sockets=[listener])
    if service.phase is Phase.FAILED and service.failure is not None:
        raise service.failure
    # A thread that comes back from native code into an interpreter that has ended would abort it.
    if service.engine is not None and service.engine.running:
        logging.shutdown()
        os._exit(0)
