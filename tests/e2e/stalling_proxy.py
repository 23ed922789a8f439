"""A TCP proxy on loopback that can be made to stall, to cut and to heal, as a network does: in a thread of its own."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Any


class StallingProxy:
    """Forwards to `port`. Whoever connects while the network is cut gets no further than to the proxy."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._poller = selectors.DefaultSelector()
        self._poller.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._left_open: list[socket.socket] = []  # so that their other side hears of no end
        self._lock = threading.Lock()
        self._stalled = self._ended = False
        self.forwarded = 0  # bytes
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> StallingProxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended = True
        self._thread.join()
        self._listener.close()
        self._poller.close()
        for each in [*self._pairs, *self._left_open]:
            each.close()

    def stall(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        self._stalled = True

    def cut(self) -> None:
        """Connections end for those who made them; the other side isn't told, as behind a router that lost power."""
        with self._lock:
            for near in [each for each in self._pairs if each.getsockname()[1] == self.port]:
                self._poller.unregister(near)
                far = self._pairs.pop(near)
                self._pairs.pop(far)
                self._poller.unregister(far)
                near.close()
                self._left_open.append(far)

    def heal(self) -> None:
        self._stalled = False

    def _work(self) -> None:
        while not self._ended:
            ready = self._poller.select(0.05)
            if self._stalled:
                threading.Event().wait(0.05)
                continue
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._pairs:
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except ConnectionRefusedError:  # whoever it is for isn't there yet
            near.close()
            return
        self._pairs[near], self._pairs[far] = far, near
        for each in (near, far):
            self._poller.register(each, selectors.EVENT_READ)

    def _forward(self, one: Any) -> None:
        other = self._pairs[one]
        try:
            data = one.recv(65536)
        except OSError:
            data = b""
        if data:
            other.sendall(data)
            self.forwarded += len(data)
            return
        for each in (one, other):
            self._poller.unregister(each)
            self._pairs.pop(each)
            each.close()
