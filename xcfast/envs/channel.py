"""Messages between the parent and a worker over a socket pair, for everything rare. Steps use shared memory."""

import pickle
import socket
from typing import Any

_LENGTH = 8


class Channel:
    """One end of a socket pair that carries whole pickled objects.

    Both ends belong to processes of one program, so the pickles are as trustworthy as the program itself.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()

    @staticmethod
    def pack(message: Any) -> bytes:
        """Returns an object in the form that `send_packed` takes. Raises whatever pickle raises."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        return len(data).to_bytes(_LENGTH, "little") + data

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Packs and sends an object. Raises as `pack` and `send_packed` do."""
        self.send_packed(self.pack(message), timeout)

    def send_packed(self, packed: bytes, timeout: float | None = None) -> None:
        """Sends what `pack` returned.

        Raises:
            TimeoutError: The other side did not take it within `timeout` seconds.
            ConnectionError: The other side is gone.
        """
        self._socket.settimeout(timeout)
        self._socket.sendall(packed)

    def receive(self, timeout: float | None = None) -> Any:
        """Waits for an object. A partly received object is kept for the next call.

        Raises:
            TimeoutError: No object came within `timeout` seconds.
            EOFError: The other side is gone.
            UnpicklingError: The object cannot be unpickled here. The next call receives the next one.
        """
        self._socket.settimeout(timeout)
        self._fill(_LENGTH)
        size = _LENGTH + int.from_bytes(self._received[:_LENGTH], "little")
        self._fill(size)
        data = bytes(self._received[_LENGTH:size])
        del self._received[:size]
        try:
            return pickle.loads(data)
        except Exception as error:  # whatever the class of an object in it does
            raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error

    def _fill(self, size: int) -> None:
        while len(self._received) < size:
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError("the other side closed the connection")
            self._received += data

    def has_message(self) -> bool:
        """Returns whether `receive` would find something: data, or the end of the connection."""
        self._socket.settimeout(0)
        try:
            return bool(self._received) or self._socket.recv(1, socket.MSG_PEEK) is not None
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()
