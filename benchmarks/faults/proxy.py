"""A TCP proxy that can be cut, to simulate network faults."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

__all__ = ["Proxy"]

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with zero time: closing sends a reset instead of an orderly end."""


class Proxy:
    """Listen on a free port and pass bytes on to ``host:port``; `cut` closes every connection at
    once, `stall` holds bytes back.

    A Kafka client continues at the address that the broker advertises: start the broker with this
    proxy's port.
    """

    def __init__(self, target_port: int = 0) -> None:
        self.target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._refuse = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def cut(self, *, refuse: bool = False, reset: bool = False) -> None:
        """Close every connection; with ``refuse=True`` new ones too, until `mend`; with
        ``reset=True`` by a reset."""
        if refuse:
            self._refuse.set()
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            _end(end)

    def stall(self) -> None:
        """Accept all bytes and pass none on, until `mend`: a network that drops packets."""
        self._flowing.clear()

    def mend(self) -> None:
        """Accept connections again, and pass on the bytes held back."""
        self._refuse.clear()
        self._flowing.set()

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self._flowing.set()
        self.cut(refuse=True)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            pumps = [
                threading.Thread(target=_pump, args=(*pair, self._flowing), daemon=True)
                for pair in ((near, far), (far, near))
            ]
            for pump in pumps:
                pump.start()
            threading.Thread(
                target=self._close_after, args=(pumps, near, far), daemon=True
            ).start()

    def _close_after(self, pumps: list[threading.Thread], *ends: socket.socket) -> None:
        for pump in pumps:
            pump.join()
        with self._lock:
            self._open -= set(ends)
            for end in ends:
                end.close()


def _pump(source: socket.socket, target: socket.socket, flowing: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            flowing.wait()
            target.sendall(data)
    for end in (source, target):
        _end(end)


def _end(end: socket.socket) -> None:
    """Wake the reader of a socket; end the other side in order, unless it is to be reset on
    close."""
    with contextlib.suppress(OSError):
        resets = end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(RESET)) == RESET
        end.shutdown(socket.SHUT_RD if resets else socket.SHUT_RDWR)
