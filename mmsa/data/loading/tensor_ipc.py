"""Send a message with tensors to another process: through an anonymous file (memfd) whose
descriptor is passed over a socket.

The message is pickled, as is usual between the processes of one program. Nothing that is unpickled
comes from a data set.
"""

from __future__ import annotations

import array
import os
import pickle
import socket
import struct
from typing import Any

import numpy as np
import torch

_HEADER = struct.Struct("<QQQ")  # bytes of the message, bytes of its pickle, number of buffers
_ALIGNMENT = 64  # bytes; tensors start at a multiple of it, as torch's own do


def send(connection: socket.socket, message: tuple[str, Any], file: Any) -> None:
    """Write a message to the start of `file` and pass the file over the socket."""
    buffers: list[pickle.PickleBuffer] = []
    kind, item = message
    content = pickle.dumps((kind, _as_arrays(item)), protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = array.array("Q", [view.nbytes for view in views]).tobytes()
    file.seek(0)
    for part in (sizes, content, *views):
        file.write(part)
        file.write(bytes(-file.tell() % _ALIGNMENT))
    file.flush()
    header = _HEADER.pack(file.tell(), len(content), len(views))
    sent = socket.send_fds(connection, [header], [file.fileno()])
    connection.sendall(header[sent:])


def receive(connection: socket.socket) -> tuple[str, Any]:
    """Read one message. Raises `EOFError` if the other end is closed."""
    header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 1)
    while header and len(header) < _HEADER.size:
        more = connection.recv(_HEADER.size - len(header))
        if not more:
            break
        header += more
    try:
        if len(header) < _HEADER.size or not descriptors:
            raise EOFError
        num_bytes, content_size, num_buffers = _HEADER.unpack(header)
        memory = _read_to_memory(descriptors[0], num_bytes)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    sizes = array.array("Q", memory[: 8 * num_buffers].tobytes())
    parts, at = [], _aligned(8 * num_buffers)
    for size in (content_size, *sizes):
        parts.append(memory[at : at + size])
        at = _aligned(at + size)
    kind, item = pickle.loads(parts[0], buffers=parts[1:])
    return kind, _as_tensors(item)


def _read_to_memory(descriptor: int, num_bytes: int) -> memoryview:
    """The first bytes of a file, in memory that lives as long as any tensor that uses it."""
    # Not a bytearray, which would be zeroed first.
    memory = np.empty(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    view = memory.data[start : start + num_bytes]
    done = 0
    while done < num_bytes:  # one call, except for batches of 2 GiB
        done += os.preadv(descriptor, [view[done:]], done)
    return view


def _aligned(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


class _TensorAsArray:
    """A tensor as a numpy array, whose bytes pickle protocol 5 keeps outside its stream.

    Arrives with the same order of dimensions in memory (channels_last stays channels_last): kernels
    and their rounding must not depend on whether workers are used.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        self.array = tensor.permute(self.order).contiguous().numpy()

    def tensor(self) -> torch.Tensor:
        """The tensor, sharing the array's memory."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return torch.from_numpy(self.array).permute(back)


def _as_arrays(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {
        name: _TensorAsArray(value) if isinstance(value, torch.Tensor) else value
        for name, value in item.items()
    }


def _as_tensors(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {
        name: value.tensor() if isinstance(value, _TensorAsArray) else value
        for name, value in item.items()
    }
