"""Messages between the parent and a worker over a socket pair: for all that is rare. Steps go through shared memory."""

import pickle
import socket
from typing import Any

_LENGTH = 8


class Channel:
    """Whole pickled objects over one end of a socket pair.

    Both ends belong to processes of one program, so the pickles are as trustworthy as the program itself.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Sends one object.

        Raises:
            TimeoutError: the other side did not take it within `timeout` seconds.
            ConnectionError: the other side is gone.
        """
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._socket.settimeout(timeout)
        self._socket.sendall(len(data).to_bytes(_LENGTH, "little") + data)

    def receive(self, timeout: float | None = None) -> Any:
        """Waits for one object; a partly received one is kept for the next call.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            EOFError: the other side is gone.
        """
        self._socket.settimeout(timeout)
        self._fill(_LENGTH)
        size = _LENGTH + int.from_bytes(self._received[:_LENGTH], "little")
        self._fill(size)
        data = bytes(self._received[_LENGTH:size])
        del self._received[:size]
        return pickle.loads(data)

    def _fill(self, size: int) -> None:
        while len(self._received) < size:
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError("the other side closed the connection")
            self._received += data

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()
